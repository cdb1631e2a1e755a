"""How large a table of iptables-legacy is, by the socket option that iptables itself begins with."""

import ctypes
import socket
from typing import Final

#: IPT_SO_GET_INFO and IP6T_SO_GET_INFO (linux/netfilter_ipv4/ip_tables.h, linux/netfilter_ipv6/ip6_tables.h).
_GET_INFO: Final = 64
_LEVELS: Final = {4: (socket.AF_INET, socket.IPPROTO_IP), 6: (socket.AF_INET6, socket.IPPROTO_IPV6)}

#: struct ipt_getinfo: the table's name goes in; entry count and size in bytes are the last eight that come out.
_NAME: Final = 32
_INFO: Final = 84

_libc: Final = ctypes.CDLL(None, use_errno=True)
_sockets: Final[dict[int, socket.socket]] = {}


def table_size(family: int, table: str) -> bytes:
    """Return number and size of a table's rules, as bytes to be compared; empty if the kernel does not tell.

    To ask creates the table (net/ipv4/netfilter/ip_tables.c, get_info): ask for one that is used.
    """
    address_family, level = _LEVELS[family]
    try:
        if family not in _sockets:
            _sockets[family] = socket.socket(address_family, socket.SOCK_RAW, socket.IPPROTO_RAW)
    except OSError:  # without CAP_NET_RAW iptables-legacy does not work either, and says so
        return b""
    info = ctypes.create_string_buffer(table.encode(), _INFO)
    length = ctypes.c_uint32(_INFO)
    failed = _libc.getsockopt(_sockets[family].fileno(), level, _GET_INFO, info, ctypes.byref(length))
    return b"" if failed else info.raw[-8:]
