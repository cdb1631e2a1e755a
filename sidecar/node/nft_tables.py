"""Asks the kernel for nft tables with `flags dormant`: their rules have no effect, and iptables-nft does not say so."""

from typing import Final

from sidecar.node import netlink, nfnetlink
from sidecar.state.model import Family

_GETTABLE: Final = 1  # NFT_MSG_GETTABLE (linux/netfilter/nf_tables.h)


def dormant(family: Family) -> frozenset[str]:
    """Return the names of the dormant tables of a family; none if the kernel does not say, as then iptables fails."""
    try:
        return frozenset(filter(None, map(netlink.dormant_table, nfnetlink.dump(family, _GETTABLE))))
    except OSError:
        return frozenset()
