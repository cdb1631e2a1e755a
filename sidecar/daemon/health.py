"""Serves /healthz, /readyz and /metrics in its own thread, even while the loop waits for a command that hangs.

Anybody on the network may connect, so everything is bounded: the number of connections, the time each may take, and
the bytes it may send. A connection beyond the limit closes the oldest, so silent clients lock nobody out, and file
descriptors remain for the commands. No failure here stops the loop.
"""

import asyncio
import contextlib
import functools
import re
import signal
import socket
import threading
from http import HTTPStatus
from typing import Final, TypeAlias

from loguru import logger

from sidecar import PROGRAM
from sidecar.daemon.takeover import Port
from sidecar.daemon.vitals import Vitals

#: Connections at a time, seconds that each may take in total, and bytes that it may send.
MOST_CONNECTIONS: Final = 64
PATIENCE: Final = 5.0
LONGEST_REQUEST: Final = 4096

_PAUSE: Final = 0.1  # seconds to wait when accepting a connection fails

_REQUEST: Final = re.compile(rb"([A-Za-z]+) (?:http://[^/\s]*)?(/[^\s?#]*)\S* HTTP/1\.[0-9]\r?\n")
_END: Final = re.compile(rb"\r?\n\r?\n")

_TEXT: Final = "text/plain; charset=utf-8"

#: Status, content type and text of an answer.
Answer: TypeAlias = tuple[HTTPStatus, str, bytes]


def serve(port: Port, vitals: Vitals) -> None:
    """Start answering, in a thread that ends with the process."""
    threading.Thread(target=_run, args=(port, vitals), name="health", daemon=True).start()


def _run(port: Port, vitals: Vitals) -> None:
    # The main thread handles signals: it would not wake up for one that the kernel delivers to this thread.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    asyncio.run(_Server(vitals).run(port))


class _Server:
    """Accepts connections, and answers them."""

    def __init__(self, vitals: Vitals) -> None:
        self._vitals = vitals
        self._connections: dict[asyncio.Task[None], None] = {}  # oldest first

    async def run(self, port: Port) -> None:
        """Answer on a port, for ever."""
        self._loop = asyncio.get_running_loop()
        for member in port.members:
            self._attend(member.listener)
        while True:
            pause = _PAUSE
            with contextlib.suppress(OSError):  # no descriptor is left
                pause = port.look(self._leave, self._attend)
            await asyncio.sleep(pause)

    def _attend(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            self._loop.add_reader(listener, self._accept, listener)

    def _leave(self, listener: socket.socket) -> None:
        self._loop.remove_reader(listener)
        with contextlib.suppress(OSError):
            for _ in range(MOST_CONNECTIONS):  # when it is closed, the kernel resets those that wait
                self._admit(listener.accept()[0])

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:  # the client has gone
            return
        except OSError:  # no descriptor is left
            self._loop.remove_reader(listener)
            self._loop.call_later(_PAUSE, self._attend, listener)
            return
        self._admit(connection)

    def _admit(self, connection: socket.socket) -> None:
        if len(self._connections) >= MOST_CONNECTIONS:
            oldest = next(iter(self._connections))
            del self._connections[oldest]
            oldest.cancel()
        task = self._loop.create_task(_converse(connection, self._vitals))
        self._connections[task] = None
        task.add_done_callback(functools.partial(self._close, connection))

    def _close(self, connection: socket.socket, task: "asyncio.Task[None]") -> None:
        self._connections.pop(task, None)
        connection.close()


async def _converse(connection: socket.socket, vitals: Vitals) -> None:
    loop = asyncio.get_running_loop()
    connection.setblocking(False)  # noqa: FBT003 - positional-only
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(PATIENCE):
            request = b""
            while not _END.search(request) and len(request) < LONGEST_REQUEST:
                received = await loop.sock_recv(connection, LONGEST_REQUEST - len(request))
                if not received:
                    break
                request += received
            if request:
                await loop.sock_sendall(connection, respond(request, vitals))


def respond(request: bytes, vitals: Vitals) -> bytes:
    """Return the complete response to a client's request."""
    head = _REQUEST.match(request)
    method, path = (head[1].decode(), head[2].decode(errors="replace")) if head else ("", "")
    if len(request) >= LONGEST_REQUEST and not _END.search(request):
        status, kind, text = _plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    elif not head or not _END.search(request):
        status, kind, text = _plain(HTTPStatus.BAD_REQUEST)
    elif path not in _PAGES:
        status, kind, text = _plain(HTTPStatus.NOT_FOUND, f"not found; available: {', '.join(_PAGES)}")
    elif method not in ("GET", "HEAD"):
        status, kind, text = _plain(HTTPStatus.METHOD_NOT_ALLOWED)
    else:
        status, kind, text = _page(path, vitals)
    allow = "Allow: GET, HEAD\r\n" if status is HTTPStatus.METHOD_NOT_ALLOWED else ""
    header = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\nContent-Length: {len(text)}\r\n"
        f"{allow}Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return header.encode() + (b"" if method == "HEAD" else text)


def _page(path: str, vitals: Vitals) -> Answer:
    try:
        return _PAGES[path](vitals)
    except Exception as error:  # noqa: BLE001 - a bug in here must not end the thread
        logger.warning(f"could not answer {path}: {type(error).__name__}: {error}")
        return _plain(HTTPStatus.INTERNAL_SERVER_ERROR)


def _healthz(vitals: Vitals) -> Answer:
    hang = vitals.hang()
    return _plain(HTTPStatus.SERVICE_UNAVAILABLE if hang else HTTPStatus.OK, hang or "ok")


def _readyz(vitals: Vitals) -> Answer:
    is_ready, text = vitals.readiness()
    return _plain(HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE, text)


def _metrics(vitals: Vitals) -> Answer:
    try:
        from sidecar.daemon import metrics  # noqa: PLC0415 - 3 MiB, needed only if somebody scrapes
    except ImportError:
        return _plain(HTTPStatus.NOT_IMPLEMENTED, f"metrics need: pip install '{PROGRAM}[metrics]'")
    return HTTPStatus.OK, metrics.CONTENT_TYPE, metrics.exposition(vitals)


_PAGES: Final = {"/healthz": _healthz, "/readyz": _readyz, "/metrics": _metrics}


def _plain(status: HTTPStatus, text: str = "") -> Answer:
    return status, _TEXT, f"{text or f'{status.value} {status.phrase}'}\n".encode()
