"""The wire format of netlink, and which messages may mean that one of our addresses or rules is gone. Pure, no I/O."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from sidecar.state.model import Desired

#: struct nlmsghdr (linux/netlink.h): length, type, flags, sequence, port. The payload is aligned to 4 bytes.
_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")  # struct nlattr: length, type

#: The kernel lost messages (linux/netlink.h, NLMSG_OVERRUN).
_OVERRUN: Final = 4

# linux/rtnetlink.h, linux/if_addr.h, linux/if_link.h
_NEWLINK: Final = 16
_DELLINK: Final = 17
_NEWADDR: Final = 20
_DELADDR: Final = 21
_ADDRESS_MESSAGE: Final = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_AF_INET6: Final = 10
_IFA_F_DEPRECATED: Final = 0x20
_LINK_MESSAGE: Final = struct.Struct("=BxHiII")  # family, type, index, flags, change
_IFF_UP: Final = 1
_NAMES: Final = (3, 53)  # IFLA_IFNAME, IFLA_ALT_IFNAME
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2

# linux/netfilter/nf_tables.h: message → the attributes for table and chain; all belong to nftables' subsystem, 10.
_NFTABLES: Final = 10
_DELTABLE: Final = 2
_DELCHAIN: Final = 5
_DELRULE: Final = 8
_PLACES: Final = {_DELTABLE: (1, None), _DELCHAIN: (1, 3), _DELRULE: (1, 2)}
_FAMILIES: Final = {2: 4, 10: 6}

# linux/netfilter/nf_tables.h: the attributes of a table.
_TABLE_NAME: Final = 1
_TABLE_FLAGS: Final = 2
_DORMANT: Final = 1


@dataclass(frozen=True, slots=True)
class Watch:
    """What to watch: an interface, addresses as bytes, and (family, table, chain) triples."""

    interface: bytes
    addresses: frozenset[bytes]
    chains: frozenset[tuple[int, str, str]]

    @classmethod
    def of(cls, desired: Desired) -> "Watch":
        return cls(
            desired.interface.encode(errors="surrogateescape") + b"\0",
            frozenset(address.ip.packed for address in desired.addresses),
            frozenset((rule.family, rule.table, rule.chain) for rule in desired.rules),
        )

    def concerns_links(self, data: bytes, index: int | None = None) -> bool:
        """Whether one of these rtnetlink messages removes a watched address or the interface, or sets it down.

        Or makes the kernel choose an address as a source: an IPv6 address that is not deprecated any more.
        With the index of the interface (0: it is missing), also whether another link is the interface now, or none.
        """
        return any(self._concerns_link(kind, payload, index) for kind, _, payload in messages(data))

    def concerns_rules(self, data: bytes) -> bool:
        """Whether one of these nftables messages removes rules from a watched chain."""
        return any(self._concerns_rule(kind, payload) for kind, _, payload in messages(data))

    def _concerns_link(self, kind: int, payload: bytes, index: int | None) -> bool:
        if kind == _OVERRUN:
            return True
        if kind in (_NEWADDR, _DELADDR) and len(payload) >= _ADDRESS_MESSAGE.size:
            family, _, its_flags, *_ = _ADDRESS_MESSAGE.unpack_from(payload)
            found = dict(attributes(payload, _ADDRESS_MESSAGE.size))
            is_watched = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS)) in self.addresses
            is_source = family == _AF_INET6 and not its_flags & _IFA_F_DEPRECATED
            return is_watched and (kind == _DELADDR or is_source)
        if kind not in (_NEWLINK, _DELLINK) or len(payload) < _LINK_MESSAGE.size:
            return False
        # The name is an attribute of the link, or nested in the attribute that holds its alternative names.
        goes_by = any(_ATTRIBUTE.pack(4 + len(self.interface), each) + self.interface in payload for each in _NAMES)
        if kind == _DELLINK:
            return goes_by
        _, _, its_index, flags, _ = _LINK_MESSAGE.unpack_from(payload)
        was_it = goes_by if index is None else its_index == index
        return goes_by != was_it or (goes_by and not flags & _IFF_UP)

    def _concerns_rule(self, kind: int, payload: bytes) -> bool:
        if kind == _OVERRUN:
            return True
        places = _PLACES.get(kind & 0xFF)
        if kind >> 8 != _NFTABLES or places is None or not payload:
            return False
        family = _FAMILIES.get(payload[0])
        found = dict(attributes(payload, 4))
        table, chain = (_text(found.get(place)) if place else None for place in places)
        return any((family, table) == each[:2] and chain in (None, each[2]) for each in self.chains)


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield the type, the flags and the payload of each message (man 7 netlink)."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, flags, *_ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return
        yield kind, flags, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def message(kind: int, flags: int, payload: bytes) -> bytes:
    """Return a message to the kernel."""
    return _HEADER.pack(_HEADER.size + len(payload), kind, flags, 0, 0) + payload


def attribute(kind: int, value: bytes) -> bytes:
    """Return an attribute of a message."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def table(payload: bytes) -> tuple[str, bool]:
    """Return the name of a table in an answer to NFT_MSG_GETTABLE, and whether it is dormant."""
    found = dict(attributes(payload, 4))
    flags = int.from_bytes(found.get(_TABLE_FLAGS, b""), "big")
    return _text(found.get(_TABLE_NAME)) or "", bool(flags & _DORMANT)


def attributes(payload: bytes, at: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield the type and the value of each attribute, from an offset on."""
    while at + _ATTRIBUTE.size <= len(payload):
        length, kind = _ATTRIBUTE.unpack_from(payload, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, payload[at + _ATTRIBUTE.size : at + length]  # the two highest bits are flags
        at += (length + 3) & ~3


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.rstrip(b"\0").decode(errors="replace")
