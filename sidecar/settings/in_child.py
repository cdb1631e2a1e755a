"""Runs work in a child process, so that the modules it loads go away with the child.

pydantic takes 11 MiB and half of the startup time, and is needed only once. A child loads it while this process loads
the rest, and the daemon stays that much smaller, which speeds up each fork for a command.
"""

import contextlib
import ctypes
import os
import pickle
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

#: Seconds that the work may take, and seconds between two looks at signals.
PATIENCE: Final = 60.0
PAUSE: Final = 0.1

#: linux/prctl.h: sets the signal that the kernel sends to this process when its parent is gone (man 2 prctl).
_PR_SET_PDEATHSIG: Final = 1


def begin(work: Callable[[], T]) -> Callable[[], T]:
    """Start the work in a child; return a function that waits for it and returns its result, a plain value.

    Call this before any thread starts. If the child dies, by a bug or a kill, or does not end, waiting raises
    ChildProcessError. If no child can be started, the work runs in this process.
    """
    parent = os.getpid()
    try:
        read_end, write_end = os.pipe()
        child = os.fork()
    except OSError:  # too many files or processes; the first command reports it, and tries again
        return work
    if not child:
        try:
            os.close(read_end)
            _die_with(parent)
            answer = pickle.dumps(work())
            with contextlib.suppress(BrokenPipeError), os.fdopen(write_end, "wb") as stream:
                stream.write(answer)
            os._exit(0)
        except BaseException:  # noqa: BLE001 - the child must not go on in the parent's code
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    os.close(write_end)

    def finish() -> T:
        answer = _read(read_end, child)
        _, status = os.waitpid(child, 0)
        if status or not answer:
            raise ChildProcessError(f"a child process ended with {os.waitstatus_to_exitcode(status)}")
        result: T = pickle.loads(answer)  # noqa: S301 - only from our own child
        return result

    return finish


def _read(descriptor: int, child: int) -> bytes:
    """Return what the child writes until it ends. Raises ChildProcessError after PATIENCE seconds."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + PATIENCE
    answer = b""
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        while True:
            # Short waits: a signal that comes just before one begins is handled after it.
            if poll.poll(PAUSE * 1000):
                part = stream.read(65536)
                if not part:
                    return answer
                answer += part
            elif time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)  # it is not waited for: in state D it would not die
                raise ChildProcessError(f"no answer for {PATIENCE:.0f} s: is --env-file on a file system that hangs?")


def _die_with(parent: int) -> None:
    """Make this process end with its parent, however that ends: it might wait for input that never comes."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
