"""Asks the kernel for nft tables with `flags dormant`: their rules have no effect, and iptables-nft does not say so."""

import socket
import struct
from typing import Final

from sidecar.node import netlink
from sidecar.state.model import Family

_NETFILTER: Final = 12

#: NFPROTO_IPV4 and NFPROTO_IPV6 (linux/netfilter.h).
_PROTOCOLS: Final[dict[Family, int]] = {4: 2, 6: 10}

#: struct nlmsghdr and nfgenmsg: NFT_MSG_GETTABLE of subsystem 10, with NLM_F_REQUEST and NLM_F_DUMP.
_QUESTION: Final = struct.Struct("=IHHIIBBH")
_GETTABLE: Final = 10 << 8 | 1
_DUMP: Final = 0x301

#: Seconds to wait for the answer, which the kernel has ready at once; and bytes of it to read at once.
_PATIENCE: Final = 0.5
_MESSAGE: Final = 65536


def dormant(family: Family) -> frozenset[str]:
    """Return the names of the dormant tables of a family; none if the kernel does not say, as then iptables fails."""
    found: set[str] = set()
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER) as asked:
            asked.settimeout(_PATIENCE)
            asked.bind((0, 0))
            asked.send(_QUESTION.pack(_QUESTION.size, _GETTABLE, _DUMP, 1, 0, _PROTOCOLS[family], 0, 0))
            while True:
                names, is_over = netlink.dormant_tables(asked.recv(_MESSAGE))
                found |= names
                if is_over:
                    return frozenset(found)
    except OSError:
        return frozenset()
