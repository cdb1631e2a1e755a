"""Probes and metrics as the kubelet and Prometheus meet them: by HTTP, on the node's network."""

import itertools
import resource
import select
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from http.client import HTTPConnection
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.namespace import CIDR, Namespace
from support.program import Fake, Start
from support.tools import tool
from support.waiting import FOREVER, HANG, until

HEALTH = "--health-address=:9180"
FLAGS = ("--ip-address=10.96.0.2", "--setup-iptables", "--iptables-backend=nft", HEALTH)


def ask(path: str) -> None:
    """Ask for a path; print the status and the body."""
    connection = HTTPConnection("127.0.0.1", 9180, timeout=HANG)
    connection.request("GET", path)
    answer = connection.getresponse()
    print(answer.status)
    print(answer.read().decode(), end="", flush=True)


def be_a_crowd() -> None:
    """Open 500 connections, most of which say nothing, hold them, and replace those that end, until killed."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    words = itertools.cycle([b"", b"", b"", b"GET ", b"\xff" * 4096, b"POST / HTTP/1.1\r\n\r\n", b"\r\n\r\n"])

    def connect() -> socket.socket:
        made = socket.create_connection(("127.0.0.1", 9180))
        made.send(next(words))
        return made

    crowd = [connect() for _ in range(500)]
    print("there", flush=True)
    while True:
        for gone in select.select(crowd, [], [])[0]:
            gone.close()
            crowd[crowd.index(gone)] = connect()
        select.select([], [], [], 0.01)


def be_a_stranger() -> None:
    """Have the port."""
    server = socket.create_server(("", 9180))
    print("there", flush=True)
    server.accept()


def probe(namespace: Namespace, path: str) -> tuple[int, str]:
    """Return status and body."""
    out, err = namespace.fork(partial(ask, path)).communicate(timeout=HANG)
    assert err == ""
    status, _, body = out.partition("\n")
    return int(status), body


def wait_for(namespace: Namespace, path: str, status: int) -> str:
    """Probe until this is the status; return the body."""

    def body() -> list[str]:
        found, text = probe(namespace, path)
        return [text] if found == status else []

    return until(body, lambda: probe(namespace, path))[0]


def samples(namespace: Namespace) -> dict[tuple[str, ...], float]:
    status, text = probe(namespace, "/metrics")
    assert status == 200
    return {
        (sample.name.removeprefix("apiserver_proxy_sidecar_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def faulty(fake: Fake, tmp_path: Path) -> Callable[[str], tuple[Path, dict[str, str]]]:
    """Let `ip` do something else while a file is there; return the file, and the environment."""

    def faulty(script: str) -> tuple[Path, dict[str, str]]:
        switch = tmp_path / "on"
        return switch, fake("ip", f'[ -e {switch} ] && {{ {script}; }}\nexec $real "$@"')

    return faulty


@pytest.fixture
def others(namespace: Namespace) -> Iterator[Callable[[Callable[[], None]], None]]:
    """Let somebody else do something on the node, until the test ends."""
    started: list[subprocess.Popen[str]] = []

    def others(work: Callable[[], None]) -> None:
        started.append(namespace.fork(work))
        assert started[-1].stdout
        assert started[-1].stdout.readline() == "there\n"

    yield others
    for process in started:
        process.kill()
        process.communicate()


Faulty = Callable[[str], tuple[Path, dict[str, str]]]
Others = Callable[[Callable[[], None]], None]


def test_ready_says_since_when_or_what_is_missing(namespace: Namespace, start: Start, faulty: Faulty) -> None:
    switch, env = faulty('case "$*" in *"address add"*) echo "no, said the test" >&2; exit 2;; esac')
    sidecar = start(*FLAGS, **env)
    sidecar.wait_for("in sync: ")
    assert wait_for(namespace, "/readyz", 200).startswith("in sync since 20")
    switch.touch()
    namespace.run("ip", "address", "delete", CIDR, "dev", "lo")
    body = wait_for(namespace, "/readyz", 503)
    assert body.startswith("not in sync since 20")
    assert "\n- could not add 10.96.0.2/32 to lo: `ip address add 10.96.0.2/32 dev lo scope host`" in body
    assert "no, said the test" in body
    assert probe(namespace, "/healthz") == (200, "ok\n")  # the loop is alive: to start it again would change nothing
    shown = samples(namespace)
    assert shown["in_sync", "address", "10.96.0.2/32 on lo"] == shown["ready",] == 0
    assert shown["failures_total", "command_error"] > 0
    switch.unlink()
    wait_for(namespace, "/readyz", 200)
    assert samples(namespace)["in_sync", "address", "10.96.0.2/32 on lo"] == 1
    assert sidecar.stop() == 0


def test_ready_says_what_is_unknown(namespace: Namespace, start: Start) -> None:
    table = "add table ip filter; add chain ip filter INPUT { type filter hook input priority 0; }; "
    namespace.run("nft", f"{table} add rule ip filter INPUT ip daddr 10.96.0.2 tcp dport 443 quota 10 mbytes accept")
    start(*FLAGS).wait_for("in sync: ")
    first, *rest = wait_for(namespace, "/readyz", 200).splitlines()
    assert first.startswith("in sync since ")
    assert [line.partition(" -d ")[0] for line in rest] == ["- unknown whether it is there: -t filter -A INPUT"]


def test_a_command_that_hangs_is_no_sign_of_life(namespace: Namespace, start: Start, faulty: Faulty) -> None:
    switch, env = faulty(f"exec sleep {FOREVER}")
    flags = ("--command-timeout=1100ms", "--iptables-wait=500ms", "--iptables-backend=nft", "--sync-interval=1s")
    sidecar = start(*FLAGS, *flags, **env)
    sidecar.wait_for("in sync: ")
    assert probe(namespace, "/healthz") == (200, "ok\n")
    switch.touch()
    body = wait_for(namespace, "/healthz", 503)
    assert body.startswith("`ip -json -details address show` was killed after 1.1")
    for _ in range(20):  # while it hangs once more, probes are answered, and the same
        assert probe(namespace, "/healthz")[0] == probe(namespace, "/readyz")[0] == 503
    assert samples(namespace)["command_failures_total", "ip", "timeout"] > 0
    switch.unlink()
    assert wait_for(namespace, "/healthz", 200) == "ok\n"
    wait_for(namespace, "/readyz", 200)
    assert sidecar.stop() == 0


def test_a_log_that_nobody_reads_is_no_hang(namespace: Namespace, start: Start) -> None:
    sidecar = start(*FLAGS, "-v=6", "--sync-interval=10ms")
    sidecar.wait_for("in sync: ")
    until(lambda: samples(namespace)["log_lines_dropped_total", "stderr"] > 0)
    passes = samples(namespace)["passes_total", "in_sync"]
    until(lambda: samples(namespace)["passes_total", "in_sync"] > passes + 2)
    assert probe(namespace, "/healthz")[0] == 200
    assert probe(namespace, "/readyz")[0] == 200
    assert sidecar.stop() == 0


def test_metrics_of_repairs_and_of_copies(namespace: Namespace, start: Start) -> None:
    sidecar = start(*FLAGS)
    sidecar.wait_for("in sync: ")
    shown = samples(namespace)
    assert {key: value for key, value in shown.items() if key[0] == "repairs_total" and value} == {}
    assert shown["passes_total", "changed"] == 1
    assert shown["ready",] == shown["alive",] == 1
    assert len([key for key, value in shown.items() if key[0] == "in_sync" and value == 1]) == 6
    info = next(key for key in shown if key[0] == "build_info")
    assert "nft" in info
    for number in (1, 2):
        namespace.run("ip", "address", "delete", CIDR, "dev", "lo")
        until(lambda: samples(namespace)["repairs_total", "address", "10.96.0.2/32 on lo"] == number)  # noqa: B023
    rule = namespace.rules("nft")[0]
    namespace.iptables("nft", 4, *rule.split())
    sidecar.process.send_signal(signal.SIGHUP)
    until(lambda: samples(namespace)["copies_removed_total", "rule"] == 1)
    many = f"*{rule.split()[1]}\n" + f"{' '.join(rule.split()[2:])}\n" * 250 + "COMMIT\n"
    namespace.run("iptables-nft-restore", "--noflush", stdin=many)
    sidecar.process.send_signal(signal.SIGHUP)
    until(namespace.in_place)
    until(lambda: samples(namespace)["copies_removed_total", "rule"] == 251)
    assert samples(namespace)["command_duration_seconds_count", "ip"] > 5
    assert sidecar.stop() == 0


def test_the_names_pass_promtool(namespace: Namespace, start: Start) -> None:
    promtool = tool("promtool")
    start(*FLAGS).wait_for("in sync: ")
    text = probe(namespace, "/metrics")[1]
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_crowd_harms_neither_the_probes_of_others_nor_the_repair(
    namespace: Namespace, start: Start, others: Others
) -> None:
    sidecar = start(*FLAGS)
    sidecar.wait_for("in sync: ")
    others(be_a_crowd)
    for path in ("/healthz", "/readyz", "/metrics") * 3:
        assert probe(namespace, path)[0] == 200
    for _ in range(3):
        namespace.run("ip", "address", "delete", CIDR, "dev", "lo")
        until(lambda: namespace.addresses() == [CIDR])
    assert sidecar.stop() == 0


def test_it_ends_in_order_while_connections_are_open(namespace: Namespace, start: Start, others: Others) -> None:
    sidecar = start(*FLAGS, "--cleanup")
    sidecar.wait_for("in sync: ")
    others(be_a_crowd)
    assert sidecar.stop() == 0
    assert "cleanup done" in sidecar.log
    assert namespace.addresses() == namespace.rules("nft") == []


def test_no_descriptor_of_it_reaches_a_command(start: Start, others: Others, faulty: Faulty, tmp_path: Path) -> None:
    switch, env = faulty(f"ls -l /proc/self/fd > {tmp_path}/seen")
    sidecar = start(*FLAGS, **env)
    sidecar.wait_for("in sync: ")
    others(be_a_crowd)
    switch.touch()
    sidecar.process.send_signal(signal.SIGHUP)
    seen = tmp_path / "seen"
    until(lambda: seen.exists() and seen.read_text())
    assert "socket:" not in seen.read_text()
    assert sidecar.stop() == 0


def test_a_broken_new_pod_answers_for_itself_until_it_goes(namespace: Namespace, start: Start, faulty: Faulty) -> None:
    switch, env = faulty("echo broken >&2; exit 1")
    old = start(*FLAGS, "--cleanup")
    old.wait_for("in sync: ")
    switch.touch()
    new = start(*FLAGS, **env)
    new.wait_for("broken")
    for _ in range(10):
        assert probe(namespace, "/readyz")[0] == 503
        assert probe(namespace, "/healthz") == (200, "ok\n")
        assert samples(namespace)["ready",] == 0
    new.kill()
    for _ in range(10):
        assert probe(namespace, "/readyz")[0] == 200
        assert samples(namespace)["ready",] == 1
    assert old.stop() == 0


def test_an_old_pod_that_hangs_spoils_nothing_of_the_new_one(namespace: Namespace, start: Start) -> None:
    old = start(*FLAGS)
    old.wait_for("in sync: ")
    old.process.send_signal(signal.SIGSTOP)
    new = start(*FLAGS)
    new.wait_for("in sync: ")
    for _ in range(10):
        assert probe(namespace, "/healthz")[0] == probe(namespace, "/readyz")[0] == 200
    old.process.send_signal(signal.SIGCONT)
    assert new.stop() == 0
    for _ in range(10):
        assert probe(namespace, "/readyz")[0] == 200
    assert old.stop() == 0


def test_an_address_that_is_taken_ends_with_3_and_nothing_is_touched(
    namespace: Namespace, start: Start, others: Others
) -> None:
    others(be_a_stranger)
    sidecar = start(*FLAGS)
    assert sidecar.end() == 3
    assert "cannot listen on --health-address=:9180: in use by pid " in sidecar.log
    assert namespace.addresses() == []


def test_one_pass_does_not_listen(start: Start, others: Others) -> None:
    others(be_a_stranger)
    # It may well be an init container that has the same variables, or be started beside the daemon.
    assert start(*FLAGS, "--daemon=false").end() == 0
