"""Reads which tables of iptables-legacy the kernel has, without creating any: to ask legacy for a table creates it."""

from collections.abc import Sequence
from pathlib import Path

from sidecar.errors import BackendUnknown
from sidecar.node import capabilities, proc
from sidecar.state.model import IPV4, Family


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


def _names(family: Family) -> str:
    return "ip_tables_names" if family == IPV4 else "ip6_tables_names"
