"""Decides whether a condition of a rule, as iptables spells it, holds for a packet (man iptables-extensions)."""

from collections.abc import Callable, Mapping
from ipaddress import ip_address, ip_network
from typing import Final, NamedTuple

from sidecar.firewall.packet import INVALID, TTL, UNTRACKED, Packet
from sidecar.firewall.verdicts import Matches, certainly, inverted, together
from sidecar.state.model import IPAddress


class Condition(NamedTuple):
    """An option of a rule, with its values; `module` is the match (-m) that it belongs to."""

    module: str
    option: str
    values: tuple[str, ...]
    is_negated: bool


#: Whether an option with this value holds for a packet; ValueError: it is spelled in a way that is not known.
_Check = Callable[[str, Packet], Matches]

#: Matches that hold by themselves; only their options are conditions. The outcome of any other match is unknown.
_IDLE_MATCHES: Final = frozenset(
    {"tcp", "comment", "multiport", "conntrack", "state", "mark", "addrtype", "owner", "rpfilter", "iprange", "pkttype"}
    | {"physdev", "connmark", "recent", "ttl", "hl"}
)

#: Matches of headers that these packets do not have: there they match nothing, whatever their options say.
_HEADERS: Final = frozenset({"rt", "frag", "hbh", "dst", "mh", "ah", "esp"})

#: Matches of the connection that a packet belongs to: one that belongs to none fits no option of theirs, negated or not
#: (net/netfilter/xt_connmark.c, xt_conntrack.c); but for --ctstate.
_OF_CONNECTION: Final = frozenset({"connmark", "conntrack", "connbytes", "connlabel", "helper"})

_TCP: Final = ("tcp", "6", "all", "0")


def holds(condition: Condition, packet: Packet) -> Matches:
    """Return whether a condition holds; PERHAPS if that depends on anything that is not known here."""
    if _is_of_connection(condition) and packet.state in (UNTRACKED, INVALID):
        return Matches.NOTHING
    check = _CHECKS.get((condition.module, condition.option)) or _CHECKS.get(("", condition.option))
    if check is None:
        return Matches.PERHAPS
    try:
        answer = check(" ".join(condition.values), packet)
    except ValueError:  # a mask with holes in it, a port by name
        return Matches.PERHAPS
    return inverted(answer) if condition.is_negated else answer


def _is_of_connection(condition: Condition) -> bool:
    return condition.module in _OF_CONNECTION and condition.option not in ("-m", "--ctstate")


def _match(name: str, packet: Packet) -> Matches:
    if name in _HEADERS:
        return Matches.NOTHING
    if name == "rpfilter":  # its option --invert turns that around
        return certainly(packet.returns)
    return Matches.ALL if name in _IDLE_MATCHES else Matches.PERHAPS


def _covers(network: str, ip: IPAddress | None) -> Matches:
    if network.endswith("/0"):
        return Matches.ALL
    if ip is None:
        return Matches.PERHAPS
    address, _, length = network.partition("/")
    if length == str(ip.max_prefixlen):  # the usual case, and quicker
        return certainly(ip == ip_address(address))
    return certainly(ip in ip_network(network, strict=False))


def _within(ranges: str, ip: IPAddress | None) -> Matches:
    first, _, last = ranges.partition("-")
    begin, end = ip_address(first), ip_address(last or first)
    return certainly(None if ip is None else begin.packed <= ip.packed <= end.packed)


def _is_link(pattern: str, name: str | None) -> Matches:
    if name is None:
        return Matches.PERHAPS
    if not name:  # there is none here
        return Matches.NOTHING
    return certainly(name.startswith(pattern[:-1]) if pattern.endswith("+") else name == pattern)


def _has_port(ranges: str, port: int | None) -> Matches:
    if port is None:
        return Matches.PERHAPS
    for each in ranges.split(","):
        first, _, last = each.partition(":")
        if int(first or 0) <= port <= int(last or first or 65535):
            return Matches.ALL
    return Matches.NOTHING


def _either_port(ranges: str, packet: Packet) -> Matches:
    found = {_has_port(ranges, packet.source_port), _has_port(ranges, packet.destination_port)}
    return inverted(together(map(inverted, found)))


def _has_state(states: str, packet: Packet) -> Matches:
    return certainly(None if packet.state is None else packet.state in states.split(","))


def _has_mark(value: str, packet: Packet) -> Matches:
    wanted, _, mask = value.partition("/")
    bits = int(mask or "0xffffffff", 0)
    return certainly(None if packet.mark is None else packet.mark & bits == int(wanted, 0))


