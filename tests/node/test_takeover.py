"""Two pods, one port: the newest instance answers and no other, whatever each of them does, and gives the port back."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import pytest
from loguru import logger

from sidecar.daemon import health, takeover
from sidecar.daemon.vitals import Vitals
from sidecar.errors import CannotListen
from sidecar.node import ports, proc
from sidecar.node.proc_formats import Listener
from sidecar.settings.values import Endpoint
from sidecar.state.desired import desired
from support.namespace import IPV4, Namespace
from support.program import PROGRAM
from support.waiting import FOREVER, HANG, until

PORT = 9180
PATHS = ("/healthz", "/readyz", "/metrics")
ROOT = Path(__file__).parents[2]

#: What release 0.1.0 does with the port: it shares it, and answers what comes.
RELEASE_0_1_0 = """
import socket, sys
sys.path[:0] = [{root!r}]
from ipaddress import ip_address
from sidecar.daemon import health
from sidecar.daemon.vitals import Vitals
from sidecar.state.desired import desired
vitals = Vitals(desired([ip_address("10.96.0.2")], interface="lo", port=443), 10.0)
vitals.command_ended(("old",), None, 10.0)
listener = socket.socket(socket.AF_INET6)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
listener.bind(("::", 9180))
listener.listen(1024)
print("there", flush=True)
while True:
    connection, _ = listener.accept()
    with connection:
        connection.sendall(health.respond(connection.recv(4096), vitals))
"""


def be_an_instance(name: str, host: str) -> None:
    """Answer with a name; a daemon does just this with the port."""
    logger.add(sys.stderr)
    vitals = Vitals(desired([IPV4], interface="lo", port=443), 10.0)
    vitals.command_ended((name,), None, 10.0)  # /healthz and /readyz say so; /metrics counts it
    try:
        port = takeover.listen(Endpoint(host, PORT))
    except CannotListen as error:
        print(error, flush=True)
        return
    health.serve(port, vitals)
    print("there", flush=True)
    time.sleep(FOREVER)


def be_a_stranger(host: str, *, shares: bool) -> None:
    """Listen on the port, and say nothing."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shares))
    listener.bind((host, PORT))
    listener.listen()
    print("there", flush=True)
    time.sleep(FOREVER)


def ask(host: str) -> None:
    """Print who answers, a line for each request; 30 of them."""
    for number in range(30):
        connection = HTTPConnection(host, PORT, timeout=HANG)
        try:
            connection.request("GET", PATHS[number % len(PATHS)])
            text = connection.getresponse().read().decode()
        except (OSError, HTTPException):
            text = ""
        print([name for name in ("old", "A", "B", "C", "D") if f"`{name}`" in text or f'"{name}"' in text], flush=True)


class Node:
    def __init__(self, namespace: Namespace, tmp_path: Path) -> None:
        self.namespace = namespace
        self._tmp_path = tmp_path
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, name: str, host: str = "") -> "subprocess.Popen[str]":
        return self._await(self.namespace.fork(partial(be_an_instance, name, host)))

    def start_old_release(self) -> "subprocess.Popen[str]":
        script = self._tmp_path / PROGRAM.name  # this is how a sidecar is known by its command line
        script.write_text(RELEASE_0_1_0.format(root=str(ROOT)))
        return self._await(self.namespace.start(sys.executable, str(script)))

    def start_stranger(self, host: str, *, shares: bool = True) -> "subprocess.Popen[str]":
        return self._await(self.namespace.fork(partial(be_a_stranger, host, shares=shares)))

    def refuses(self, host: str) -> str:
        """Start an instance that may not listen; return why."""
        out, _ = self.namespace.fork(partial(be_an_instance, "X", host)).communicate(timeout=HANG)
        return out

    def who_answers(self, host: str = "127.0.0.1") -> set[str]:
        out, err = self.namespace.fork(partial(ask, host)).communicate(timeout=HANG)
        assert err == ""
        return set(out.splitlines())

    def _await(self, process: "subprocess.Popen[str]") -> "subprocess.Popen[str]":
        self.processes.append(process)
        assert process.stdout
        assert process.stdout.readline() == "there\n"
        return process


@pytest.fixture
def node(namespace: Namespace, tmp_path: Path) -> Iterator[Node]:
    node = Node(namespace, tmp_path)
    yield node
    for process in node.processes:
        process.kill()
        process.communicate()


def only(name: str) -> set[str]:
    return {str([name])}


def kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()


#: Where the instances listen, and whom a client may ask there.
HOSTS = [("", "127.0.0.1"), ("", "::1"), ("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("0.0.0.0", "127.0.0.1")]
everywhere = pytest.mark.parametrize(("host", "asked"), HOSTS)


@everywhere
def test_the_newest_answers_and_gives_the_port_back(node: Node, host: str, asked: str) -> None:
    node.start("A", host)
    assert node.who_answers(asked) == only("A")
    for end in (kill, kill):  # a pod that fails again and again
        newer = node.start("B", host)
        assert node.who_answers(asked) == only("B")
        end(newer)
        assert node.who_answers(asked) == only("A")


@everywhere
def test_an_older_one_that_hangs_or_dies_disturbs_nobody(node: Node, host: str, asked: str) -> None:
    older = node.start("A", host)
    older.send_signal(signal.SIGSTOP)
    newer = node.start("B", host)
    assert node.who_answers(asked) == only("B")
    older.send_signal(signal.SIGCONT)
    assert node.who_answers(asked) == only("B")
    kill(older)
    assert node.who_answers(asked) == only("B")
    kill(newer)
    assert node.who_answers(asked) == {"[]"}


def test_for_a_newest_one_that_hangs_nobody_answers(node: Node) -> None:
    node.start("A")
    newer = node.start("B")
    newer.send_signal(signal.SIGSTOP)
    asking = node.namespace.fork(partial(ask, "127.0.0.1"))
    node.processes.append(asking)
    assert asking.stdout
    time.sleep(0.5)  # longer than an older one needs to look at the port
    newer.send_signal(signal.SIGCONT)
    assert {asking.stdout.readline().strip() for _ in range(30)} == only("B")
    newer.send_signal(signal.SIGSTOP)
    kill(newer)
    assert node.who_answers() == only("A")


@pytest.mark.parametrize("host", ["", "127.0.0.1"])
@pytest.mark.parametrize("order", ["ABC", "ACB", "BAC", "BCA", "CAB", "CBA"])
def test_of_three_the_newest_that_is_left_answers(node: Node, host: str, order: str) -> None:
    running = {name: node.start(name, host) for name in "ABC"}
    for name in order:
        newest = max(running)
        assert node.who_answers() == only(newest)
        kill(running.pop(name))
        if running:
            until(lambda: node.who_answers() == only(max(running)))


def test_what_comes_and_goes_in_an_instant_leaves_no_trace(node: Node) -> None:
    node.start("A")
    node.start("B")
    for _ in range(3):
        kill(node.start("C"))
        until(lambda: node.who_answers() == only("B"))
    kill(node.start("C"))
    node.start("D")
    assert node.who_answers() == only("D")


def test_many_that_start_at_once_agree_on_one(node: Node) -> None:
    names = "ABCD"
    started = [node.namespace.fork(partial(be_an_instance, name, "")) for name in names]
    node.processes += started
    for each in started:
        assert each.stdout
        assert each.stdout.readline() == "there\n"
    answers = until(lambda: [found] if len(found := node.who_answers()) == 1 else [])[0]
    assert node.who_answers() == answers != {"[]"}
    left = dict(zip(names, started, strict=True))
    kill(left.pop(next(iter(answers))[2]))
    until(lambda: len(node.who_answers()) == 1)


def test_release_0_1_0_gives_way_even_if_it_hangs_and_gets_the_port_back(node: Node) -> None:
    old = node.start_old_release()
    assert node.who_answers() == only("old")
    new = node.start("A")
    assert node.who_answers() == node.who_answers("::1") == only("A")
    old.send_signal(signal.SIGSTOP)
    assert node.who_answers() == only("A")
    old.send_signal(signal.SIGCONT)
    kill(new)
    assert node.who_answers() == only("old")
    old.send_signal(signal.SIGSTOP)
    node.start("B")
    assert node.who_answers() == only("B")


@pytest.mark.parametrize(
    ("before", "after", "asked"),
    [
        ("127.0.0.1", "", "127.0.0.1"),
        ("::1", "", "::1"),
        ("0.0.0.0", "", "127.0.0.1"),
        ("127.0.0.1", "0.0.0.0", "127.0.0.1"),
        ("", "127.0.0.1", "127.0.0.1"),
        ("", "0.0.0.0", "127.0.0.1"),
    ],
)
def test_an_update_may_change_the_address(node: Node, before: str, after: str, asked: str) -> None:
    older = node.start("A", before)
    older.send_signal(signal.SIGSTOP)
    newer = node.start("B", after)
    assert node.who_answers(asked) == only("B")
    older.send_signal(signal.SIGCONT)
    kill(newer)
    assert node.who_answers(asked) == only("A")


# Other programs


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("0.0.0.0", ""), ("127.0.0.1", ""), ("127.0.0.1", "127.0.0.1"), ("::1", ""), ("0.0.0.0", "127.0.0.1")],
)
def test_a_port_that_another_program_has_is_left_to_it(node: Node, theirs: str, ours: str, *, shares: bool) -> None:
    stranger = node.start_stranger(theirs, shares=shares)
    text = node.refuses(ours)
    assert text.startswith(f"cannot listen on --health-address={Endpoint(ours, PORT)}: in use by ")
    assert f"pid {stranger.pid} (" in text


