"""A kube-apiserver as far as a proxy that passes TLS through can tell; in a forked child (forked.py)."""

import contextlib
import socket
import socketserver
import ssl


class _Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6  # and IPv4, as mapped addresses
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


def serve(name: str, port: int, certificate: str, key: str) -> None:
    """Answer each request on a connection with the name, until the client closes."""

    class Connection(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(name), name.encode())
            with contextlib.suppress(OSError):  # a client that goes away, or that speaks no TLS
                while line := self.rfile.readline():
                    if line == b"\r\n":
                        self.wfile.write(answer)

        def finish(self) -> None:
            with contextlib.suppress(OSError):
                super().finish()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with _Server(("::", port), Connection) as server:
        # The handshake is part of the first read, and so in the connection's own thread.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        server.serve_forever()
