"""Asks the kernel for its nft tables, without a process and without making any.

A table may have `flags dormant`: its rules have no effect, and iptables-nft does not say so.
"""

from typing import Final

from sidecar.node import netlink, nfnetlink
from sidecar.state.model import Family

_GETTABLE: Final = 1  # NFT_MSG_GETTABLE (linux/netfilter/nf_tables.h)


def dormant(family: Family) -> frozenset[str]:
    """Return the names of the dormant tables of a family; none if the kernel does not say, as then iptables fails."""
    try:
        return frozenset(name for name, is_dormant in _tables(family) if is_dormant)
    except OSError:
        return frozenset()


def names(family: Family) -> frozenset[str] | None:
    """Return the names of the tables of a family; None if this process may not ask. A kernel without nft has none."""
    try:
        return frozenset(name for name, _ in _tables(family))
    except PermissionError:
        return None
    except OSError:
        return frozenset()


def _tables(family: Family) -> list[tuple[str, bool]]:
    return [netlink.table(each) for each in nfnetlink.dump(family, _GETTABLE)]