def test_a_program_that_comes_later_gets_nothing_and_is_named(node: Node) -> None:
    sidecar = node.start("A")
    stranger = node.start_stranger("::")
    assert node.who_answers() == only("A")
    assert sidecar.stderr
    line = sidecar.stderr.readline()
    assert f"another program listens on the port of --health-address=:9180, too: pid {stranger.pid} (" in line
    assert f"in use by pid {stranger.pid} (" in node.refuses("")
    assert node.who_answers() == only("A")
    kill(stranger)
    node.start("B")
    assert node.who_answers() == only("B")


def test_a_program_that_cannot_be_seen_is_asked_what_it_is(
    namespace: Namespace, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container sees no processes of others; stands in for that: the search for them finds nothing."""
    monkeypatch.setattr(proc, "owners", lambda _: {})
    old = node.start_old_release()
    node.start("A")
    assert node.who_answers() == only("A")
    newest = node.start("B")  # whom it asks, that is A
    assert newest.stderr
    assert "a sidecar of release 0.1.0 or another program listens on the port" in newest.stderr.readline()
    assert node.who_answers() == only("B")
    for each in node.processes:
        kill(each)
    assert old.returncode

    def answer_something() -> None:
        listener = socket.create_server(("", PORT), reuse_port=True)
        print("there", flush=True)
        while True:
            connection, _ = listener.accept()
            with suppress(OSError), connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nhello\n")

    stranger = namespace.fork(answer_something)
    node.processes.append(stranger)
    assert stranger.stdout
    assert stranger.stdout.readline() == "there\n"
    assert f"in use by {ports.UNSEEN}: choose another port, or see `ss -ltnp`" in node.refuses("")


# Where it listens


@pytest.mark.parametrize("host", ["127.0.0.1", "", "::1"])
def test_it_listens_where_it_is_told(host: str) -> None:
    port = takeover.listen(Endpoint(host, 0))
    (member,) = port.members
    assert not member.listener.get_inheritable()
    for other in ["::1"] if host == "::1" else ["127.0.0.1", *(["::1"] if not host else [])]:
        socket.create_connection((other, port.number), timeout=5.0).close()
    for member in port.members:
        member.close()


def test_an_address_that_the_node_does_not_have_is_refused() -> None:
    with pytest.raises(CannotListen, match=r"--health-address=\[fd00:dead::1\]:9180: this node has no such address"):
        takeover.listen(Endpoint("fd00:dead::1", 9180))


def test_without_inet_diag_it_reads_proc(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that was built without inet_diag; stands in for it: the kernel's refusal."""

    def refuse(*_: int) -> Iterator[Listener]:
        raise OSError(2, os.strerror(2))

    monkeypatch.setattr(ports, "_dump", refuse)
    for name in "ABC":
        node.start(name)
        assert node.who_answers() == only(name)
    kill(node.processes[2])
    until(lambda: node.who_answers() == only("B"))


def test_without_the_kernel_s_help_it_listens_all_the_same(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without SO_ATTACH_REUSEPORT_CBPF (before 4.6); stands in for it: the kernel's refusal."""

    def refuse(_: int, __: socket.socket) -> None:
        raise OSError(92, os.strerror(92))

    monkeypatch.setattr(ports, "direct_to", refuse)
    port = takeover.listen(Endpoint("127.0.0.1", 0))
    socket.create_connection(("127.0.0.1", port.number), timeout=5.0).close()
    assert log == ["WARNING another instance may answer this one's probes: the kernel refuses (Protocol not available)"]
    for member in port.members:
        member.close()
