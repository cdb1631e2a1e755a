"""Asks how large a table of iptables-legacy is, by the socket option that iptables itself uses first."""

import ctypes
import socket
from typing import Final

#: IPT_SO_GET_INFO and IP6T_SO_GET_INFO (linux/netfilter_ipv4/ip_tables.h, linux/netfilter_ipv6/ip6_tables.h).
_GET_INFO: Final = 64
_LEVELS: Final = {4: (socket.AF_INET, socket.IPPROTO_IP), 6: (socket.AF_INET6, socket.IPPROTO_IPV6)}

#: struct ipt_getinfo: the table's name goes in; the last eight bytes that come out are the entry count and the size.
_NAME: Final = 32
_INFO: Final = 84

_libc: Final = ctypes.CDLL(None, use_errno=True)
_sockets: Final[dict[int, socket.socket]] = {}


def table_size(family: int, table: str) -> bytes:
    """Return number and size of a table's rules, as bytes to compare; empty if the kernel refuses.

    Asking creates the table (net/ipv4/netfilter/ip_tables.c, get_info): ask only for a table that is in use.
    """
    address_family, level = _LEVELS[family]
    try:
        if family not in _sockets:
            _sockets[family] = socket.socket(address_family, socket.SOCK_RAW, socket.IPPROTO_RAW)
    except OSError:  # without CAP_NET_RAW, iptables-legacy fails too, and says so
        return b""
    info = ctypes.create_string_buffer(table.encode(), _INFO)
    length = ctypes.c_uint32(_INFO)
    failed = _libc.getsockopt(_sockets[family].fileno(), level, _GET_INFO, info, ctypes.byref(length))
    return b"" if failed else info.raw[-8:]
