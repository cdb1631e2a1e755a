"""Lets a signal end a wait in poll(2)."""

import contextlib
import os
import signal


def signal_pipe() -> tuple[int, int]:
    """Return a pipe to which the interpreter writes at each signal that has a handler, before it calls the handler.

    So a signal in the instant before poll(2) is not lost. By the time that the pipe has been read, the handler has run.
    """
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    with contextlib.suppress(ValueError):  # only the main thread handles signals
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    return read_end, write_end
