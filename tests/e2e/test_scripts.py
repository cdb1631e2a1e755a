"""The scripts, as somebody at a terminal meets them."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from sidecar import __version__
from support import cluster as clusters
from support import soak
from support.fleet import run as fleets
from support.fleet.node import RULES
from support.namespace import Namespace
from support.program import Sidecar
from support.sweep import sweep
from support.waiting import HANG, until

ROOT = Path(__file__).parents[2]


def at_a_terminal(*flags: str, until: str) -> tuple[int, str]:
    """Run scripts/run on a terminal, press Ctrl-C once this text is there; return exit code and output."""
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored, where the tests run in the background of a shell
        os.execv(ROOT / "scripts" / "run", ["run", *flags])
    output, pressed = "", False
    while select.select([terminal], [], [], HANG)[0]:
        try:
            output += os.read(terminal, 65536).decode()
        except OSError:  # the other end is closed: it has ended
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), output
        if until in output and not pressed:
            os.write(terminal, b"\x03")
            pressed = True
    raise AssertionError(f"it did not end:\n{output}")


@pytest.fixture(autouse=True)
def _needs(namespace: Namespace) -> None:  # noqa: ARG001 - it skips where there are no namespaces
    if Path(sys.prefix) != ROOT / ".venv":
        pytest.skip("these tests do not run in the .venv that scripts/run would use")


@pytest.mark.parametrize("until", ["--ip-address=10.96.0.2", "Ctrl-C ends it"])
def test_ctrl_c_shows_the_cleanup(until: str) -> None:
    code, output = at_a_terminal(until=until)
    assert code == 0
    assert "cleanup done" in output
    assert "----- afterwards" in output
    assert "10.96.0.2" not in output.partition("----- afterwards")[2]


def test_it_shows_what_is_there_once_in_sync() -> None:
    _, output = at_a_terminal("--iptables-backend=legacy", until="-----\r\n\r\n")
    shown = output.partition("----- in sync; Ctrl-C ends it")[2].partition("-----\r\n")[0]
    assert "10.96.0.2/32" in shown
    assert shown.count("-A ") == 5


def bench(*sections: str) -> Any:  # noqa: ANN401 - JSON is anything
    command = [str(ROOT / "scripts" / "bench"), "--output=json", "--seconds=1", "--repeat=1", *sections]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.thorough
@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's socket does not hold so many rules")
def test_bench_measures_passes_beside_50000_rules() -> None:
    (rows,) = bench("pass").values()
    passes = {(row["backend"], row["foreign rules"], row["addresses"]): row["pass ms"] for row in rows}
    assert len(passes) == 18
    assert all(milliseconds > 0 for milliseconds in passes.values())


def test_bench_measures_each_fault_and_tells_it_as_json() -> None:
    results = bench("memory", "repair", "opponent")
    assert list(results) == ["memory", "repair", "opponent"]
    assert all(row["rss"] > row["pss"] > 1 for row in results["memory"])
    repaired = {(row["what"], row["backend"]): row["repairs"] for row in results["repair"]}
    assert {what for what, _ in repaired} >= {"address deleted", "one rule deleted", "tables flushed", "link down"}
    assert all(number > 0 for number in repaired.values())
    assert [row["backend"] for row in results["opponent"]] == ["nft", "legacy"]


@pytest.mark.thorough
def test_bench_measures_doctor() -> None:
    (rows,) = bench("doctor").values()
    assert len(rows) == 8
    assert all(row["ms"] > 0 for row in rows)


def test_bench_refuses_what_it_does_not_measure() -> None:
    done = subprocess.run([ROOT / "scripts" / "bench", "coffee"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout.startswith("Usage: scripts/bench")


@pytest.mark.parametrize("backend", sweep(("nft", "legacy"), ("legacy",)))
def test_soak_finds_that_nothing_grows(backend: str) -> None:
    command = [str(ROOT / "scripts" / "soak"), "--seconds=3", "--faults", f"--backend={backend}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.strip().splitlines()[2:]]
    grown = {(of, grows) for of, what, *_, grows in rows if what in {"descriptors", "rss MiB"}}
    assert grown == {(backend, "no")}
    assert all(int(row[-2].replace(",", "")) > soak.WARM_UP for row in rows if row[1] == "passes so far")


@pytest.mark.parametrize("what", [each.name for each in fields(soak.Held)])
def test_soak_tells_what_grows_for_good_from_what_comes_and_goes(what: str) -> None:
    usual = soak.Held(descriptors=14, threads=2, children=0, zombies=0, rss=30.0)

    def samples(*more: int) -> list[soak.Held]:
        return [replace(usual, **{what: getattr(usual, what) + each}) for each in more]

    assert soak.growing(samples(0, 1, 2, 3, 4, 5, 6, 7)) == [what]
    assert soak.growing(samples(0, 3, 3, 3, 3, 3, 3, 3)) == []  # it settles in the first quarter
    assert soak.growing(samples(0, 0, 9, 0, 9, 9, 0, 9)) == []  # each quarter has a moment between two passes


def test_fleet_has_all_nodes_right_after_chaos_and_an_update_of_all(tmp_path: Path) -> None:
    picture = tmp_path / "fleet.svg"
    flags = ("--nodes=8", "--seconds=10", "--seed=5", "--output=json", f"--picture={picture}")
    done = subprocess.run([ROOT / "scripts" / "fleet", *flags], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert (report["wrong"], report["foreign_changes"]) == ({}, {})
    assert sum(report["nodes"].values()) == len(report["memory"]) == 8
    assert report["starts"] >= 8  # in the update of all
    assert {each["kind"] for each in report["each_repair"]} & {"address, IPv4", "address, IPv6", "rule, nft"}
    assert report["scrapes"]["made"] >= 8
    drawn = ET.parse(picture).getroot()
    assert len(drawn.findall(".//*[@r='2']")) == len(report["each_repair"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_fleet_leaves_nothing_behind_however_it_ends(number: int) -> None:
    command = [str(ROOT / "scripts" / "fleet"), "--nodes=2", "--seconds=600"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)

    def running() -> list[str]:
        """Return the command lines of its session, man 5 proc."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if int(stat.read_text().rsplit(")", 1)[1].split()[3]) == process.pid:
                    found.append((stat.parent / "cmdline").read_text().replace("\0", " "))
        return found

    try:
        until(lambda: sum("health-address" in each for each in running()) >= 2, running)
        process.send_signal(number)
        assert process.communicate(timeout=HANG) == (b"", b"")
        assert process.returncode == (130 if number == signal.SIGTERM else -number)
        until(lambda: not any(running()), running)
    finally:
        process.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="the script enters a user namespace first; this process does not")
