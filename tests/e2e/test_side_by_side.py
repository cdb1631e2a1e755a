"""Several instances on one node, as in a rolling update; and other programs that change the same rules."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import pytest

from support.namespace import Namespace
from support.program import PROGRAM, Sidecar

Start: TypeAlias = Callable[..., Sidecar]

CIDR = "10.96.0.2/32"
FLAGS = ("--ip-address=10.96.0.2", "--setup-iptables", "--cleanup")

#: Seconds for which programs work against each other.
SECONDS = float(os.environ.get("TEST_SECONDS", "10"))


@pytest.fixture(params=["nft", "legacy"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def in_place(namespace: Namespace, backend: str) -> bool:
    return namespace.addresses() == [CIDR] and len(namespace.rules(backend)) == len(set(namespace.rules(backend))) == 5


def is_clean(namespace: Namespace) -> bool:
    return not (namespace.addresses() or namespace.rules("nft") or namespace.rules("legacy"))


@contextmanager
def never_gone(namespace: Namespace) -> Iterator[None]:
    """Hold that no address is deleted meanwhile, by what the kernel tells of each change."""
    monitor = namespace.start("ip", "monitor", "address")
    time.sleep(0.2)
    yield
    namespace.run("ip", "address", "add", "192.0.2.1/32", "dev", "lo")
    assert monitor.stdout
    told = ""
    while "192.0.2.1" not in told:
        told += monitor.stdout.readline()
    monitor.kill()
    monitor.communicate()
    namespace.run("ip", "address", "delete", "192.0.2.1/32", "dev", "lo")
    assert "Deleted" not in told


def test_a_new_instance_keeps_what_the_old_one_would_clean_up(namespace: Namespace, start: Start, backend: str) -> None:
    flags = (*FLAGS, f"--iptables-backend={backend}")
    old = start(*flags)
    old.wait_for("in sync")
    with never_gone(namespace):
        new = start(*flags)
        new.wait_for("in sync")
        assert old.stop() == 0
        assert in_place(namespace, backend)
    assert "left in place, as another instance on this node wants it: 10.96.0.2:443, 10.96.0.2@lo, link lo" in old.log
    assert new.stop() == 0
    assert "another instance" not in new.log
    assert is_clean(namespace)


def test_at_whatever_moment_the_old_one_stops_the_new_one_ends_with_everything_in_place(
    namespace: Namespace, start: Start
) -> None:
    flags = (*FLAGS, "--iptables-backend=nft", "--sync-interval=1h")
    old = start(*flags)
    old.wait_for("in sync")
    for milliseconds in range(0, 300, 25):
        new = start(*flags)
        time.sleep(milliseconds / 1000)
        assert old.stop() == 0
        new.wait_for("in sync")
        assert in_place(namespace, "nft"), milliseconds
        old = new
    assert old.stop() == 0
    assert is_clean(namespace)


def test_what_only_the_old_one_wants_goes(namespace: Namespace, start: Start) -> None:
    old = start(*FLAGS, "--iptables-backend=nft", "--port=9443")
    new = start(*FLAGS, "--iptables-backend=nft")
    for each in (old, new):
        each.wait_for("in sync")
    with never_gone(namespace):
        assert old.stop() == 0
        assert in_place(namespace, "nft")
    assert new.stop() == 0
    assert is_clean(namespace)


def test_one_that_starts_during_a_cleanup_waits_and_then_sets_up(
    namespace: Namespace, start: Start, tmp_path: Path
) -> None:
    slow = tmp_path / "ip"
    slow.write_text('#!/bin/sh\nsleep 1\nexec /usr/sbin/ip "$@"\n' if Path("/usr/sbin/ip").exists()
                    else '#!/bin/sh\nsleep 1\nexec /usr/bin/ip "$@"\n')  # fmt: skip
    slow.chmod(0o755)
    old = start("--ip-address=10.96.0.2", "--cleanup", PATH=f"{tmp_path}:{os.environ['PATH']}")
    old.wait_for("in sync", 20)
    old.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    new = start("--ip-address=10.96.0.2", "--cleanup")
    new.wait_for("another instance is cleaning up 10.96.0.2@lo: waiting for it")
    assert old.end() == 0
    new.wait_for("in sync")
    assert namespace.addresses() == [CIDR]
    assert new.stop() == 0
    assert is_clean(namespace)


HOLDER = """
import sys
sys.path[:0] = [sys.argv[1]]
from sidecar.claims import Claims
claims = Claims()
claims.take(["10.96.0.2@lo"], is_over=lambda: False)
assert not claims.wanted_by_others()
print("held", flush=True)
sys.stdin.read()
"""


def test_one_that_waits_can_be_stopped(start: Start, namespace: Namespace) -> None:
    root = str(Path(__file__).parents[2])
    holder = subprocess.Popen(
        [*namespace.prefix, sys.executable, "-c", HOLDER, root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    sidecar = start("--ip-address=10.96.0.2")
    sidecar.wait_for("waiting for it")
    assert sidecar.stop() == 0
    assert namespace.addresses() == []
    holder.communicate()


def test_where_the_directory_cannot_be_used_it_says_so_and_cleans_up(namespace: Namespace, start: Start) -> None:
    namespace.run("touch", "/run/apiserver-proxy-sidecar")
    first = start(*FLAGS, "--iptables-backend=nft")
    second = start(*FLAGS, "--iptables-backend=nft", "--sync-interval=200ms")
    for each in (first, second):
        each.wait_for("cannot use /run/apiserver-proxy-sidecar")
        each.wait_for("in sync")
    first.stop()  # which the other one works against, as it cannot know better
    second.wait_for("added 10.96.0.2/32 to lo")
    deadline = time.monotonic() + 5
    while not in_place(namespace, "nft"):
        assert time.monotonic() < deadline
    assert second.stop() == 0
    assert is_clean(namespace)


def test_one_pass_that_cleans_up_leaves_what_a_daemon_wants(namespace: Namespace, start: Start) -> None:
    daemon = start(*FLAGS, "--iptables-backend=nft")
    daemon.wait_for("in sync")
    once = start(*FLAGS, "--iptables-backend=nft", "--daemon=false")
    assert once.end() == 0
    assert "left in place" in once.log
    assert in_place(namespace, "nft")
    assert daemon.stop() == 0


# Everybody at once


def test_several_sidecars_and_others_that_add_and_delete_end_with_one_copy_of_each(
    namespace: Namespace, start: Start, backend: str
) -> None:
    flags = (*FLAGS[:2], f"--iptables-backend={backend}", "--sync-interval=50ms")
    rule = f"OUTPUT -d {CIDR} -p tcp --dport 443 -j NOTRACK"
    others = [
        f"while :; do iptables-{backend} -w 5 -t raw -A {rule}; sleep 0.05; done",
        f"while :; do iptables-{backend} -w 5 -t raw -D {rule}; sleep 0.03; done",
        f"while :; do ip address delete {CIDR} dev lo; sleep 0.05; done",
    ]
    sidecars = [start(*flags) for _ in range(4)]
    noise = [namespace.start("sh", "-c", f"exec 2>/dev/null; {script}") for script in others]
    time.sleep(SECONDS)
    for each in noise:
        each.kill()
        each.communicate()
    deadline = time.monotonic() + 20
    while not in_place(namespace, backend):
        assert time.monotonic() < deadline, namespace.rules(backend)
        time.sleep(0.1)
    for sidecar in sidecars:
        assert sidecar.stop() == 0
    assert in_place(namespace, backend)


def test_many_that_start_at_once_end_with_one_copy_of_each(namespace: Namespace, backend: str) -> None:
    command = [PROGRAM, *FLAGS[:2], f"--iptables-backend={backend}", "--daemon=false"]
    for _ in range(5):
        processes = [namespace.start(*map(str, command)) for _ in range(4)]
        for process in processes:
            _, log = process.communicate(timeout=60)
            assert process.returncode == 0, log
        assert in_place(namespace, backend)
        for rule in namespace.rules(backend):
            namespace.iptables(backend, 4, *rule.replace("-A", "-D").split())
        namespace.run("ip", "address", "delete", CIDR, "dev", "lo")


# The lock


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        ("mkdir /run/xtables.lock", "/run/xtables.lock is a directory: remove it"),
        ("ln -s /nonexistent/lock /run/xtables.lock", "/run/xtables.lock cannot be opened (No such file or directory)"),
    ],
)
def test_a_lock_that_cannot_be_had_is_told_as_what_it_is(
    namespace: Namespace, start: Start, prepare: str, said: str
) -> None:
    subprocess.run([*namespace.prefix, "sh", "-c", prepare], check=True)
    sidecar = start(*FLAGS[:2], "--iptables-backend=legacy")
    assert sidecar.end() == 3
    assert said in sidecar.log
    nft = start(*FLAGS[:2], "--iptables-backend=nft", "--daemon=false")  # it has no such lock
    assert nft.end() == 0


def test_a_lock_that_is_held_for_long_is_tried_again_soon(namespace: Namespace, start: Start) -> None:
    with namespace.lock_held(6):
        sidecar = start(*FLAGS[:2], "--iptables-backend=legacy", "--iptables-wait=200ms", "--sync-interval=1h")
    started = time.monotonic()
    sidecar.wait_for("in sync after", 5)
    assert time.monotonic() - started < 4
    assert sidecar.stop() == 0
    assert in_place(namespace, "legacy")
