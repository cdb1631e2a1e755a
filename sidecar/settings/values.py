"""Turns the text of one setting into its value. Each function raises ValueError that says what would be right."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from sidecar.settings import durations
from sidecar.state.model import IPAddress
from sidecar.text import nearest, quoted

#: The words of Go's strconv.ParseBool.
BOOLEANS: Final = dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True) | dict.fromkeys(
    ("0", "f", "F", "FALSE", "false", "False"), False
)

_HIGHEST_PORT: Final = 65535

_BROADCAST: Final = IPv4Address("255.255.255.255")

_LONGEST_INTERFACE: Final = 15  # the kernel's IFNAMSIZ, without the NUL at the end (linux/if.h)
_LARGEST_FILE: Final = 2**43  # megabytes; the size in bytes must fit in 64 bits

#: The beginning of the value that Kubernetes gives `<SERVICE>_PORT` and others.
_SERVICE_URL: Final = re.compile("(tcp|udp|sctp)://")


#: host:port; an IPv6 address in brackets, as in a URL.
_ENDPOINT: Final = re.compile(r"(?:\[([^\]%]*:[^\]%]*)\]|([^:]*)):([^:]*)")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The value of --health-address: an IP address, empty for all, and a port; port 0 means no endpoint."""

    host: str = ""
    port: int = 0

    def __bool__(self) -> bool:
        return self.port != 0

    def __str__(self) -> str:
        return (f"[{self.host}]" if ":" in self.host else self.host) + (f":{self.port}" if self else "")


def boolean(text: str) -> bool:
    """Parse one of ParseBool's words."""
    if text not in BOOLEANS:
        raise ValueError("not a boolean: write true or false")
    return BOOLEANS[text]


def create_interface(text: str) -> str:
    """Parse auto, or one of ParseBool's words as true or false."""
    if text == "auto":
        return text
    if text not in BOOLEANS:
        raise ValueError("unknown: write auto, true or false")
    return str(BOOLEANS[text]).lower()


def port(text: str) -> int:
    """Parse a number from 1 to 65535."""
    if is_of_a_service(text):
        raise ValueError(
            "set by Kubernetes for a Service named `sidecar`, not by you: "
            "set enableServiceLinks: false in the pod, or give --port"
        )
    number = _number(text)
    if number is None or not 1 <= number <= _HIGHEST_PORT:
        raise ValueError("not a port: write a number from 1 to 65535")
    return number


def is_of_a_service(text: str) -> bool:
    """Whether Kubernetes sets such a value in a variable for a Service in the pod's namespace."""
    return bool(_SERVICE_URL.match(text))


def endpoint(text: str) -> Endpoint:
    """Parse host:port; an empty text means no endpoint."""
    if not text:
        return Endpoint()
    found = _ENDPOINT.fullmatch(text)
    host, number = (found[1] or found[2], found[3]) if found else ("", "")
    try:
        return Endpoint(str(ip_address(host)) if host else "", port(number))
    except ValueError:
        raise ValueError("not an IP address and a port: write it like :9180, 10.0.0.1:9180 or [fd00::1]:9180") from None


def interface(text: str) -> str:
    """Accept a name that the kernel accepts (net/core/dev.c, dev_valid_name) and that `ip` reads as one.

    To `ip`, `-` begins an option and `%d` asks for a number; in a batch, `#` begins a comment, a word may begin with
    either quote, and a backslash at the end continues the line (lib/utils.c, makeargs and getcmdline).
    """
    if not 1 <= len(text.encode(errors="surrogateescape")) <= _LONGEST_INTERFACE:
        raise ValueError("not an interface name: it must have 1 to 15 bytes")
    if text in (".", "..") or any(c in "/:" or c.isspace() or not c.isprintable() for c in text):
        raise ValueError("not an interface name: it must not contain a slash, colon, space or control character")
    if text[0] in "-'" or text[-1] == "\\" or set(text) & set('%#"'):
        raise ValueError(
            "not an interface name that `ip` accepts: "
            "it must not contain %, # or \", begin with - or ', or end with a backslash"
        )
    return text


def addresses(text: str) -> tuple[IPAddress, ...]:
    """Parse addresses separated by commas."""
    return tuple(_address(part.strip()) for part in text.split(","))


def pods(text: str) -> tuple[IPAddress, ...]:
    """Parse addresses of pods, separated by commas; an empty text means none."""
    return tuple(_pod(part.strip()) for part in text.split(",")) if text else ()


def _pod(text: str) -> IPAddress:
    right = "write the address of a pod, like 10.244.0.5 or fd00:10:244::5"
    try:
        ip = ip_address(text)
    except ValueError:
        raise ValueError(f"{quoted(text)} is not an IP address: {right}") from None
    if ip.is_loopback or ip.is_multicast or ip.is_unspecified or ip.is_link_local or ip == _BROADCAST:
        raise ValueError(f"{ip} is not a pod's: {right}")
    return ip


def _address(text: str) -> IPAddress:
    if not text:
        raise ValueError("contains an empty address: write it like 10.96.0.2 or fd00:10:96::2")
    if "/" in text:
        raise ValueError(f"{quoted(text)} has a prefix length: leave it out, it is always /32 or /128")
    if "%" in text:
        raise ValueError(f"{quoted(text)} has a zone: leave it out, the interface is --interface")
    try:
        ip = ip_address(text)
    except ValueError:
        raise ValueError(f"{quoted(text)} is not an IP address: write it like 10.96.0.2 or fd00:10:96::2") from None
    kinds = {
        "a loopback": ip.is_loopback,
        "a multicast": ip.is_multicast,
        "the unspecified": ip.is_unspecified,
        "the broadcast": ip == _BROADCAST,
    }
    for kind, is_it in kinds.items():
        if is_it:
            raise ValueError(f"{ip} is {kind} address: choose one that no other host uses, like 10.96.0.2")
    if isinstance(ip, IPv6Address) and int(ip) >> 32 in (0, 0xFFFF):
        raise ValueError(f"{ip} is an IPv4 address in IPv6 notation: write it as IPv4")
    return ip


def duration(shortest: float, longest: float = float("inf")) -> Callable[[str], float]:
    """Return a parser for a duration between these limits, in seconds."""

    def parse(text: str) -> float:
        seconds = durations.parse(text)
        if not shortest <= seconds <= longest:
            limit = f" and at most {durations.render(longest)}" if longest < float("inf") else ""
            raise ValueError(f"out of range: must be at least {durations.render(shortest)}{limit}")
        return seconds

    return parse


def one_of(*words: str) -> Callable[[str], str]:
    """Return a parser for one of these words."""

    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"unknown: write one of {', '.join(words)}{nearest(text, words)}")
        return text

    return parse


def file_size(text: str) -> int:
    """Parse a size in megabytes."""
    number = _number(text)
    if number is None or number > _LARGEST_FILE:
        raise ValueError("not a size: write a whole number of megabytes, or 0 for no limit")
    return number


def path(text: str) -> str:
    """Accept any path that the kernel can take; the file need not exist."""
    if "\0" in text:
        raise ValueError("not a path: it contains a NUL")
    return text


def _number(text: str) -> int | None:
    """Return the number, if the text is 1 to 13 digits. int() accepts more, and is slow with very many digits."""
    return int(text) if re.fullmatch("[0-9]{1,13}", text) else None
