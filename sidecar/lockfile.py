"""The xtables lock's file: why it can't be locked, if that is not because somebody holds it."""

import os
from pathlib import Path
from typing import Final

from sidecar.command import ENVIRONMENT

#: iptables/xshared.c, XT_LOCK_NAME; the variable is iptables' own (man iptables).
PATH: Final = Path(ENVIRONMENT.get("XTABLES_LOCKFILE", "/run/xtables.lock"))


def problem(path: Path = PATH) -> str | None:
    """Return what is wrong with the file and what to do, or None: it can be locked, once nobody else does."""
    if path.is_dir():
        return (
            f"{path} is a directory: remove it, and mount it as a file (a hostPath volume of type FileOrCreate, as "
            "one without a type makes a directory)"
        )
    try:
        # As iptables opens it itself (iptables/xshared.c, xtables_lock).
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        return (
            f"{path} cannot be opened ({error.strerror}): mount the node's, or set XTABLES_LOCKFILE to a file that "
            "all programs on the node lock"
        )
    return None
