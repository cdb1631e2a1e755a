"""Asks the kernel for the rules of an nft chain, as iptables-nft does not list all that they have."""

from collections.abc import Sequence
from typing import Final

from sidecar.node import nfnetlink
from sidecar.node.command import Command
from sidecar.node.netlink import attribute
from sidecar.node.nft_expressions import is_as_listed
from sidecar.node.seen import Narrower, Places
from sidecar.state.model import NFT_FAMILIES, Chain, Family, Rule

# linux/netfilter/nf_tables.h: NFT_MSG_GETRULE, NFT_MSG_GETGEN, and the attributes of a rule.
_GETRULE: Final = 7
_GETGEN: Final = 16
_TABLE: Final = 1
_CHAIN: Final = 2


def rules(family: Family, chain: Chain) -> Sequence[bytes] | None:
    """Return the rules of a chain in order, as nft_expressions reads them; None if the kernel has none or does not say.

    For a chain that does not exist, its answer is as for an empty one.
    """
    table, name = (each.encode() + b"\0" for each in chain)
    try:
        return nfnetlink.dump(family, _GETRULE, attribute(_TABLE, table) + attribute(_CHAIN, name)) or None
    except OSError:
        return None


def narrower(family: Family, places: Places) -> Narrower | None:
    """Return the places of rules that are listed like ours, but are narrower; none if the kernel does not say.

    None: the kernel has not as many rules as were listed.
    """
    found: dict[tuple[Chain, int], Rule] = {}
    for chain, (number, lines) in places.items():
        if (known := rules(family, chain)) is None:
            continue
        if len(known) != number:
            return None
        found |= {(chain, at): rule for at, rule in lines if not is_as_listed(known[at], rule)}
    return found


def generation() -> bytes | None:
    """Return what is the same as before only if no rule has changed since; None if the kernel does not say."""
    try:
        return b"".join(nfnetlink.ask(_GETGEN)) or None
    except OSError:
        return None


def deletion(family: Family, chain: Chain, handles: Sequence[int]) -> Command:
    """Return the command that deletes these rules, all or none: a handle names one rule for certain."""
    place = ("delete", "rule", NFT_FAMILIES[family], *chain, "handle")
    if len(handles) == 1:
        return ("nft", *place, str(handles[0])), ""
    return ("nft", "-f", "-"), "".join(f"{' '.join(place)} {handle}\n" for handle in handles)
