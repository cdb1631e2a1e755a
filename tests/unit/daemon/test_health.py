"""What is answered, and the limits of the server, with real sockets. It runs in a process of its own."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.daemon import health
from sidecar.daemon.health import respond
from sidecar.daemon.vitals import Vitals
from sidecar.state.actions import Report
from sidecar.state.desired import desired
from support.namespace import IPV4
from support.waiting import HANG, until

GOAL = desired([IPV4], interface="lo", port=443)

SERVER = """
import time
from ipaddress import IPv4Address
from sidecar.daemon import health, takeover
from sidecar.state.desired import desired
from sidecar.settings.values import Endpoint
from sidecar.daemon.vitals import Vitals
port = takeover.listen(Endpoint("127.0.0.1", 0))
health.serve(port, Vitals(desired([IPv4Address("10.96.0.2")], interface="lo", port=443), 10.0))
print(port.number, flush=True)
time.sleep(600)
"""


@pytest.fixture
def record() -> Vitals:
    record = Vitals(GOAL, 10.0)
    record.pass_begins()
    record.pass_ended(Report((), (), ()))
    return record


def ask(record: Vitals, request: str) -> tuple[str, dict[str, str], str]:
    """Return the status line, the header fields and the body."""
    head, _, body = respond(request.encode(), record).decode().partition("\r\n\r\n")
    status, *fields = head.split("\r\n")
    return status, dict(field.split(": ", 1) for field in fields), body


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("GET /healthz HTTP/1.1", "200 OK"),
        ("GET /healthz HTTP/1.0", "200 OK"),
        ("GET /healthz?verbose=1 HTTP/1.1", "200 OK"),
        ("GET http://10.0.0.1:9180/readyz HTTP/1.1", "200 OK"),
        ("HEAD /readyz HTTP/1.1", "200 OK"),
        ("GET /metrics HTTP/1.1", "200 OK"),
        ("POST /healthz HTTP/1.1", "405 Method Not Allowed"),
        ("DELETE /metrics HTTP/1.1", "405 Method Not Allowed"),
        ("GET / HTTP/1.1", "404 Not Found"),
        ("GET /healthz/ HTTP/1.1", "404 Not Found"),
        ("GET /../etc/passwd HTTP/1.1", "404 Not Found"),
        ("GET healthz HTTP/1.1", "400 Bad Request"),
        ("GET /healthz HTTP/2.0", "400 Bad Request"),
        ("GET /healthz", "400 Bad Request"),
        ("\x16\x03\x01\x02", "400 Bad Request"),
        ("", "400 Bad Request"),
    ],
)
def test_the_answer_to_a_request(record: Vitals, request_line: str, status: str) -> None:
    told, fields, body = ask(record, f"{request_line}\r\nHost: x\r\n\r\n")
    assert told == f"HTTP/1.1 {status}"
    assert fields["Connection"] == "close"
    assert ("Allow" in fields) == status.startswith("405")
    assert (len(body.encode()) == int(fields["Content-Length"])) != request_line.startswith("HEAD")


def test_a_head_tells_the_length_and_has_no_body(record: Vitals) -> None:
    _, head, nothing = ask(record, "HEAD /healthz HTTP/1.1\r\n\r\n")
    _, get, body = ask(record, "GET /healthz HTTP/1.1\r\n\r\n")
    assert (head, nothing, body) == (get, "", "ok\n")


def test_a_request_that_is_cut_short_or_too_long_is_refused(record: Vitals) -> None:
    assert ask(record, "GET /healthz HTTP/1.1\r\nHost: x")[0] == "HTTP/1.1 400 Bad Request"
    assert ask(record, "GET /healthz HTTP/1.1\r\nX: ".ljust(4096, "y"))[0].startswith("HTTP/1.1 431 ")


def test_what_came_from_outside_forges_no_line(record: Vitals) -> None:
    record.command_ended(("ip\n- \udcff\x1b",), None, 10.0)
    _, fields, body = ask(record, "GET /healthz HTTP/1.1\r\n\r\n")
    assert body.count("\n") == 1
    assert "\x1b" not in body
    assert int(fields["Content-Length"]) == len(body.encode())


def test_without_the_library_a_scrape_is_told_what_to_install(record: Vitals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sidecar.daemon.metrics", raising=False)
    monkeypatch.delattr("sidecar.daemon.metrics", raising=False)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    status, _, body = ask(record, "GET /metrics HTTP/1.1\r\n\r\n")
    assert status == "HTTP/1.1 501 Not Implemented"
    assert body == "metrics need: pip install 'apiserver-proxy-sidecar[metrics]'\n"
    assert ask(record, "GET /readyz HTTP/1.1\r\n\r\n")[0] == "HTTP/1.1 200 OK"


def test_a_fault_of_ours_is_told_and_ends_nothing(
    record: Vitals, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    monkeypatch.setattr(record, "counts", lambda: 1 / 0)
    assert ask(record, "GET /metrics HTTP/1.1\r\n\r\n")[0] == "HTTP/1.1 500 Internal Server Error"
    assert log == ["WARNING could not answer /metrics: ZeroDivisionError: division by zero"]


# The server


class Server:
    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self.process = process
        self.port = port

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=HANG)

    def probe(self, sent: bytes = b"GET /healthz HTTP/1.1\r\n\r\n") -> bytes:
        with self.connect() as connection:
            connection.sendall(sent)
            return rest(connection)

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


def rest(connection: socket.socket) -> bytes:
    """Read until the other side ends it."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            received += part
    return received


@pytest.fixture
def server() -> Iterator[Server]:
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield Server(process, int(process.stdout.readline()))
        process.kill()


def test_a_request_may_come_in_pieces(server: Server) -> None:
    with server.connect() as connection:
        for byte in b"GET /healthz HTTP/1.1\r\n\r\n":
            connection.sendall(bytes([byte]))
            time.sleep(0.002)
        assert rest(connection).startswith(b"HTTP/1.1 200 OK\r\n")


def test_who_says_nothing_is_shown_out(server: Server) -> None:
    with server.connect() as silent, server.connect() as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\n")
        assert rest(silent) == rest(slow) == b""


def test_garbage_is_refused_and_does_no_harm(server: Server) -> None:
    for sent in (b"\0" * 4096, b"\xff\xfe\r\n\r\n", b"x" * 100_000, b"GET " + b"/" * 5000, b"\r\n\r\n"):
        with contextlib.suppress(ConnectionError):  # what was not read ends it
            assert server.probe(sent)[9:12] in (b"400", b"431", b"")
    assert server.probe().startswith(b"HTTP/1.1 200 OK\r\n")


def test_500_connections_keep_nobody_out_and_descriptors_are_bounded(server: Server) -> None:
    server.probe()  # so that it has all descriptors of its own
    before = server.descriptors()
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(server.connect()) for _ in range(500)]
        assert server.probe().startswith(b"HTTP/1.1 200 OK\r\n")
        until(lambda: server.descriptors() <= before + health.MOST_CONNECTIONS)
        assert rest(idle[0]) == b""  # the oldest had to go
    until(lambda: server.descriptors() == before)


def test_the_signals_are_for_the_main_thread(server: Server) -> None:
    server.probe()
    masks = [
        next(line for line in (task / "status").read_text().splitlines() if line.startswith("SigBlk:")).split()[1]
        for task in Path(f"/proc/{server.process.pid}/task").iterdir()
    ]
    blocked = [bool(int(mask, 16) >> 14 & 1) for mask in masks]  # SIGTERM
    assert sorted(blocked) == [False, True]
