"""Usage: apiserver.py NAME PORT CERTIFICATE KEY

A kube-apiserver as far as a proxy that passes TLS through can tell: it answers each request on a connection with its
name, until the client closes.
"""

import contextlib
import socket
import socketserver
import ssl
import sys


class Connection(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        name = sys.argv[1].encode()
        with contextlib.suppress(OSError):  # a client that goes away, or that speaks no TLS
            while line := self.rfile.readline():
                if line == b"\r\n":
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(name), name))

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()


class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6  # and IPv4, as mapped addresses
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


_, _, port, certificate, key = sys.argv
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
with Server(("::", int(port)), Connection) as server:
    # The handshake is part of the first read, and so in the connection's own thread.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.serve_forever()
