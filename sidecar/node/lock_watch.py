"""Tells when a program closes the file of the xtables lock: iptables-legacy has then done its work (man 7 inotify).

iptables-legacy locks this file while it changes or reads a table, and closes it at its end; iptables-nft never opens
it. A program that writes legacy's tables without the lock goes unnoticed here.
"""

import contextlib
import ctypes
import os
from typing import Final

from sidecar.node import xtables_lock

# linux/inotify.h
_CLOSE: Final = 0x00000008 | 0x00000010  # after writing, and otherwise
_OPTIONS: Final = os.O_NONBLOCK | os.O_CLOEXEC  # IN_NONBLOCK, IN_CLOEXEC

_MOST_BYTES: Final = 65536  # at a time; an event takes 16

_libc: Final = ctypes.CDLL(None, use_errno=True)


class LockWatch:
    """One inotify descriptor, for one file that may come later or be replaced."""

    def __init__(self) -> None:
        """Raise OSError if the kernel gives no descriptor."""
        self.descriptor: int = _libc.inotify_init1(_OPTIONS)
        if self.descriptor < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._watch = -1
        self.renew()

    def renew(self) -> None:
        """Watch the file that is there now, and no other; if it is watched already, that changes nothing."""
        watch = _libc.inotify_add_watch(self.descriptor, os.fsencode(xtables_lock.path()), _CLOSE)
        if self._watch not in (watch, -1):
            _libc.inotify_rm_watch(self.descriptor, self._watch)  # fails if its file is gone
        self._watch = watch

    def forget(self) -> None:
        """Discard what has arrived so far."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self.descriptor, _MOST_BYTES):
                pass
