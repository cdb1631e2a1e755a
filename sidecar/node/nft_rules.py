"""Asks the kernel for the rules of an nft chain, as iptables-nft does not list all that they have; deletes some."""

import errno
from collections.abc import Sequence
from typing import Final

from sidecar.errors import CommandError
from sidecar.node import nfnetlink
from sidecar.state.model import IPV4, Chain, Family

# linux/netfilter/nf_tables.h: NFT_MSG_GETRULE, NFT_MSG_DELRULE, NFT_MSG_GETGEN, and the attributes of a rule.
_GETRULE: Final = 7
_DELRULE: Final = 8
_GETGEN: Final = 16
_TABLE: Final = 1
_CHAIN: Final = 2
_HANDLE: Final = 3


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


def delete(family: Family, chain: Chain, handles: Sequence[int]) -> bool:
    """Delete these rules in one transaction; return False, and change nothing, if one of them is gone already."""
    each = [_place(chain) + nfnetlink.attribute(_HANDLE, handle.to_bytes(8, "big")) for handle in handles]
    try:
        nfnetlink.change(family, _DELRULE, each)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise CommandError(deletion(family, chain, handles[0]), "", f"by netlink failed: {error.strerror}") from error
    return True


def deletion(family: Family, chain: Chain, handle: int) -> tuple[str, ...]:
    """Return the command that deletes a rule."""
    return "nft", "delete", "rule", "ip" if family == IPV4 else "ip6", *chain, "handle", str(handle)


def _place(chain: Chain) -> bytes:
    table, name = (each.encode() + b"\0" for each in chain)
    return nfnetlink.attribute(_TABLE, table) + nfnetlink.attribute(_CHAIN, name)
