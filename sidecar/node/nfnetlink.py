"""Asks nf_tables in the kernel by netlink, without a process."""

from struct import pack
from typing import Final

from sidecar.node.netlink_query import ACK, DUMP, query
from sidecar.state.model import Family

_NETFILTER: Final = 12  # linux/netlink.h
_NFTABLES: Final = 10  # linux/netfilter/nfnetlink.h

#: NFPROTO_IPV4, NFPROTO_IPV6 and NFPROTO_UNSPEC (linux/netfilter.h).
_PROTOCOLS: Final[dict[Family | None, int]] = {4: 2, 6: 10, None: 0}


def dump(family: Family | None, kind: int, attributes: bytes = b"") -> list[bytes]:
    """Return the payload of each message of an answer, of one family or of all.

    Raises OSError if the kernel does not give all of it.
    """
    return _ask(kind, DUMP, family, attributes)


def ask(kind: int) -> list[bytes]:
    """Return the same for a question that is about no family, and has an answer of one message."""
    return _ask(kind, ACK, None, b"")


def _ask(kind: int, flags: int, family: Family | None, attributes: bytes) -> list[bytes]:
    # struct nfgenmsg comes before the attributes: family, version, resource.
    return query(_NETFILTER, _NFTABLES << 8 | kind, flags, pack("=BBH", _PROTOCOLS[family], 0, 0) + attributes)
