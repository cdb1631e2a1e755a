"""Finds out why the xtables lock cannot be taken: who holds it, or what is wrong with its file."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from sidecar.node import proc
from sidecar.node.proc import Process

DEFAULT: Final = Path("/run/xtables.lock")  # iptables/xshared.c, XT_LOCK_NAME


def path(variables: Mapping[str, str] = os.environ) -> Path:
    """Return the path of the lock; the variable is iptables' own (man iptables)."""
    return Path(variables.get("XTABLES_LOCKFILE", DEFAULT))


def held_by(holder: Process | None) -> str:
    """Return in words that a process holds the lock; None stands for one that cannot be seen from here."""
    who = str(holder) if holder else "a process that cannot be seen from here"
    return f"{path()} is held by {who}; iptables commands are waiting for it"


def held() -> str:
    """Return the same of the first process that holds the lock now; nothing if there is none, or it cannot be seen."""
    try:
        return next(map(held_by, proc.holders(path())), "")
    except OSError:
        return ""


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
