"""The xtables lock: who holds it, what is wrong with its file, and when a program has done with it.

iptables-legacy locks this file while it changes or reads a table, and closes it at its end; iptables-nft never opens
it. A program that writes legacy's tables without the lock goes unnoticed here.
"""

import contextlib
import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from sidecar.node import proc
from sidecar.node.proc import Process

DEFAULT: Final = Path("/run/xtables.lock")  # iptables/xshared.c, XT_LOCK_NAME

# linux/inotify.h
_CLOSE: Final = 0x00000008 | 0x00000010  # after writing, and otherwise
_OPTIONS: Final = os.O_NONBLOCK | os.O_CLOEXEC  # IN_NONBLOCK, IN_CLOEXEC

_MOST_BYTES: Final = 65536  # at a time; an event takes 16

_libc: Final = ctypes.CDLL(None, use_errno=True)


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


class LockWatch:
    """Becomes readable when a program closes the file (man 7 inotify), which may come later or be replaced."""

    def __init__(self) -> None:
        """Raise OSError if the kernel gives no descriptor."""
        self.descriptor: int = _libc.inotify_init1(_OPTIONS)
        if self.descriptor < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._watch = -1
        self.renew()

    def renew(self) -> None:
        """Watch the file that is there now, and no other; if it is watched already, that changes nothing."""
        watch = _libc.inotify_add_watch(self.descriptor, os.fsencode(path()), _CLOSE)
        if self._watch not in (watch, -1):
            _libc.inotify_rm_watch(self.descriptor, self._watch)  # fails if its file is gone
        self._watch = watch

    def forget(self) -> None:
        """Discard what has arrived so far."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self.descriptor, _MOST_BYTES):
                pass
