"""Which capabilities this process has: what a failed command is explained with."""

from pathlib import Path
from typing import Final

#: Bits of the capability sets in /proc/PID/status (linux/capability.h).
_BITS: Final = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13}


def missing(*capabilities: str) -> tuple[str, ...]:
    """Return those of the capabilities that are not in this process's effective set (man 7 capabilities).

    Where /proc cannot be read nothing is claimed to be missing.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return ()
    effective = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    return tuple(name for name in capabilities if not effective >> _BITS[name] & 1)