def _has_flags(value: str, packet: Packet) -> Matches:
    mask, _, compared = value.lower().partition(" ")
    if packet.flags is None:
        return Matches.PERHAPS
    names = {"fin", "syn", "rst", "psh", "ack", "urg"} if mask == "all" else set(mask.split(","))
    return certainly(packet.flags & names == set(compared.split(",")) - {"none"})


def _has_type(kinds: str, is_here: bool | None) -> Matches:  # noqa: FBT001 - a field of a packet
    """Whether an address is of one of these kinds: local if it is one of this node, else unicast."""
    names = kinds.split(",")
    if is_here is None:
        return Matches.PERHAPS
    return certainly("LOCAL" in names if is_here else "UNICAST" in names)


def _has_owner(value: str, packet: Packet) -> Matches:
    first, _, last = value.partition("-")
    return certainly(None if packet.owner is None else int(first) <= packet.owner <= int(last or first))


def _is_syn(_: str, packet: Packet) -> Matches:
    return _has_flags("fin,syn,rst,ack syn", packet)


def _always(_: str, __: Packet) -> Matches:
    return Matches.ALL


def _never(_: str, __: Packet) -> Matches:
    return Matches.NOTHING


#: By the match that an option belongs to, if several have it, and its name.
_CHECKS: Final[Mapping[tuple[str, str], _Check]] = {
    ("", "-m"): _match,
    ("", "--comment"): _always,
    ("", "-p"): lambda value, _: certainly(value in _TCP),
    ("", "-f"): _never,  # a later fragment; connection tracking puts packets together first
    ("", "-s"): lambda value, packet: _covers(value, packet.source),
    ("", "-d"): lambda value, packet: _covers(value, packet.destination),
    ("iprange", "--src-range"): lambda value, packet: _within(value, packet.source),
    ("iprange", "--dst-range"): lambda value, packet: _within(value, packet.destination),
    ("", "-i"): lambda value, packet: _is_link(value, packet.came_in),
    ("", "-o"): lambda value, packet: _is_link(value, packet.goes_out),
    ("", "--sport"): lambda value, packet: _has_port(value, packet.source_port),
    ("", "--dport"): lambda value, packet: _has_port(value, packet.destination_port),
    ("multiport", "--sports"): lambda value, packet: _has_port(value, packet.source_port),
    ("multiport", "--dports"): lambda value, packet: _has_port(value, packet.destination_port),
    ("multiport", "--ports"): _either_port,
    ("", "--tcp-flags"): _has_flags,
    ("", "--syn"): _is_syn,
    ("conntrack", "--ctstate"): _has_state,
    ("state", "--state"): _has_state,
    ("mark", "--mark"): _has_mark,
    ("connmark", "--mark"): lambda _, __: Matches.PERHAPS,
    ("addrtype", "--src-type"): lambda value, packet: _has_type(value, packet.is_from_here),
    ("addrtype", "--dst-type"): lambda value, packet: _has_type(value, packet.is_to_here),
    ("owner", "--uid-owner"): _has_owner,
    ("owner", "--socket-exists"): _always,
    ("rpfilter", "--loose"): _always,
    ("rpfilter", "--validmark"): _always,
    ("rpfilter", "--accept-local"): _always,
    ("ttl", "--ttl-eq"): lambda value, _: certainly(int(value) == TTL),
    ("ttl", "--ttl-lt"): lambda value, _: certainly(int(value) > TTL),
    ("ttl", "--ttl-gt"): lambda value, _: certainly(int(value) < TTL),
    ("hl", "--hl-eq"): lambda value, _: certainly(int(value) == TTL),
    ("hl", "--hl-lt"): lambda value, _: certainly(int(value) > TTL),
    ("hl", "--hl-gt"): lambda value, _: certainly(int(value) < TTL),
    ("recent", "--set"): _always,
    ("recent", "--name"): _always,
    ("recent", "--mask"): _always,
    ("recent", "--rsource"): _always,
    ("recent", "--rdest"): _always,
    ("pkttype", "--pkt-type"): lambda value, _: certainly(value == "unicast"),
    # The socket of a proxy that waits at its address need not be transparent, and is not.
    ("socket", "--transparent"): _never,
    ("socket", "--nowildcard"): _always,
    ("socket", "--restore-skmark"): _always,
    ("physdev", "--physdev-is-bridged"): _never,  # to this node, it is not
}
