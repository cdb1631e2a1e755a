"""Runs work in a child process, so that the modules it loads go away with the child.

pydantic takes 11 MiB and half of the startup time, and is needed only once. A child loads it while this process loads
the rest, and the daemon stays that much smaller, which speeds up each fork for a command.
"""

import contextlib
import ctypes
import os
import pickle
import signal
import sys
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

#: linux/prctl.h: sets the signal that the kernel sends to this process when its parent is gone (man 2 prctl).
_PR_SET_PDEATHSIG: Final = 1


def begin(work: Callable[[], T]) -> Callable[[], T]:
    """Start the work in a child; return a function that waits for it and returns its result, a plain value.

    Call this before any thread starts. If the child dies, by a bug or a kill, waiting raises ChildProcessError.
    If no child can be started, the work runs in this process.
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
        with os.fdopen(read_end, "rb") as stream:
            answer = stream.read()
        _, status = os.waitpid(child, 0)
        if status or not answer:
            raise ChildProcessError(f"a child process ended with {os.waitstatus_to_exitcode(status)}")
        result: T = pickle.loads(answer)  # noqa: S301 - only from our own child
        return result

    return finish


def _die_with(parent: int) -> None:
    """Make this process end with its parent, however that ends: it might wait for input that never comes."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
