"""What ends the daemon's sleep: the clock, or a signal."""

import os
import select
import signal
from collections.abc import Callable
from types import FrameType

_STOP = (signal.SIGTERM, signal.SIGINT)


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

    def wait(self, seconds: float) -> None:
        """Sleep until the time is up, or a signal comes or came since the last sleep."""
        if select.select([self._read_end], [], [], seconds)[0]:
            os.read(self._read_end, 1024)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number not in _STOP:
            return
        # No exception from here: it would come up anywhere, also where the interpreter cannot but swallow it.
        if self.stopping:
            self._on_interrupt()
        else:
            self.stopping = True
            self._on_stop()
