"""Ends the daemon's sleep: by the clock, a signal, or an event on the node."""

import enum
import os
import select
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Final

from sidecar.node.events import Events

_STOP: Final = (signal.SIGTERM, signal.SIGINT)

_LONGEST_POLL: Final = 2**31 - 1  # milliseconds, the most that poll(2) takes. A check every 24 days does no harm


class Woken(enum.Enum):
    """What ended a sleep."""

    BY_CLOCK = enum.auto()
    BY_SIGNAL = enum.auto()
    BY_EVENT = enum.auto()


class Wakeup:
    """Handles SIGTERM, SIGINT and SIGHUP, and sleeps without waking up in between.

    The first SIGTERM or SIGINT sets `stopping`, calls `on_stop` and ends the sleep; any further one calls
    `on_interrupt`. SIGHUP ends the sleep. The handlers stay until the process ends: a signal that comes after the
    work is done must not turn an orderly exit into death by that signal.
    """

    def __init__(
        self,
        wakeup_fd: int,
        on_stop: Callable[[], None],
        on_interrupt: Callable[[], None],
        on_child: Callable[[], None] | None = None,
    ) -> None:
        """`wakeup_fd` is the end of a signal pipe that others read as well; `on_child` is called when a child ends."""
        self.stopping = False
        self._on_stop = on_stop
        self._on_interrupt = on_interrupt
        self._wakeup_fd = wakeup_fd
        self._has_come = False
        for number in (*_STOP, signal.SIGHUP):
            signal.signal(number, self._handle)
        if on_child:
            signal.signal(signal.SIGCHLD, lambda _number, _frame: on_child())
            on_child()

    def wait(self, seconds: float, events: Events | None = None) -> Woken:
        """Sleep until a signal comes (or came since the last sleep), a relevant event comes, or `seconds` pass."""
        poll = select.poll()
        for descriptor in (self._wakeup_fd, *(events.descriptors if events else ())):
            poll.register(descriptor, select.POLLIN)
        now = time.monotonic()
        deadline, probed = now + seconds, now
        while not self._has_come:
            interval = events.probe_interval if events else None
            # By the clock: messages that do not concern us may come all the time, and end each poll.
            due = deadline if interval is None else min(deadline, probed + interval)
            ready = {descriptor for descriptor, _ in poll.poll(min(max(0.0, due - now) * 1000, _LONGEST_POLL))}
            if self._wakeup_fd in ready:
                os.read(self._wakeup_fd, 1024)
                continue  # the handler has run by now: it says whether this signal ends the sleep
            concerned = [events.arrived(descriptor) for descriptor in ready] if events else []
            if any(concerned):
                return Woken.BY_EVENT
            now = time.monotonic()
            if events and interval is not None and now >= probed + interval:
                probed = now
                if events.probe():
                    return Woken.BY_EVENT
            if now >= deadline:
                return Woken.BY_CLOCK
        self._has_come = False
        return Woken.BY_SIGNAL

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._has_come = True
        if number not in _STOP:
            return
        # Raise nothing here: the exception could surface anywhere, even where the interpreter must swallow it.
        if self.stopping:
            self._on_interrupt()
        else:
            self.stopping = True
            self._on_stop()
