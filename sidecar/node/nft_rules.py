"""Asks the kernel for the rules of an nft chain, as iptables-nft does not list all that they have."""

from collections.abc import Sequence
from typing import Final

from sidecar.node import nfnetlink
from sidecar.node.command import Command
from sidecar.state.model import IPV4, Chain, Family

# linux/netfilter/nf_tables.h: NFT_MSG_GETRULE, NFT_MSG_GETGEN, and the attributes of a rule.
_GETRULE: Final = 7
_GETGEN: Final = 16
_TABLE: Final = 1
_CHAIN: Final = 2


def rules(family: Family, chain: Chain) -> Sequence[bytes] | None:
    """Return the rules of a chain in order, as nft_expressions reads them; None if the kernel has none or does not say.

    If there is no such chain, its answer is as for an empty one.
    """
    try:
        return nfnetlink.dump(family, _GETRULE, _place(chain)) or None
    except OSError:
        return None


def generation() -> bytes | None:
    """Return what is the same as before only if no rule has changed since; None if the kernel does not say."""
    try:
        return b"".join(nfnetlink.ask(_GETGEN)) or None
    except OSError:
        return None


def deletion(family: Family, chain: Chain, handles: Sequence[int]) -> Command:
    """Return the command that deletes these rules, all or none: a handle names one rule for certain."""
    place = ("delete", "rule", "ip" if family == IPV4 else "ip6", *chain, "handle")
    if len(handles) == 1:
        return ("nft", *place, str(handles[0])), ""
    return ("nft", "-f", "-"), "".join(f"{' '.join(place)} {handle}\n" for handle in handles)


def _place(chain: Chain) -> bytes:
    table, name = (each.encode() + b"\0" for each in chain)
    return nfnetlink.attribute(_TABLE, table) + nfnetlink.attribute(_CHAIN, name)
