"""Asks a sidecar that runs here for what its health address says; bounded in time."""

import re
import socket
import time
from dataclasses import dataclass
from typing import Final

from sidecar.settings import values

_PATIENCE: Final = 0.4  # seconds: a sidecar that works answers within milliseconds, on a busy node too
_LARGEST: Final = 4 * 1024 * 1024  # bytes; /metrics has a few lines for each address and rule
_REPAIRS: Final = re.compile(r"^apiserver_proxy_sidecar_repairs_total.* ([0-9.e+]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Answer:
    """The status and the text of an answer; status 0: a connection is accepted, but no answer comes."""

    status: int
    text: str = ""


def ask(address: str, page: str) -> Answer | None:
    """Return the answer to a request for a page of --health-address; None: there is no such address, or no listener."""
    try:
        endpoint = values.endpoint(address)
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(endpoint.host, endpoint.host)  # noqa: S104 - compared
        connection = socket.create_connection((host, endpoint.port), timeout=_PATIENCE)
    except (OSError, ValueError):
        return None
    try:
        with connection:
            connection.sendall(f"GET {page} HTTP/1.0\r\n\r\n".encode())
            received = _read(connection)
    except TimeoutError:
        return Answer(0)
    except OSError:
        return None
    head, _, text = received.decode(errors="replace").partition("\r\n\r\n")
    words = head.split(maxsplit=2)
    return Answer(int(words[1]), text.strip()) if len(words) > 1 and words[1].isdigit() else None


def repairs(address: str) -> float | None:
    """Return how many things the sidecar has put back since it started; None if it does not tell."""
    answer = ask(address, "/metrics")
    found = _REPAIRS.findall(answer.text) if answer and answer.status == 200 else []  # noqa: PLR2004 - 200 OK
    return sum(map(float, found)) if found else None


def _read(connection: socket.socket) -> bytes:
    deadline, received = time.monotonic() + _PATIENCE, b""
    while len(received) < _LARGEST and time.monotonic() < deadline:
        part = connection.recv(65536)
        if not part:
            break
        received += part
    return received
