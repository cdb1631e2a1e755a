"""Finds out why the file of the xtables lock cannot be locked, apart from another process holding it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

DEFAULT: Final = Path("/run/xtables.lock")  # iptables/xshared.c, XT_LOCK_NAME


def path(variables: Mapping[str, str] = os.environ) -> Path:
    """Return the path of the lock; the variable is iptables' own (man iptables)."""
    return Path(variables.get("XTABLES_LOCKFILE", DEFAULT))


def problem() -> str | None:
    """Return what is wrong with the file and what to do, or None if it can be locked once nobody else holds it."""
    file = path()
    if file.is_dir():
        return (
            f"{file} is a directory: remove it, and mount it as a file (a hostPath volume of type FileOrCreate, as "
            "one without a type makes a directory)"
        )
    try:
        # As iptables itself opens it (iptables/xshared.c, xtables_lock).
        os.close(os.open(file, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        return (
            f"{file} cannot be opened ({error.strerror}): mount the node's, or set XTABLES_LOCKFILE to a file that "
            "all programs on the node lock"
        )
    return None
