"""What an expression of nft is worth on a packet: a number, as the kernel compares it, or the name of an interface."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Final, TypeAlias

from sidecar.firewall.packet import INVALID, NEW, TTL, UNTRACKED, Packet
from sidecar.state.model import IPV4, LOOPBACK

#: What nft prints with --json (man libnftables-json), of any release: nothing is certain about its form.
Json: TypeAlias = Any

#: What a look into JSON of an unexpected form raises.
MALFORMED: Final = (ValueError, KeyError, TypeError, AttributeError, IndexError, StopIteration, RecursionError)


@dataclass(frozen=True, slots=True)
class Kind:
    """What values of one data type look like in nft's JSON."""

    bits: int
    names: Mapping[str, int] = field(default_factory=dict)
    is_text: bool = False  # the name of an interface
    other: int | None = None  # stands for all other names
    ip_version: int | None = None

    def value(self, literal: Json) -> int | str:  # noqa: PLR0911 - one for each form
        """Return what a literal stands for; raise ValueError if that is not known."""
        match literal:
            case str() if self.is_text:
                return literal
            case int() if not self.is_text:  # True is 1, too
                return int(literal)
            case str() if literal in self.names:
                return self.names[literal]
            case str() if self.ip_version:
                ip = ip_address(literal)
                if ip.version == self.ip_version:
                    return int(ip)
            case str() if literal.isdecimal():
                return int(literal)
            case str() if self.other is not None:
                return self.other
            case list() | {"|": list()}:  # flags
                found = 0
                for each in literal if isinstance(literal, list) else literal["|"]:
                    found |= self.number(each)
                return found
        raise ValueError

    def number(self, literal: Json) -> int:
        """Return the same, but raise ValueError for a name."""
        found = self.value(literal)
        if isinstance(found, str):
            raise ValueError  # noqa: TRY004 - as for any other literal that has no number
        return found


_NAME: Final = Kind(128, is_text=True)
_ADDRESS: Final = {4: Kind(32, ip_version=4), 6: Kind(128, ip_version=6)}
_PORT: Final = Kind(16)
_MARK: Final = Kind(32)
_USER: Final = Kind(32)
_BOOLEAN: Final = Kind(1)
_PROTOCOL: Final = Kind(8, {"tcp": 6}, other=-1)
_TCP: Final = _PROTOCOL.names["tcp"]
_TCP_FLAGS: Final = Kind(
    8, {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "ecn": 64, "ece": 64, "cwr": 128}
)

# linux/netfilter.h, linux/if_ether.h, linux/if_packet.h, linux/rtnetlink.h
_NFPROTO: Final = Kind(8, {"ipv4": 2, "ipv6": 10})
_ETHERTYPE: Final = Kind(16, {"ip": 0x0800, "arp": 0x0806, "vlan": 0x8100, "ip6": 0x86DD})
_PACKET_TYPE: Final = Kind(8, {"host": 0, "unicast": 0, "broadcast": 1, "multicast": 2, "other": 3})
_ADDRESS_TYPE: Final = Kind(
    8,
    {
        "unspec": 0,
        "unicast": 1,
        "local": 2,
        "broadcast": 3,
        "anycast": 4,
        "multicast": 5,
        "blackhole": 6,
        "unreachable": 7,
        "prohibit": 8,
    },
)

# linux/netfilter/nf_conntrack_common.h
_STATE: Final = Kind(32, {"invalid": 1, "established": 2, "related": 4, "new": 8, "untracked": 64})
_DIRECTION: Final = Kind(8, {"original": 0, "reply": 1})

#: Protocols whose fields are those of the packet itself, and what else may be in front of TCP. A rule that looks into
#: any other protocol does not match TCP.
_MAY_BE_THERE: Final = frozenset(("ip", "ip6", "tcp", "th", "ether", "vlan", "ah", "esp", "comp"))


@dataclass(frozen=True, slots=True)
class Value:
    """What an expression is worth."""

    kind: Kind = field(default_factory=lambda: Kind(0))
    data: int | str | None = None  # None: that is not known
    applies: bool = True  # whether the packet has such a thing; else the rule does not match it

    @property
    def number(self) -> int | None:
        return None if isinstance(self.data, str) else self.data


UNKNOWN: Final = Value()
_ABSENT: Final = Value(applies=False)


def evaluate(expression: Json, packet: Packet) -> Value:  # noqa: PLR0911 - one for each expression
    """Return what an expression is worth on a packet. Raises ValueError for a malformed one."""
    match expression:
        case {"payload": {"protocol": str(protocol), "field": str(name)}}:
            return _payload(protocol, name, packet)
        case {"meta": {"key": str(key)}}:
            return _meta(key, packet)
        case {"ct": {"key": str(key)}}:
            return _ct(key, packet)
        case {"fib": {"result": str(result), "flags": flags}}:
            return _fib(result, [flags] if isinstance(flags, str) else flags, packet)
        case {"socket": {"key": "transparent"}}:  # that of the proxy listens on the very address
            return Value(_BOOLEAN, 0)
        case {"&": list(operands)} | {"|": list(operands)} | {"^": list(operands)} if len(operands) > 1:
            return _combined(next(iter(expression)), operands, packet)
        case _:
            return UNKNOWN