@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_fleet_finds_what_is_wrong_on_a_node(backend: str) -> None:
    with fleets.fleet([backend]) as (node,):
        fleets.start([node])
        assert (node.wrong(), node.foreign_changes()) == ([], [])
        assert node.newest
        node.newest.popen.kill()
        node.newest.popen.wait()
        node.namespace.run("ip", "address", "delete", "10.96.0.2/32", "dev", "lo")
        node.namespace.run(
            "ip", "-6", "address", "change", "fd00:10:96::2/128", "dev", "lo", "preferred_lft", "forever"
        )
        for _ in range(2):
            node.namespace.iptables(backend, 4, "-A", *RULES[3].line.split()[1:])
        node.namespace.iptables(backend, 6, "-t", "raw", "-F", "OUTPUT")
        node.namespace.iptables(backend, 6, "-D", "INPUT", "-p", "tcp", "--dport", "22", "-j", "ACCEPT")
        found = "\n".join(node.wrong())
        assert "1 missing: 10.96.0.2/32" in found
        assert "1 missing: fd00:10:96::2/128" in found
        assert "2 too many: 4 -t filter -A INPUT -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j ACCEPT" in found
        assert found.count("1 missing: 6 -t raw -A OUTPUT") == 2
        assert "dead: a sidecar ended with -9" in found
        assert node.foreign_changes() == ["gone: 6 -t filter -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT"]


@pytest.mark.thorough  # it downloads for a minute
def test_one_file_runs_where_nothing_of_the_project_is(namespace: Namespace, tmp_path: Path) -> None:
    file = tmp_path / "apiserver-proxy-sidecar.pyz"
    built = subprocess.run(
        [str(ROOT / "scripts" / "build-pyz"), str(file)], capture_output=True, text=True, check=False
    )
    if "Could not find a version" in built.stderr or "No matching distribution" in built.stderr:
        pytest.skip("no package index here that has pydantic-core for other machines")
    assert built.returncode == 0, built.stderr
    clean = ("env", "-i", f"HOME={tmp_path}", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "/usr/bin/python3", "-I", str(file))
    assert namespace.run(*clean, "version") == f"apiserver-proxy-sidecar {__version__}\n"
    daemon = Sidecar(namespace.start(*clean, "--ip-address=10.96.0.2", "--setup-iptables"))
    try:
        daemon.wait_for("in sync")
        # It is found by its command line, and tells its settings.
        assert namespace.run(*clean, "status").startswith("in sync: 10.96.0.2/32 on lo, 5 rules\n")
        assert namespace.run(*clean, "plan").endswith("\n# in sync: nothing to do\n")
    finally:
        code = daemon.stop()
    assert code == 0
    assert "removed    10.96.0.2/32 on lo" in namespace.run(*clean, "cleanup", "--ip-address=10.96.0.2")

    # Where the home directory cannot be written to, or is full.
    (home := tmp_path / "home").mkdir()
    for options, why in (("ro", "Read-only file system"), ("size=5m", "No space left on device")):
        namespace.run("mount", "-t", "tmpfs", "-o", options, "t", str(home))
        namespace.run("mount", "-t", "tmpfs", "t", "/dev/shm")
        told = namespace.run("sh", "-c", 'exec "$@" 2>&1', "sh", *clean[:2], f"HOME={home}", *clean[3:], "version")
        line = f"{file.stem}: cannot unpack into {home}/.shiv: {why}: using /dev/shm/{file.stem}-"
        assert re.fullmatch(rf"{line}\d+\n{file.stem} {__version__}\n", told)
    named = (*clean[:2], "SHIV_ROOT=/proc/x", *clean[3:], "version")
    told = namespace.run("sh", "-c", '"$@" 2>&1; echo $?', "sh", *named)
    assert re.fullmatch(f"{file.stem}: cannot unpack into /proc/x: .*: name a directory with 50 MB, .*\n3\n", told)


def test_the_demo_shows_what_it_promises() -> None:
    if reason := clusters.missing():
        pytest.skip(reason)
    demo = subprocess.run([ROOT / "scripts" / "demo", "--quick"], capture_output=True, text=True, check=False)
    assert (demo.returncode, demo.stderr) == (0, "")
    _, deleted, reloaded, rolled = demo.stdout.split("# 200 requests a second. ")
    for shown in (deleted, reloaded, rolled):
        assert re.search(r"\d+ requests: \d+ failed, \d+ were late", shown)
    assert "added 10.96.0.2/32 to lo" in deleted
    assert reloaded.count("rule missing, added: ") == 5
    assert "nothing is left on this node" in rolled
