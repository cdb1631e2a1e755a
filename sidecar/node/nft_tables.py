"""Asks the kernel for its nft tables, without a process and without making any.

A table may have `flags dormant`: its rules have no effect, and iptables-nft does not say so.
"""

from typing import Final

from sidecar.node import netlink, nfnetlink
from sidecar.state.model import Family

#: How nft names the families whose packets we follow (linux/netfilter.h).
_NAMES: Final = {1: "inet", 2: "ip", 5: "netdev", 10: "ip6"}

_GETTABLE: Final = 1  # NFT_MSG_GETTABLE (linux/netfilter/nf_tables.h)


def dormant(family: Family) -> frozenset[str]:
    """Return the names of the dormant tables of a family; none if the kernel does not say, as then iptables fails."""
    try:
        return frozenset(name for _, name, is_dormant in _tables(family) if is_dormant)
    except OSError:
        return frozenset()


def names(family: Family) -> frozenset[str] | None:
    """Return the names of the tables of a family; None if this process may not ask. A kernel without nft has none."""
    found = everywhere(family)
    return None if found is None else frozenset(name for _, name, _ in found)


def everywhere(family: Family | None = None) -> list[tuple[str, str, bool]] | None:
    """Return family, as nft has it, and name of each table, and whether it is dormant; None: we may not ask.

    nft itself does not tell: up to 1.0.6, the flags in its JSON are what happens to be in its memory.
    """
    try:
        return _tables(family)
    except PermissionError:
        return None
    except OSError:
        return []


def _tables(family: Family | None) -> list[tuple[str, str, bool]]:
    return [
        (_NAMES.get(payload[0], ""), *netlink.table(payload))
        for payload in nfnetlink.dump(family, _GETTABLE)
        if payload
    ]
