"""What ends the daemon's sleep: the clock, or a signal."""

import os
import select
import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

_STOP = (signal.SIGTERM, signal.SIGINT)


class Wakeup:
    """Takes over SIGTERM, SIGINT and SIGHUP for as long as its `with` block lasts. Sleeps without waking up.

    The first SIGTERM or SIGINT sets `stopping`, calls `on_stop` and ends the sleep; any further one calls
    `on_interrupt`. SIGHUP ends the sleep.
    """

    def __init__(self, on_stop: Callable[[], None], on_interrupt: Callable[[], None]) -> None:
        self.stopping = False
        self._on_stop = on_stop
        self._on_interrupt = on_interrupt

    def __enter__(self) -> Self:
        # The interpreter writes each signal's number to the pipe, so that a signal which comes just before the
        # sleep begins ends it too.
        self._read_end, self._write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._previous_fd = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._previous = {number: signal.signal(number, self._handle) for number in (*_STOP, signal.SIGHUP)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_fd)
        os.close(self._read_end)
        os.close(self._write_end)

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
