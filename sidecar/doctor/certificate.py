"""Reads the names and the validity of a certificate from its DER (RFC 5280).

The standard library returns these only for a certificate whose trust it has verified, which is not the question here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Final

from sidecar.state.model import IPAddress

#: Tags (X.690).
_OBJECT_IDENTIFIER: Final = 0x06
_OCTET_STRING: Final = 0x04
_UTC_TIME: Final = 0x17
_GENERALIZED_TIME: Final = 0x18
_VERSION: Final = 0xA0
_EXTENSIONS: Final = 0xA3
_DNS_NAME: Final = 0x82
_IP_ADDRESS: Final = 0x87

#: The names of the API server in a cluster (its first Service); the name of the cluster's domain may follow.
_SERVICE: Final = ("kubernetes", "kubernetes.default", "kubernetes.default.svc")

_SUBJECT_ALT_NAME: Final = bytes((0x55, 0x1D, 0x11))  # 2.5.29.17, as it is encoded


@dataclass(frozen=True, slots=True)
class Certificate:
    """`names` are the DNS names and IP addresses of subjectAltName; times are in UTC."""

    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime

    def is_for(self, ip: IPAddress) -> bool:
        """Whether it names the address."""
        return str(ip) in self.names

    def is_for_service(self) -> bool:
        """Whether it names the API server as pods do; a wildcard stands for one whole label (RFC 9525, 6.3)."""
        names = [name.lower().rstrip(".") for name in self.names]
        meant = [f"{_SERVICE[0]}.{name.removeprefix('*.')}" if name.startswith("*.") else name for name in names]
        return any(name in _SERVICE or name.startswith(f"{_SERVICE[-1]}.") for name in meant)


def read(der: bytes) -> Certificate:
    """Read a certificate; raise ValueError if it is not one."""
    try:
        _, outer, _ = _element(der, 0)
        fields = list(_elements(next(_elements(outer))[1]))
        if fields[0][0] == _VERSION:
            fields = fields[1:]
        # serialNumber, signature, issuer, validity, subject, subjectPublicKeyInfo, …
        begin, end = (_time(tag, value) for tag, value in _elements(fields[3][1]))
        names = [name for tag, value in fields[6:] if tag == _EXTENSIONS for name in _names(value)]
    except (IndexError, StopIteration) as error:
        raise ValueError("not a certificate") from error
    return Certificate(tuple(names), begin, end)


def _names(extensions: bytes) -> Iterator[str]:
    for _, extension in _elements(next(_elements(extensions))[1]):
        parts = list(_elements(extension))
        if parts[0] != (_OBJECT_IDENTIFIER, _SUBJECT_ALT_NAME):
            continue
        if parts[-1][0] != _OCTET_STRING:
            raise ValueError("not a certificate: an extension without a value")
        for tag, value in _elements(next(_elements(parts[-1][1]))[1]):
            if tag == _DNS_NAME:
                yield value.decode("ascii", errors="replace")
            elif tag == _IP_ADDRESS:
                yield str(ip_address(value))


def _time(tag: int, value: bytes) -> datetime:
    text = value.decode("ascii")
    if tag == _UTC_TIME:  # two digits: 1950 to 2049
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("not a certificate: its validity is not a time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        tag, value, at = _element(data, at)
        yield tag, value


def _element(data: bytes, at: int) -> tuple[int, bytes, int]:
    """Return tag, value, and where the next one begins."""
    tag, length = data[at], data[at + 1]
    at += 2
    if length & 0x80:  # the length is in as many bytes as this says
        size = length & 0x7F
        length = int.from_bytes(data[at : at + size])
        at += size
    if at + length > len(data):
        raise ValueError("not a certificate: it is cut short")
    return tag, data[at : at + length], at + length
