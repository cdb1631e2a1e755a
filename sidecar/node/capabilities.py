"""Which capabilities this process has: what a failed command is explained with."""

import fcntl
import os
from pathlib import Path
from typing import Final

#: Bits of the capability sets in /proc/PID/status (linux/capability.h).
_BITS: Final = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13}

#: Asks a namespace for the user namespace that owns it (man 2 ioctl_ns).
_NS_GET_USERNS: Final = 0xB701


def missing(*capabilities: str) -> tuple[str, ...]:
    """Return those of the capabilities that this process does not have over its network namespace.

    That is: not in its effective set (man 7 capabilities), or the namespace belongs to somebody else, as with
    `unshare --user` alone. Where that cannot be found out, nothing is claimed to be missing.
    """
    try:
        if not _owns_network():
            return capabilities
        return tuple(name for name in capabilities if not has(name))
    except OSError:
        return ()


def has(capability: str, pid: int | None = None) -> bool:
    """Whether a process (this one, if none is named) has a capability in its own user namespace.

    Raises OSError where that cannot be seen.
    """
    status = Path(f"/proc/{pid or 'self'}/status").read_text()
    effective = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(effective >> _BITS[capability] & 1)


def in_initial_user_namespace() -> bool:
    """Whether user ids are those of the node (man 7 user_namespaces: all of them are mapped to themselves)."""
    try:
        return Path("/proc/self/uid_map").read_text().split() == ["0", "0", str(2**32 - 1)]
    except OSError:  # a kernel without user namespaces
        return True


def _owns_network() -> bool:
    """Whether the network namespace belongs to our user namespace, or one within it."""
    with Path("/proc/self/ns/net").open() as network:
        try:
            os.close(fcntl.ioctl(network, _NS_GET_USERNS))
        except PermissionError:  # the owner is outside our user namespace
            return False
    return True
