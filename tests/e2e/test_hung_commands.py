"""Commands that hang where no signal reaches them: on a real file system that does not answer (support/hanging.py)."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import TypeAlias

import pytest

from support import hanging
from support.in_sync import put_in_place
from support.namespace import CIDR, ENVIRONMENT, Namespace
from support.program import Fake, Start
from support.waiting import FOREVER, HANG, until

WANTED = ("--ip-address=10.96.0.2", "--setup-iptables", "--iptables-wait=500ms")
FLAGS = (*WANTED, "--sync-interval=1s")

#: Puts a program on a file system that hangs when this is done with it; returns the environment in which it is found,
#: and the process that ends the hang by its own end.
Hang: TypeAlias = Callable[..., tuple[dict[str, str], "subprocess.Popen[str]"]]


@pytest.fixture
def hang(namespace: Namespace, tmp_path: Path) -> Iterator[Hang]:
    if os.geteuid() or not Path("/dev/fuse").exists():
        pytest.skip("needs /dev/fuse, and root to open it")
    servers: list[subprocess.Popen[str]] = []

    def hang(program: str, *, when: str = "open") -> tuple[dict[str, str], "subprocess.Popen[str]"]:
        server = namespace.start(sys.executable, hanging.__file__, str(tmp_path), program, when)
        servers.append(server)
        assert server.stdout
        assert server.stdout.readline() == "ready\n", server.stderr
        return {"PATH": f"{tmp_path}:{ENVIRONMENT['PATH']}"}, server

    yield hang
    for server in servers:
        server.kill()
        server.communicate()


def wait_for_hang(server: "subprocess.Popen[str]") -> None:
    assert server.stdout
    assert server.stdout.readline() == "hangs\n"


def states(pid: int) -> list[str]:
    """Return the states of the processes that this process has started."""
    found = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [Path(f"/proc/{child}/stat").read_text().rpartition(") ")[2][0] for children in found for child in children]


def test_nothing_is_started_beside_a_command_that_hangs_in_its_start(
    namespace: Namespace, start: Start, hang: Hang, backend: str
) -> None:
    """In state D the child that was killed stays as it is, until the file system is gone."""
    env, server = hang(f"iptables-{backend}-restore")
    sidecar = start(*FLAGS, f"--iptables-backend={backend}", "--command-timeout=1100ms", "-v=2", **env)
    sidecar.wait_for("`ip -json -details address show` was not started: `iptables-")
    sidecar.wait_for(
        "was killed after 1.1s and does not end, as it waits in the kernel, perhaps for a file system that"
    )
    sidecar.wait_for("pass: not in sync", times=3)
    assert states(sidecar.process.pid) == ["D"]
    server.kill()
    sidecar.wait_for("in sync after")
    assert namespace.in_place(backend)
    assert sidecar.stop() == 0


@pytest.mark.parametrize("flags", [(), ("--cleanup",)], ids=" ".join)
def test_a_signal_ends_a_start_that_hangs(start: Start, hang: Hang, flags: tuple[str, ...]) -> None:
    env, server = hang("ip")
    sidecar = start(*FLAGS, f"--command-timeout={FOREVER}s", "--cleanup-timeout=3s", *flags, **env)
    wait_for_hang(server)
    sidecar.process.send_signal(signal.SIGTERM)
    assert sidecar.end() == len(flags)
    assert ("cleanup is incomplete, possibly left to do: remove 10.96.0.2/32 from lo" in sidecar.log) == bool(flags)
    server.kill()


def test_a_second_signal_ends_a_start_that_hangs(start: Start, hang: Hang) -> None:
    env, server = hang("ip")
    sidecar = start(*FLAGS, f"--command-timeout={FOREVER}s", "--cleanup-timeout=10m", "--cleanup", "-v=4", **env)
    wait_for_hang(server)
    sidecar.process.send_signal(signal.SIGTERM)
    sidecar.wait_for("and does not end")
    sidecar.process.send_signal(signal.SIGTERM)
    assert sidecar.end() == 1


@pytest.mark.parametrize("command", ["status", "plan", "doctor", "cleanup"])
def test_every_command_ends_although_a_start_hangs(start: Start, hang: Hang, command: str) -> None:
    env, _ = hang("ip")
    limit = ["--cleanup-timeout=3s"] if command == "cleanup" else []
    sidecar = start(command, *WANTED, "--command-timeout=1100ms", *limit, **env)
    output, errors = sidecar.process.communicate(timeout=HANG)
    assert sidecar.process.returncode == 1
    assert "does not end, as it waits in the kernel" in " ".join(output.split())
    assert errors == ""


PROGRAMS = [
    "ip",
    "nft",
    "conntrack",
    *(f"iptables{backend}{rest}" for backend in ("", "-nft", "-legacy") for rest in ("", "-restore", "-save")),
]


@pytest.mark.parametrize("command", ["status", "doctor"])
@pytest.mark.parametrize(
    "programs", [["ip"], ["iptables-nft-restore"], PROGRAMS], ids=["ip", "iptables-nft-restore", "all"]
)
def test_what_hangs_is_told_first_and_not_started_again(
    namespace: Namespace, start: Start, fake: Fake, command: str, programs: list[str]
) -> None:
    put_in_place(namespace, *WANTED[:2])
    env: dict[str, str] = {}
    for name in programs:
        env = fake(name, f"echo {name} >> $here/started; exec sleep {FOREVER}")
    sidecar = start(command, *WANTED[:2], "--output=json", **env)
    answer = json.loads(sidecar.process.communicate(timeout=HANG)[0])
    assert answer["exit"] == sidecar.process.returncode == 1
    names = "|".join(programs)
    assert re.search(f"(^|; first: commands: )({names}) does not answer within 1 s: `({names}) -", answer["summary"])
    if command == "doctor":
        first = answer["findings"][0]
        assert first["found"] in answer["summary"]
        assert all(program in first["commands"][0] for program in first["found"].split()[:1])
    started = Path(env["PATH"].partition(":")[0], "started").read_text().split()
    assert len(started) == len(set(started)) >= 1


def test_a_shorter_time_for_commands_counts(start: Start, fake: Fake) -> None:
    sidecar = start("doctor", WANTED[0], "--command-timeout=200ms", **fake("ip", f"exec sleep {FOREVER}"))
    assert "ip does not answer within 0.2 s: `ip -V`" in sidecar.process.communicate(timeout=HANG)[0]


@pytest.mark.parametrize("command", ["status", "doctor"])
def test_who_holds_the_lock_is_told_and_not_that_iptables_hangs(
    namespace: Namespace, start: Start, command: str
) -> None:
    put_in_place(namespace, *WANTED[:2], backend="legacy")
    with namespace.lock_held():
        sidecar = start(command, *WANTED[:2], "--iptables-backend=legacy")
        output = " ".join(sidecar.process.communicate(timeout=HANG)[0].split())
    assert re.match(r".*/run/xtables.lock is held by pid \d+ \(\w+\); iptables commands are waiting for it", output)
    assert "does not answer" not in output
    assert sidecar.process.returncode == 1


def test_a_search_path_that_hangs_is_a_failure(start: Start, hang: Hang) -> None:
    """Who looks there waits in state D, too: the process is there until the file system is gone."""
    env, server = hang("ip", when="lookup")
    sidecar = start(*FLAGS, "--command-timeout=1100ms", **env)
    sidecar.wait_for("cannot look for ip: a directory of the search path does not answer")
    server.kill()
    assert sidecar.end() == 3


def test_a_hang_is_no_sign_of_life_as_long_as_it_lasts(namespace: Namespace, start: Start, hang: Hang) -> None:
    def probe() -> list[str]:
        asked = namespace.fork(ask)
        return asked.communicate(timeout=HANG)[0].split("\n", 1)

    def ask() -> None:
        connection = HTTPConnection("127.0.0.1", 9180, timeout=HANG)
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        print(answer.status, answer.read().decode(), sep="\n")

    env, server = hang("ip")
    sidecar = start(*FLAGS, "--command-timeout=1100ms", "--health-address=:9180", "-v=2", **env)
    sidecar.wait_for("was not started: ")
    for times in range(2, 5):
        sidecar.wait_for("pass: not in sync", times=times)
        status, text = probe()
        assert (status, text[:38]) == ("503", "`ip -json -details address show` was ki"[:38])
    server.kill()
    until(lambda: probe()[0] == "200")
    assert sidecar.stop() == 0


def test_what_is_left_of_a_hung_start_keeps_no_cleanup_back(
    namespace: Namespace, execute: Start, start: Start, hang: Hang
) -> None:
    """It neither holds the claims of its sidecar, nor is it taken for one."""
    namespace.run("ip", "address", "add", CIDR, "dev", "lo")
    env, server = hang("ip")
    sidecar = execute(*FLAGS, f"--command-timeout={FOREVER}s", **env)
    wait_for_hang(server)
    sidecar.kill()
    cleanup = start("cleanup", *WANTED)
    output = cleanup.process.communicate(timeout=HANG)[0]
    assert cleanup.process.returncode == 0, output
    assert namespace.addresses() == []
