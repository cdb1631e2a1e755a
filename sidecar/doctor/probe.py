"""Opens a TCP connection to an address, and reads the certificate of what answers."""

import contextlib
import socket
import ssl
import time
from dataclasses import dataclass
from typing import Final

from sidecar.doctor import certificate
from sidecar.doctor.certificate import Certificate
from sidecar.state.model import IPAddress

TIMEOUT: Final = 1.0  # seconds for a connection, and for a TLS handshake

#: The API server's name inside the cluster: a proxy that routes by SNI needs one.
_SERVER_NAME: Final = "kubernetes.default.svc"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a connection has brought."""

    seconds: float
    failure: str = ""  # why there is no connection; empty if there is one
    certificate: Certificate | None = None
    tls_failure: str = ""  # why there is no certificate


def connect(ip: IPAddress, port: int) -> Answer:
    """Connect, and read the certificate if TLS is spoken there. Its trust is not verified."""
    started = time.monotonic()
    try:
        connection = socket.create_connection((str(ip), port), TIMEOUT)
    except OSError as error:
        reason = f"no answer within {TIMEOUT:g}s" if isinstance(error, TimeoutError) else error.strerror or str(error)
        return Answer(time.monotonic() - started, reason)
    seconds = time.monotonic() - started
    try:
        return Answer(seconds, certificate=_certificate(connection))
    except (OSError, ValueError) as error:
        return Answer(seconds, tls_failure=_reason(error))
    finally:
        with contextlib.suppress(OSError):
            connection.close()


def _certificate(connection: socket.socket) -> Certificate:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the certificate is examined, not relied on
    with context.wrap_socket(connection, server_hostname=_SERVER_NAME) as secured:
        der = secured.getpeercert(binary_form=True)
    return certificate.read(der or b"")


def _reason(error: Exception) -> str:
    match error:
        case TimeoutError():
            return f"no answer within {TIMEOUT:g}s"
        case ssl.SSLEOFError() | ConnectionError():
            return "the connection was closed"
        case ssl.SSLError():
            return (error.reason or str(error)).replace("_", " ").lower()
        case _:
            return str(error)