def mark(expression: Json, packet: Packet) -> int | None:
    """Return the mark that `meta mark set` gives to a packet."""
    if isinstance(expression, int | str):
        return _MARK.number(expression)
    return evaluate(expression, packet).number


def _combined(operator: str, operands: Sequence[Json], packet: Packet) -> Value:
    found = evaluate(operands[0], packet)
    number = found.number
    for each in operands[1:]:
        if not found.applies or number is None:
            return Value(found.kind, applies=found.applies)
        value = evaluate(each, packet) if _is_expression(each) else Value(found.kind, found.kind.number(each))
        if not value.applies or value.number is None:
            return Value(found.kind, applies=value.applies)
        number = {"&": number & value.number, "|": number | value.number, "^": number ^ value.number}[operator]
    return Value(found.kind, number)


def _is_expression(operand: Json) -> bool:
    """Whether an operand is more than a literal; flags are one."""
    match operand:
        case {"|": list(parts)}:
            return any(map(_is_expression, parts))
        case _:
            return isinstance(operand, dict)


def _payload(protocol: str, name: str, packet: Packet) -> Value:  # noqa: PLR0911 - one for each field
    if protocol not in _MAY_BE_THERE or protocol == ("ip6" if packet.family == IPV4 else "ip"):
        return _ABSENT
    match protocol, name:
        case "ip" | "ip6", "saddr" | "daddr":
            ip = packet.source if name == "saddr" else packet.destination
            return Value(_ADDRESS[packet.family], None if ip is None else int(ip))
        case ("ip", "protocol") | ("ip6", "nexthdr"):
            return Value(_PROTOCOL, _TCP)
        case "tcp" | "th", "sport":
            return Value(_PORT, packet.source_port)
        case "tcp" | "th", "dport":
            return Value(_PORT, packet.destination_port)
        case ("ip", "ttl") | ("ip6", "hoplimit"):
            return Value(Kind(8), TTL)
        case "tcp", "flags":
            known = None if packet.flags is None else _TCP_FLAGS.number(sorted(packet.flags))
            return Value(_TCP_FLAGS, known)
        case _:
            return UNKNOWN


def _meta(key: str, packet: Packet) -> Value:  # noqa: PLR0911 - one for each key
    match key:
        # Where there is no such device the kernel compares with an empty name, or with 0 (net/netfilter/nft_meta.c).
        case "iifname" | "iif":
            return Value(_NAME, packet.came_in)
        case "oifname" | "oif":
            return Value(_NAME, packet.goes_out)
        case "l4proto":
            return Value(_PROTOCOL, _TCP)
        case "nfproto":
            return Value(_NFPROTO, _NFPROTO.names["ipv4" if packet.family == IPV4 else "ipv6"])
        case "protocol":
            return Value(_ETHERTYPE, _ETHERTYPE.names["ip" if packet.family == IPV4 else "ip6"])
        case "mark":
            return Value(_MARK, packet.mark)
        case "skuid":
            return Value(_USER, packet.owner)
        case "pkttype":
            return Value(_PACKET_TYPE, _PACKET_TYPE.names["host"])
        case _:
            return UNKNOWN


def _ct(key: str, packet: Packet) -> Value:
    if key == "state":
        return Value(_STATE, None if packet.state is None else _STATE.number(packet.state.lower()))
    if packet.state in (UNTRACKED, INVALID):  # there is no entry that could have it
        return _ABSENT
    if key == "direction" and packet.state == NEW:
        return Value(_DIRECTION, _DIRECTION.names["original"])
    return UNKNOWN


def _fib(result: str, flags: Sequence[str], packet: Packet) -> Value:
    if result == "type":
        is_here = packet.is_to_here if "daddr" in flags else packet.is_from_here
        # With an interface, an address on another one is not local (net/ipv4/devinet.c, inet_dev_addr_type).
        if is_here is None or (is_here and {"iif", "oif"} & {*flags}):
            return Value(_ADDRESS_TYPE)
        return Value(_ADDRESS_TYPE, _ADDRESS_TYPE.names["local" if is_here else "unicast"])
    if "saddr" not in flags or "daddr" in flags:
        return Value(_BOOLEAN)
    if packet.came_in == LOOPBACK and "iif" in flags:  # found without a look at the routes (nft_fib_is_loopback)
        return Value(_BOOLEAN, 1)
    if "iif" in flags:
        return Value(_BOOLEAN, None if packet.returns is None else int(packet.returns))
    return Value(_BOOLEAN, 1 if packet.returns else None)
