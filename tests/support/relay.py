"""The path behind the address, in forked children (forked.py): the API server, the proxy before it, and a client.

The proxy passes TLS through, as a real one does, or fails in one of the ways in which real ones fail.
"""

import contextlib
import os
import select
import socket
import socketserver
import ssl
import struct
from collections.abc import Callable
from functools import partial
from typing import Final

PORT: Final = 443
APISERVER_PORT: Final = 6443

_BYTES: Final = 65536
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: on, for no time
_ERROR: Final = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: str, port: int, handle: Callable[[socket.socket], None]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._handle = handle
        super().__init__((address, port), socketserver.BaseRequestHandler)

    def finish_request(self, request: object, _: object) -> None:
        assert isinstance(request, socket.socket)
        with contextlib.suppress(OSError):  # a client that goes away, or that speaks no TLS
            self._handle(request)


def apiserver(certificate: str, port: int = APISERVER_PORT) -> None:
    """Answer on all addresses, with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    _serve("::", port, partial(_answer, context))


def proxy(way: str, address: str, upstream: str, port: int = PORT) -> None:
    """Listen on an address, and pass connections on to an API server, or fail: way is one of _WAYS."""
    _serve(address, port, partial(_WAYS[way], upstream))


def ask(address: str, patience: float) -> None:
    """Make one connection, with TLS; print why it failed, or nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with socket.create_connection((address, PORT), patience) as connection, context.wrap_socket(connection):
            pass
    except OSError as error:
        print(error or type(error).__name__)


def _serve(address: str, port: int, handle: Callable[[socket.socket], None]) -> None:
    with _Server(address, port, handle) as server:
        os.write(1, b"ready\n")
        server.serve_forever()


def _answer(context: ssl.SSLContext, connection: socket.socket) -> None:
    with context.wrap_socket(connection, server_side=True) as encrypted:
        encrypted.recv(1)


def _passes(upstream: str, connection: socket.socket) -> None:
    with socket.create_connection((upstream, APISERVER_PORT)) as server:
        ends = {connection: server, server: connection}
        while True:
            for end in select.select(list(ends), [], [])[0]:
                read = end.recv(_BYTES)
                if not read:
                    return
                ends[end].sendall(read)


def _is_silent(_: str, connection: socket.socket) -> None:
    while connection.recv(_BYTES):
        pass


def _resets(_: str, connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    connection.close()


def _closes(_: str, connection: socket.socket) -> None:
    connection.close()


def _closes_after_a_hello(_: str, connection: socket.socket) -> None:
    connection.recv(_BYTES)
    connection.close()


def _speaks_http(_: str, connection: socket.socket) -> None:
    connection.recv(_BYTES)
    connection.sendall(_ERROR)


_WAYS: Final = {
    "passes": _passes,
    "is silent": _is_silent,
    "resets": _resets,
    "closes": _closes,
    "closes after a hello": _closes_after_a_hello,
    "speaks HTTP": _speaks_http,
}
