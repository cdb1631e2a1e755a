"""Work in a child process: what it has to load for that goes away with it.

pydantic takes 11 MiB and half of the time of a start, and is needed once. In a child it loads while this process loads
the rest, and the daemon stays smaller by as much; every command that it starts, by a fork, is quicker for that.
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

#: linux/prctl.h: which signal the kernel sends to this process when its parent is gone (man 2 prctl).
_PR_SET_PDEATHSIG: Final = 1


def begin(work: Callable[[], T]) -> Callable[[], T]:
    """Start the work in a child; return what waits for its end and returns its result, a plain value.

    To be called before there are threads. If the child dies, by a bug or a kill, waiting raises ChildProcessError.
    Where no child is to be had, the work is done here.
    """
    parent = os.getpid()
    try:
        read_end, write_end = os.pipe()
        child = os.fork()
    except OSError:  # too many files or processes; whoever runs the first command tells of it, and tries again
        return work
    if not child:
        try:
            os.close(read_end)
            _die_with(parent)
            answer = pickle.dumps(work())
            with contextlib.suppress(BrokenPipeError), os.fdopen(write_end, "wb") as stream:
                stream.write(answer)
            os._exit(0)
        except BaseException:  # noqa: BLE001 - nothing of the parent's code may run on in here
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    os.close(write_end)

    def finish() -> T:
        with os.fdopen(read_end, "rb") as stream:
            answer = stream.read()
        _, status = os.waitpid(child, 0)
        if status or not answer:
            raise ChildProcessError(f"a child process ended with {os.waitstatus_to_exitcode(status)}")
        result: T = pickle.loads(answer)  # noqa: S301 - from nobody but our own child
        return result

    return finish


def _die_with(parent: int) -> None:
    """End with the parent, however that ends: what this process waits for may never come."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
