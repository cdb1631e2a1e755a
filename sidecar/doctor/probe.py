"""Opens a TCP connection to an address, and reads the certificate of what answers; or finds out what came instead."""

import contextlib
import enum
import socket
import ssl
import time
from dataclasses import dataclass
from typing import Final

from sidecar.doctor import certificate
from sidecar.doctor.certificate import Certificate
from sidecar.state.model import IPAddress
from sidecar.text import quoted

TIMEOUT: Final = 1.0  # seconds for a connection, and for all that is tried to get a TLS answer
SERVER_NAME: Final = "kubernetes.default.svc"  # the API server's name inside the cluster
_MOMENT: Final = 0.2  # seconds after which a connection that is still open was not closed at once

#: What the first byte of an answer says (RFC 8446, 5.1: ContentType).
_ALERT: Final = b"\x15"
_HANDSHAKE: Final = b"\x16"


class Instead(enum.Enum):
    """What came instead of a certificate."""

    SILENCE = "silence"
    CLOSE = "close"
    RESET = "reset"
    REFUSAL = "refusal"  # it closes or resets the connection, but only after a TLS hello
    ALERT = "alert"
    HTTP = "http"
    OTHER = "other"  # bytes of another protocol
    BROKEN = "broken"  # TLS, but no certificate that can be read


class NoCertificate(Exception):
    """What came instead of a certificate, and more about it."""

    def __init__(self, instead: Instead, detail: str = "") -> None:
        super().__init__(detail)
        self.instead = instead
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Answer:
    """What a connection has brought."""

    seconds: float
    failure: str = ""  # why there is no connection; empty if there is one
    certificate: Certificate | None = None
    instead: Instead | None = None  # what came instead of a certificate
    detail: str = ""  # the first line that came, the name of the alert, or why a handshake failed
    waited: float = TIMEOUT  # seconds for which a TLS answer was waited for
    refuses_name: bool = False  # whether it answers only without a server name (SNI)


def connect(ip: IPAddress, port: int, seconds: float) -> Answer:
    """Connect, and read the certificate if TLS is spoken there. Its trust is not verified.

    Take at most `seconds` for the connection, and not much more for all of it.
    """
    started = time.monotonic()
    patience = min(TIMEOUT, seconds)
    try:
        connection = socket.create_connection((str(ip), port), patience)
    except ConnectionResetError:  # it was accepted, and reset before we were told
        return Answer(time.monotonic() - started, instead=Instead.RESET)
    except OSError as error:
        reason = f"no answer within {patience:.1g}s" if isinstance(error, TimeoutError) else error.strerror
        return Answer(time.monotonic() - started, reason or str(error))
    took = time.monotonic() - started
    patience = max(min(TIMEOUT, seconds - took), _MOMENT)
    deadline = time.monotonic() + patience
    try:
        return Answer(took, certificate=_certificate(connection, SERVER_NAME, deadline))
    except NoCertificate as first:
        try:
            found = _without_a_name(ip, port, first, deadline)
            return Answer(took, certificate=found, refuses_name=True)
        except NoCertificate as error:
            return Answer(took, instead=error.instead, detail=error.detail, waited=patience)


def _without_a_name(ip: IPAddress, port: int, first: NoCertificate, deadline: float) -> Certificate:
    """Return the certificate for a hello without a server name, as clients that connect to an IP address send it.

    Raises NoCertificate, also where such a hello cannot help.
    """
    if first.instead not in (Instead.CLOSE, Instead.RESET, Instead.ALERT):
        raise first
    if first.instead is not Instead.ALERT and (by_itself := _ends_by_itself(ip, port, deadline)):
        raise NoCertificate(by_itself) from None
    try:
        connection = socket.create_connection((str(ip), port), _left(deadline))
        return _certificate(connection, None, deadline)
    except (OSError, NoCertificate):
        instead = Instead.ALERT if first.instead is Instead.ALERT else Instead.REFUSAL
        raise NoCertificate(instead, first.detail) from None


def _ends_by_itself(ip: IPAddress, port: int, deadline: float) -> Instead | None:
    """Return how a connection ends on which nothing was sent, if it does: the upstream of a proxy is not reachable.

    The answer to a hello does not tell: a close that leaves it unread arrives as a reset.
    """
    try:
        with socket.create_connection((str(ip), port), _left(deadline)) as connection:
            connection.settimeout(min(_MOMENT, _left(deadline)))
            return None if connection.recv(1) else Instead.CLOSE
    except TimeoutError:
        return None
    except OSError:
        return Instead.RESET


def _certificate(connection: socket.socket, name: str | None, deadline: float) -> Certificate:
    """Shake hands, close the connection, and return the certificate; raise NoCertificate with what came instead."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the certificate is examined, not relied on
    received, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = context.wrap_bio(received, to_send, server_hostname=name)
    first = b""
    with connection:
        while True:
            try:
                session.do_handshake()
                with contextlib.suppress(OSError):
                    connection.sendall(to_send.read())  # otherwise the API server logs a failed handshake
                return certificate.read(session.getpeercert(binary_form=True) or b"")
            except ssl.SSLWantReadError:
                connection.settimeout(_left(deadline))
                came = _exchange(connection, to_send.read())
                first = first or came
                received.write(came)
            except ssl.SSLError as error:
                raise _instead(first, error) from error
            except ValueError as error:
                raise NoCertificate(Instead.BROKEN, str(error)) from error


def _exchange(connection: socket.socket, data: bytes) -> bytes:
    """Send this and return what comes; raise NoCertificate if nothing does."""
    try:
        connection.sendall(data)
        came = connection.recv(65536)
    except TimeoutError:
        raise NoCertificate(Instead.SILENCE) from None
    except OSError as error:
        raise NoCertificate(Instead.RESET, error.strerror or str(error)) from error
    if not came:
        raise NoCertificate(Instead.CLOSE)
    return came


def _instead(first: bytes, error: ssl.SSLError) -> NoCertificate:
    """Return what the first bytes are, if the handshake failed."""
    line = quoted((first.splitlines() or [b""])[0].decode(errors="backslashreplace"))
    if first.startswith(b"HTTP/"):
        return NoCertificate(Instead.HTTP, line)
    reason = (error.reason or str(error)).replace("_", " ").lower()
    if first.startswith(_ALERT):
        return NoCertificate(Instead.ALERT, reason.rpartition("alert ")[2].removeprefix("tlsv1 "))
    if first.startswith(_HANDSHAKE):
        return NoCertificate(Instead.BROKEN, reason)
    return NoCertificate(Instead.OTHER, line)


def _left(deadline: float) -> float:
    """Return the seconds until then; a moment at least, as 0 would not wait at all."""
    return max(deadline - time.monotonic(), 0.01)
