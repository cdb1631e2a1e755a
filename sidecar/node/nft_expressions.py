"""Decides whether a rule in the kernel has only the conditions of one of our rules. Pure, no I/O.

iptables-nft up to 1.8.9 lists rules of `nft` without what it does not know: a set, a map, some fields of the TCP
header, a payload by offset, a header to change. Such a rule may match less than ours, or do more, and is listed in the
same words.

Rules that iptables has added look like this (1.8.9; with 1.8.7 `match tcp` stands for the port):

    meta l4proto, cmp, payload (address), cmp, payload (port), cmp, counter, immediate or target

Older releases have a bitwise with all ones behind the address, and read the protocol from the header; `nft` may leave
the counter out, have another order, and say what the table's family implies.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Final, TypeAlias

from sidecar.node.netlink import attributes
from sidecar.state.desired import end_of
from sidecar.state.model import Family, Rule

#: A name, and the attributes.
_Expression: TypeAlias = tuple[str, Mapping[int, bytes]]

#: Where a value comes from: the name of the expression that loads it, and its numbers.
_Source: TypeAlias = tuple[str | int, ...]

# linux/netfilter/nf_tables.h. The attributes of a rule, of a list, and of an expression.
_HANDLE: Final = 3
_EXPRESSIONS: Final = 4
_NAME: Final = 1
_DATA: Final = 2
_VALUE: Final = 1
_MESSAGE: Final = 4  # struct nfgenmsg

# Of payload: base, offset and length, and the register that it sets; of meta: key, and the register that it sets.
_PAYLOAD: Final = (2, 3, 4)
_NETWORK: Final = 1
_TRANSPORT: Final = 2
_META: Final = (2,)
_META_PROTOCOL: Final = 1
_META_NFPROTO: Final = 15
_META_L4PROTO: Final = 16
_LOADED: Final = 1
_STORED: Final[Mapping[str, int]] = {"payload": 5, "meta": 3}  # the attribute by which they change a packet instead

# Of cmp: register, operation, value. Of bitwise: registers, mask, and what is then inverted.
_CMP: Final = (1, 2, 3)
_BITWISE: Final = (1, 2, 4, 5)

#: The name of a counter, as an attribute; and the length of what follows: the bytes and packets that it has counted.
_COUNTER: Final = b"\x0c\x00\x01\x00counter\0"
_COUNTED: Final = 28

_TCP: Final = b"\x06"

#: IPv4 and IPv6: the offset of source, destination, and protocol in the header; what Ethernet and netfilter call it.
_HEADERS: Final[Mapping[Family, tuple[int, int, int, bytes, bytes]]] = {
    4: (12, 16, 9, b"\x08\x00", b"\x02"),
    6: (8, 24, 6, b"\x86\xdd", b"\x0a"),
}


def handle(rule: bytes) -> int:
    """Return the number by which the kernel knows a rule (the payload of NFT_MSG_NEWRULE)."""
    return int.from_bytes(dict(attributes(rule, _MESSAGE)).get(_HANDLE, b""), "big")


def is_as_listed(rule: bytes, ours: Rule) -> bool:
    """Whether a rule (the payload of NFT_MSG_NEWRULE) that is listed like ours has no other conditions, or effects."""
    head, counter, rest = rule.partition(_COUNTER)
    return _is_as_listed(head + counter + bytes(len(rest[:_COUNTED])) + rest[_COUNTED:], ours)


@lru_cache(maxsize=2048)
def _is_as_listed(rule: bytes, ours: Rule) -> bool:
    """Return the same for a rule without the values of its counter, which change all the time."""
    allowed = _conditions(ours)
    loaded: dict[bytes, _Source] = {}
    for name, found in _expressions(rule):
        match name:
            case "payload" | "meta" if _STORED[name] not in found:
                numbers = _PAYLOAD if name == "payload" else _META
                loaded[found.get(_LOADED, b"")] = (name, *(_number(found, each) for each in numbers))
            case "bitwise" if _keeps_all(found):
                pass
            case "cmp":
                register, operation, value = (found.get(each, b"") for each in _CMP)
                if any(operation) or allowed.get(loaded.get(register, ())) != _value(value):
                    return False
            case "match" if found.get(_NAME, b"").rstrip(b"\0") == b"tcp":  # listed with all that it has
                pass
            case "counter" | "target" | "notrack":
                pass
            case "immediate" if not _number(found, _LOADED):  # a verdict
                pass
            case _:
                return False
    return True


def _expressions(rule: bytes) -> Iterator[_Expression]:
    for _, each in attributes(dict(attributes(rule, _MESSAGE)).get(_EXPRESSIONS, b"")):
        parts = dict(attributes(each))
        name = parts.get(_NAME, b"").rstrip(b"\0").decode(errors="replace")
        yield name, dict(attributes(parts.get(_DATA, b"")))


def _conditions(ours: Rule) -> Mapping[_Source, bytes]:
    """Return what our rule compares, or may compare without an effect on what it matches."""
    ip, port, is_inward = end_of(ours)
    source, destination, protocol, ethernet, netfilter = _HEADERS[ours.family]
    return {
        ("payload", _NETWORK, destination if is_inward else source, len(ip.packed)): ip.packed,
        ("payload", _NETWORK, protocol, 1): _TCP,
        ("payload", _TRANSPORT, 2 if is_inward else 0, 2): port.to_bytes(2, "big"),
        ("meta", _META_L4PROTO): _TCP,
        ("meta", _META_PROTOCOL): ethernet,
        ("meta", _META_NFPROTO): netfilter,
    }


def _keeps_all(found: Mapping[int, bytes]) -> bool:
    """Whether a bitwise changes nothing."""
    source, target, mask, inverted = (found.get(each, b"") for each in _BITWISE)
    return source == target and not any(_value(inverted)) and set(_value(mask)) == {0xFF}


def _number(found: Mapping[int, bytes], kind: int) -> int:
    return int.from_bytes(found.get(kind, b""), "big")


def _value(data: bytes) -> bytes:
    return dict(attributes(data)).get(_VALUE, b"")
