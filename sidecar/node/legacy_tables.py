"""Asks the kernel which tables of iptables-legacy it has, without creating any, and how large they are."""

import ctypes
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sidecar.errors import BackendUnknown
from sidecar.node import capabilities, proc
from sidecar.state.model import IPV4, Family

#: IPT_SO_GET_INFO and IP6T_SO_GET_INFO (linux/netfilter_ipv4/ip_tables.h, linux/netfilter_ipv6/ip6_tables.h).
_GET_INFO: Final = 64
_LEVELS: Final = {4: (socket.AF_INET, socket.IPPROTO_IP), 6: (socket.AF_INET6, socket.IPPROTO_IPV6)}

#: struct ipt_getinfo: the table's name goes in; the last eight bytes that come out are the entry count and the size.
_INFO: Final = 84

_libc: Final = ctypes.CDLL(None, use_errno=True)
_sockets: Final[dict[int, socket.socket]] = {}


def registered(family: Family) -> Sequence[str]:
    """Return the legacy tables in this network namespace; raise BackendUnknown if they cannot be read."""
    return known(family, readable(family))


def known(family: Family, tables: Sequence[str] | None) -> Sequence[str]:
    """Return the tables that could be read; raise BackendUnknown if they could not be read, but may exist.

    In a separate user namespace the file cannot be read; but then this is not a node's network, and there are none.
    """
    if tables is None and capabilities.in_initial_user_namespace():
        raise BackendUnknown(f"/proc/net/{_names(family)}")
    return tables or ()


def readable(family: Family) -> Sequence[str] | None:
    """Return the legacy tables that the kernel has (net/ipv4/netfilter/ip_tables.c), or None if that is unknown."""
    try:
        text = proc.of_network(_names(family), Path.read_text)
    except OSError:
        return None
    return () if text is None else text.split()


def table_size(family: int, table: str) -> bytes:
    """Return number and size of a table's rules, as bytes to compare; empty if the kernel refuses.

    This is the socket option that iptables itself uses first. Asking creates the table
    (net/ipv4/netfilter/ip_tables.c, get_info): ask only for a table that is in use.
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


def _names(family: Family) -> str:
    return "ip_tables_names" if family == IPV4 else "ip6_tables_names"
