"""Writes to a pipe, a terminal or a socket, and never waits for long: the reader may have stopped for good.

The descriptor is shared with other processes, such as the shell that started this one. O_NONBLOCK would count for all
of them (man 2 open, open file description), so it is never set there: a pipe or terminal is opened once more, a socket
takes the flag with each call, and anything else is asked by poll(2) before each piece.
"""

import contextlib
import os
import select
import socket
import stat
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Final

LONGEST_LOOK: Final = 0.2  # seconds that all lines of one pass may wait together

#: Bytes. A pipe that poll(2) calls writable takes so many at once (linux/limits.h, PIPE_BUF).
_PIECE: Final = select.PIPE_BUF

#: The device that makes a new terminal each time it is opened (linux/Documentation/admin-guide/devices.txt).
_PTMX: Final = os.makedev(5, 2)


class Patience:
    """The time that is left to wait for the reader of the log."""

    def __init__(self) -> None:
        self._left = LONGEST_LOOK

    def renew(self) -> None:
        """Start a new pass."""
        self._left = LONGEST_LOOK

    def wait(self, descriptor: int, event: int) -> bool:
        """Wait for this event on a descriptor while there is time; return whether it came."""
        started = time.monotonic()
        is_ready = has_event(descriptor, event, max(0.0, self._left))
        self._left -= time.monotonic() - started
        return is_ready


class Outlet:
    """Takes whole messages, and drops one if the reader takes none of it in time."""

    def __init__(self, descriptor: int, patience: Patience, send: Callable[[bytes], int]) -> None:
        """`send` writes a piece to the descriptor, or raises BlockingIOError rather than wait (`_sender`)."""
        self._descriptor = descriptor
        self._send = send
        self._patience = patience
        self._rest = b""  # the end of a message whose beginning was written: it goes out before anything else
        self._is_stuck = False

    def write(self, message: bytes) -> bool:
        """Return whether the message was taken, at least its beginning. Raises OSError, such as for a broken pipe."""
        data = self._rest + message
        while data and self._is_writable():
            try:
                data = data[self._send(data[:_PIECE]) :]
            except BlockingIOError:  # another process filled it in this moment
                self._is_stuck = True
            except OSError:
                self._rest = b""
                raise
        is_taken = len(data) < len(message) or not message
        self._rest = data if is_taken else data[: len(data) - len(message)]
        return is_taken

    def is_ready(self) -> bool:
        """Whether a message would be taken now; what was begun before is finished first."""
        with contextlib.suppress(OSError):
            self.write(b"")
            return not self._rest and has_event(self._descriptor, select.POLLOUT, 0)
        return False

    def _is_writable(self) -> bool:
        """Wait while there is time, unless the last wait was in vain."""
        if self._is_stuck:
            self._is_stuck = not has_event(self._descriptor, select.POLLOUT, 0)
        else:
            self._is_stuck = not self._patience.wait(self._descriptor, select.POLLOUT)
        return not self._is_stuck


def has_event(descriptor: int, event: int, seconds: float) -> bool:
    """Wait until a descriptor has an event, or an error to report."""
    poll = select.poll()
    poll.register(descriptor, event)
    return bool(poll.poll(seconds * 1000))


def stderr_outlet(patience: Patience) -> Outlet:
    """Return what writes to standard error."""
    descriptor, send = _sender(sys.stderr.fileno())
    return Outlet(descriptor, patience, send)


def _sender(descriptor: int) -> tuple[int, Callable[[bytes], int]]:
    """Return a descriptor for poll(2), and what writes a piece: it raises BlockingIOError rather than block."""
    with contextlib.suppress(OSError):
        status = os.fstat(descriptor)
        if stat.S_ISSOCK(status.st_mode):
            connection = socket.socket(fileno=os.dup(descriptor))
            return connection.fileno(), lambda data: connection.send(data, socket.MSG_DONTWAIT)
        is_terminal = os.isatty(descriptor) and status.st_rdev != _PTMX
        if stat.S_ISFIFO(status.st_mode) or is_terminal:
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            own = os.open(f"/proc/self/fd/{descriptor}", flags)
            return own, partial(os.write, own)
    # It belongs to another user, or there is no /proc. If several processes write here, one of them may fill it between
    # the poll and the write.
    return descriptor, partial(os.write, descriptor)
