"""What ends the daemon's sleep: the clock, or a signal."""

import os
import select
import signal
from collections.abc import Callable
from types import FrameType
from typing import Final

_STOP: Final = (signal.SIGTERM, signal.SIGINT)

#: Milliseconds; poll(2) takes no more. To look once in 24 days does no harm.
_LONGEST_POLL: Final = 2**31 - 1


class Wakeup:
    """Takes over SIGTERM, SIGINT and SIGHUP, and sleeps without waking up.

    The first SIGTERM or SIGINT sets `stopping`, calls `on_stop` and ends the sleep; any further one calls
    `on_interrupt`. SIGHUP ends the sleep. It stays so to the end of the process: a signal that comes when all is
    done must not turn an orderly end into death by that signal.
    """

    def __init__(self, on_stop: Callable[[], None], on_interrupt: Callable[[], None]) -> None:
        self.stopping = False
        self._on_stop = on_stop
        self._on_interrupt = on_interrupt
        # The interpreter writes each signal's number to the pipe, so that a signal which comes just before the
        # sleep begins ends it too.
        self._read_end, self._write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        for number in (*_STOP, signal.SIGHUP):
            signal.signal(number, self._handle)
        self._poll = select.poll()
        self._poll.register(self._read_end, select.POLLIN)

    def wait(self, seconds: float) -> bool:
        """Sleep until a signal comes, or came since the last sleep (True), or until the time is up (False)."""
        if not self._poll.poll(min(seconds * 1000, _LONGEST_POLL)):
            return False
        os.read(self._read_end, 1024)
        return True

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number not in _STOP:
            return
        # No exception from here: it would come up anywhere, also where the interpreter cannot but swallow it.
        if self.stopping:
            self._on_interrupt()
        else:
            self.stopping = True
            self._on_stop()
