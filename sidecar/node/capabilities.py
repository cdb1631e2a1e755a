"""Finds out which capabilities this process has, to explain why a command failed."""

import fcntl
import os
from pathlib import Path
from typing import Final

#: Bits of the capability sets in /proc/PID/status (linux/capability.h).
_BITS: Final = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13}

_NS_GET_USERNS: Final = 0xB701  # the ioctl that returns the user namespace that owns a namespace (man 2 ioctl_ns)


def missing(*capabilities: str) -> tuple[str, ...]:
    """Return those of the capabilities that this process does not have over its network namespace.

    A capability is missing if it is not in the effective set (man 7 capabilities), or if another user namespace owns
    the network namespace, as with `unshare --user` alone. If that cannot be found out, none is reported as missing.
    """
    try:
        if not _owns_network():
            return capabilities
        return tuple(name for name in capabilities if not has(name))
    except OSError:
        return ()


def has(capability: str, pid: int | None = None) -> bool:
    """Whether a process (by default this one) has a capability in its own user namespace.

    Raises OSError if its status cannot be read.
    """
    status = Path(f"/proc/{pid or 'self'}/status").read_text()
    effective = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(effective >> _BITS[capability] & 1)


def in_initial_user_namespace() -> bool:
    """Whether user ids are those of the node (man 7 user_namespaces: all ids map to themselves)."""
    try:
        return Path("/proc/self/uid_map").read_text().split() == ["0", "0", str(2**32 - 1)]
    except OSError:  # a kernel without user namespaces
        return True


def _owns_network() -> bool:
    """Whether our user namespace, or one within it, owns the network namespace."""
    with Path("/proc/self/ns/net").open() as network:
        try:
            os.close(fcntl.ioctl(network, _NS_GET_USERNS))
        except PermissionError:  # the owner is outside our user namespace
            return False
    return True
