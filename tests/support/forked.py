"""Work in a forked child of the tests, in another namespace, as if it had been started there.

What it saves is the interpreter and its imports: 0.3 s of CPU a start. What stays real: the process, its signals, its
pipes, its exit code. Not real are its command line and environment as /proc shows them, and what is in its memory.
"""

import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Final, NoReturn

#: What Popen is to execute, had the child not gone its own way before.
NEVER_EXECUTED: Final = "forked"

# linux/sched.h
_NEW_MOUNTS: Final = 0x00020000
_NEW_USER: Final = 0x10000000
_NEW_NETWORK: Final = 0x40000000

#: linux/prctl.h (man 2 prctl)
_PR_SET_PDEATHSIG: Final = 1

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def become(namespace: int, env: Mapping[str, str], work: Callable[[], object]) -> NoReturn:
    """Do the work in the namespace of this pidfd, and exit. For Popen's preexec_fn: the standard streams are pipes.

    There are no other threads here, and never will the parent's code run on.
    """
    try:
        _enter(namespace)
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # nothing outlives the tests
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # among them what Popen waits for
        _forget_the_tests(env)
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - whatever it is, the parent's code must not go on in here
        sys.excepthook(*sys.exc_info())
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _enter(namespace: int) -> None:
    """Enter network and mounts, and for an ordinary user the user namespace (man 2 setns: a pidfd names them all)."""
    kinds = _NEW_MOUNTS | _NEW_NETWORK | (_NEW_USER if os.geteuid() else 0)
    if _LIBC.setns(namespace, kinds):
        raise OSError(ctypes.get_errno(), "setns")


def _forget_the_tests(env: Mapping[str, str]) -> None:
    """Put back what pytest has changed of a new interpreter's state, and what depends on the environment."""
    faulthandler.disable()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    tempfile.tempdir = None
    sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace")
