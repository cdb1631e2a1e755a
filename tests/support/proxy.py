"""Stands in for the apiserver-proxy: listens on an address and port, and answers in one of several ways.

proxy.py ADDRESS PORT tls CERTIFICATE | strict CERTIFICATE | plain | mail | silent | close | reset | hello
"""

import base64
import contextlib
import os
import re
import socket
import ssl
import struct
import subprocess
import sys
from pathlib import Path
from typing import Final

_NEW: Final = ("-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "365")


def make_certificate(path: Path, *, names: str = "DNS:kubernetes,IP:10.96.0.2", years: int = 0) -> Path:
    """Make a certificate with its key in one file; with `years`, move the year in which it ends, and began.

    Its signature is wrong then, which no server minds, and nobody here verifies.
    """
    extension = f"subjectAltName={names}"
    command = [
        "openssl",
        "req",
        *_NEW,
        "-keyout",
        str(path),
        "-out",
        f"{path}.crt",
        "-subj",
        "/CN=x",
        "-addext",
        extension,
    ]
    subprocess.run(command, check=True, capture_output=True)
    lines = Path(f"{path}.crt").read_text().splitlines()
    der = base64.b64decode("".join(lines[1:-1]))
    if years:
        der = re.sub(rb"\x17\r(\d\d)(?=\d{10}Z)", lambda time: b"\x17\r%02d" % (int(time[1]) + years), der)
    text = base64.encodebytes(der).decode()
    with path.open("a") as file:
        file.write(f"{lines[0]}\n{text}{lines[-1]}\n")
    return path


def _context(certificate: str, *, is_strict: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if certificate:
        context.load_cert_chain(certificate)
    if is_strict:  # it serves a name that nobody asks for
        context.sni_callback = lambda *_: ssl.AlertDescription.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
    return context


def main(address: str, port: str, way: str, certificate: str = "") -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, int(port)), family=family, dualstack_ipv6=address == "::")
    context = _context(certificate, is_strict=way == "strict")
    os.write(1, b"ready\n")
    held = []
    while True:
        connection, _ = listener.accept()
        with contextlib.suppress(OSError):
            match way:
                case "tls" | "strict":
                    context.wrap_socket(connection, server_side=True).close()
                case "silent":
                    held.append(connection)
                case "reset":  # man 7 socket, SO_LINGER: without a word of goodbye
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                case "mail":
                    connection.sendall(b"220 mail.example.org ESMTP\r\n")
                case "hello":
                    connection.recv(4096)
                case "plain":
                    connection.recv(4096)
                    connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            if connection not in held:
                connection.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
