"""Parses files of /proc/net, /proc/locks and the output of `ip route`. Pure, no I/O."""

import ipaddress
import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from sidecar.state.model import IPV4, IPV6, Family, IPAddress

_LISTEN: Final = "0A"  # TCP_LISTEN, as /proc/net/tcp prints it (include/net/tcp_states.h)

#: `1: FLOCK  ADVISORY  WRITE 27300 00:27:2 0 EOF`; with `->`, it waits for the lock with that number (fs/locks.c).
_LOCK: Final = re.compile(r"\d+: (?P<waits>-> ?)?.*? (?P<pid>-?\d+) (?P<major>\w+):(?P<minor>\w+):(?P<inode>\d+) ")

#: `TCP  0A600002:01BB rr`, or with an IPv6 address in brackets (net/netfilter/ipvs/ip_vs_ctl.c).
_VIRTUAL_SERVER: Final = re.compile(r"(?P<protocol>TCP|UDP|SCTP) +\[?(?P<address>[0-9A-Fa-f:]+?)\]?:(?P<port>\w{4}) ")

#: States in which a connection is over for both of its ends.
_OVER: Final = frozenset(("TIME_WAIT", "CLOSE", "LAST_ACK"))

#: `tcp      6 431999 ESTABLISHED`: the number of the protocol, then the seconds that are left.
_SECONDS: Final = re.compile(r"tcp +6 (\d+) ")

#: Connections: whence they come, and the seconds after which the kernel forgets them; None: it does not tell (offload).
Tracked: TypeAlias = Mapping[tuple[str, ...], int | None]

#: Addresses that nobody has (RFC 5737, RFC 3849), to ask for the default route.
_ANYWHERE: Final = {IPV4: "192.0.2.1", IPV6: "2001:db8::1"}


@dataclass(frozen=True, slots=True)
class Lock:
    """One line of /proc/locks."""

    pid: int  # 0 or -1: a process that cannot be seen from here, or no process at all
    device: tuple[int, int]
    inode: int


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that listens for TCP connections; the unspecified address stands for all."""

    ip: IPAddress
    port: int
    inode: int


def held_locks(text: str) -> Iterator[Lock]:
    """Parse /proc/locks; leave out processes that only wait."""
    for match in map(_LOCK.match, text.splitlines()):
        if match and not match["waits"]:
            device = int(match["major"], 16), int(match["minor"], 16)
            yield Lock(int(match["pid"]), device, int(match["inode"]))


def listeners(text: str) -> Iterator[Listener]:
    """Parse the listening sockets in /proc/net/tcp or /proc/net/tcp6 (net/ipv4/tcp_ipv4.c, get_tcp4_sock)."""
    for line in text.splitlines()[1:]:
        columns = line.split()
        if len(columns) > 9 and columns[3] == _LISTEN:  # noqa: PLR2004 - the tenth column is the inode
            address, _, port = columns[1].partition(":")
            yield Listener(_packed(address), int(port, 16), int(columns[9]))


def _packed(text: str) -> IPAddress:
    """Parse an address printed as 32-bit words in the machine's byte order."""
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    return ipaddress.ip_address(struct.pack(f"={len(words)}I", *words))


def virtual_servers(text: str) -> frozenset[tuple[IPAddress, int]]:
    """Parse /proc/net/ip_vs: the addresses and ports for which IPVS takes TCP connections."""
    found = set()
    for match in map(_VIRTUAL_SERVER.match, text.splitlines()):
        if match and match["protocol"] == "TCP":
            address = match["address"]
            ip = ipaddress.ip_address(address if ":" in address else int(address, 16))
            found.add((ip, int(match["port"], 16)))
    return frozenset(found)


def tracked(lines: Iterable[str], ip: IPAddress, port: int) -> Tracked:
    """Return the open TCP connections to an address and port, each with the seconds that are left of its time.

    `lines` come from /proc/net/nf_conntrack or `conntrack -L`: the first src, dst, sport and dport are those of the
    packet that began the connection (net/netfilter/nf_conntrack_standalone.c).
    """
    # The kernel prints IPv6 addresses in full.
    needle = f"dst={ip.exploded if ip.version == IPV6 else ip} "
    short = f"dst={ip} "
    found: dict[tuple[str, ...], int | None] = {}
    for line in lines:
        if (needle in line or short in line) and (origin := _origin(line, ip, port)):
            seconds = _SECONDS.search(line)
            found[origin] = int(seconds[1]) if seconds else None
    return found


def _origin(line: str, ip: IPAddress, port: int) -> tuple[str, ...]:
    """Return whence a connection comes; empty if it does not lead to this address and port, or is over."""
    words = line.split()
    first: dict[str, str] = {}
    for word in words:
        name, is_pair, value = word.partition("=")
        if is_pair:
            first.setdefault(name, value)
    if "tcp" not in words or _OVER & set(words):
        return ()
    leads_here = ipaddress.ip_address(first["dst"]) == ip and first.get("dport") == str(port)
    return (first.get("src", ""), first.get("sport", ""), first.get("zone", "")) if leads_here else ()


def unrefreshed(before: Tracked, after: Tracked, elapsed: float) -> int:
    """Count the connections whose time just ran down between two looks: no packet of theirs was tracked.

    A packet sets the time anew, to more or, with another state, to much less.
    """
    both = ((before.get(origin), seconds) for origin, seconds in after.items())
    ran_down = (old - new for old, new in both if old is not None and new is not None)
    return sum(0 < seconds <= elapsed + 1 for seconds in ran_down)


def route(text: str) -> tuple[str, str]:
    """Parse `ip -json route get`: the type of the route (local, unicast, …), and where it leads."""
    shown = _objects(text)[0]
    words = [f"{name} {shown[key]}" for name, key in (("via", "gateway"), ("dev", "dev"), ("table", "table"))
             if key in shown]  # fmt: skip
    return shown.get("type", "unicast"), " ".join(words)


def destinations(text: str, family: Family) -> tuple[str, ...]:
    """Parse `ip -json route show`: one destination for each interface whose routes do not set the source address."""
    found: dict[str, str] = {}
    for shown in _several(text):
        if "prefsrc" not in shown and shown.get("type", "unicast") == "unicast" and "dev" in shown:
            network = shown["dst"].partition("/")[0]
            found.setdefault(shown["dev"], _ANYWHERE[family] if network == "default" else network)
    return tuple(found.values())


def source(text: str) -> str:
    """Parse `ip -json route get`: the source address of packets that leave this node, or an empty text."""
    shown = _objects(text)[0]
    return "" if shown.get("type") == "local" else str(shown.get("prefsrc", ""))


def _several(text: str) -> list[dict[str, Any]]:
    """Parse the output of a command that may print nothing."""
    try:
        return _objects(text)
    except ValueError:
        return []


def _objects(text: str) -> list[dict[str, Any]]:
    try:
        # Names of interfaces may hold control characters, which `ip` prints as they are.
        shown = [each for each in json.loads(text, strict=False) if each]
    except (ValueError, TypeError) as error:
        raise ValueError(f"not the output of `ip -json`: {text[:80]!r}") from error
    if not shown or not all(isinstance(each, dict) for each in shown):
        raise ValueError(f"not the output of `ip -json`: {text[:80]!r}")
    return shown
