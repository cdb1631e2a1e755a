"""Writes log files in a process of its own, as a file system that hangs would take this one along.

Opening or writing a regular file cannot be bounded in time: a process that waits for a frozen or vanished file system
does not even die by SIGKILL. So lines go through a pipe to a child, which answers each one. What the child has not
taken when the pipe is full is dropped.
"""

import contextlib
import ctypes
import json
import os
import pickle
import select
import signal
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Final, Generic, NoReturn, Protocol, TypeVar

from sidecar.log.outlet import Outlet, Patience, has_event

T = TypeVar("T")

NAME: Final = "sidecar-log"  # the child's name, as `ps` shows it: that process is not another sidecar
FAREWELL: Final = 1.0  # seconds to wait at the end for the next line to be written
_PR_SET_NAME: Final = 15  # linux/prctl.h (man 2 prctl)


class Target(Protocol):
    """A file to append lines to."""

    refused: OSError | None  # why the line went to another directory

    @property
    def instead(self) -> str:
        """That directory."""

    def append(self, line: str, time: datetime) -> None:
        """Write the line. Raises OSError."""


class Descriptor:
    """A file that is open already: standard error, where it is a regular file."""

    refused: OSError | None = None
    instead = ""

    def __init__(self, number: int) -> None:
        self.number = number

    def append(self, line: str, _: datetime) -> None:
        data = line.encode(errors="backslashreplace")
        while data:
            data = data[os.write(self.number, data) :]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a line in one file: `reason` is empty if all went well."""

    target: int
    file: str = ""
    reason: str = ""
    instead: str = ""  # the directory that took the line; empty if none did


class Writer(Generic[T]):
    """Sends lines to the child, and remembers what it has not answered yet: each with a tag of the caller."""

    def __init__(self, targets: Sequence[Target], patience: Patience) -> None:
        self._targets = targets
        self._patience = patience
        self._outlet: Outlet | None = None
        self._child = self._requests = self._answers = -1
        self._read = b""
        self._sent: deque[tuple[Sequence[int], T]] = deque()

    def write(self, targets: Sequence[int], line: str, time: datetime, tag: T) -> bool:
        """Have the line written to these targets; return whether the child will do so, or has a place for it."""
        try:
            if self._outlet is None or not self._outlet.write(pickle.dumps((targets, line, time))):
                return False
        except OSError:  # somebody killed it
            if not self._sent:
                self._stop()
            return False
        self._sent.append((targets, tag))
        return True

    def outcomes(self) -> Iterator[tuple[T, list[Outcome]]]:
        """Yield what became of the lines that the child has answered; wait for it while there is time."""
        while self._sent and self._patience.wait(self._answers, select.POLLIN):
            yield from self._read_answers()

    def finish(self) -> Iterator[tuple[T, list[Outcome]]]:
        """Wait for the child to write the rest, for as long as it gets on."""
        while self._sent and has_event(self._answers, select.POLLIN, FAREWELL):
            yield from self._read_answers()

    def is_ready(self) -> bool:
        """Whether the child would take a line now."""
        return self._outlet is not None and self._outlet.is_ready()

    def _read_answers(self) -> Iterator[tuple[T, list[Outcome]]]:
        read = os.read(self._answers, 65536)
        if not read:  # somebody killed it
            self._stop()
            while self._sent:
                targets, tag = self._sent.popleft()
                yield tag, [Outcome(each, NAME, "the process that writes it has ended") for each in targets]
            return
        *answers, self._read = (self._read + read).split(b"\n")
        for answer in answers:
            yield self._sent.popleft()[1], [Outcome(*each) for each in json.loads(answer)]

    def start(self) -> None:
        """Start the child, unless it runs; where that fails, no line is taken until the next try.

        Not while a line is logged: loguru lets no process fork then.
        """
        if self._outlet is None:
            with contextlib.suppress(OSError):  # too many processes or descriptors
                self._start()

    def _start(self) -> None:
        with contextlib.ExitStack() as opened:
            requests, self._requests = _pipe(opened)
            self._answers, answers = _pipe(opened)
            self._child = os.fork()
            opened.pop_all()
        if not self._child:
            # Its own copies of our ends would keep it from seeing that we have ended.
            os.close(self._requests)
            os.close(self._answers)
            _serve(self._targets, requests, answers)
        os.close(requests)
        os.close(answers)
        os.set_blocking(self._requests, False)
        self._outlet = Outlet(self._requests, self._patience, partial(os.write, self._requests))

    def _stop(self) -> None:
        """Forget a child that has ended."""
        if self._outlet is not None:
            self._outlet, self._read = None, b""
            os.close(self._requests)
            os.close(self._answers)
            with contextlib.suppress(ChildProcessError):  # the handler of SIGCHLD was first
                os.waitpid(self._child, 0)


def _pipe(opened: contextlib.ExitStack) -> tuple[int, int]:
    ends = os.pipe()
    for end in ends:
        opened.callback(os.close, end)
    return ends


def _serve(targets: Sequence[Target], requests: int, answers: int) -> NoReturn:
    """Write lines until the other end is closed: this is the child."""
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the last lines are yet to come
        ctypes.CDLL(None).prctl(_PR_SET_NAME, NAME.encode())
        _close_all_but(requests, answers, *(each.number for each in targets if isinstance(each, Descriptor)))
        with os.fdopen(requests, "rb") as lines:
            while True:
                numbers, line, time = pickle.load(lines)  # noqa: S301 - only from our own parent
                outcomes = [_append(targets[number], number, line, time) for number in numbers]
                os.write(answers, json.dumps(outcomes).encode() + b"\n")
    except (EOFError, pickle.UnpicklingError, BrokenPipeError):  # the parent has ended
        os._exit(0)
    except BaseException:  # noqa: BLE001 - the child must not go on in the parent's code
        sys.excepthook(*sys.exc_info())
        os._exit(1)


def _append(target: Target, number: int, line: str, time: datetime) -> tuple[int, str, str, str]:
    """Return the fields of the Outcome."""
    try:
        target.append(line, time)
    except OSError as error:
        return number, str(error.filename), error.strerror or str(error), ""
    if target.refused:
        return number, str(target.refused.filename), target.refused.strerror or "", target.instead
    return number, "", "", ""


def _close_all_but(*needed: int) -> None:
    """Close what others read until its end: this process may outlive its parent."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in {0, 1, 2} - set(needed):
        os.dup2(null, descriptor)
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - only the names matter
            if int(name) not in (0, 1, 2, *needed):
                with contextlib.suppress(OSError):
                    os.close(int(name))
