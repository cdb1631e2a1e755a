"""The entry point of `python -m sidecar` and of the console script."""

import contextlib
import gc
import os
import signal
import sys
import time
from typing import Final, NoReturn

#: Seconds. Python's datetime takes no time zone that is further from UTC, but TZ does (man 3 tzset).
_DAY: Final = 24 * 3600


def main() -> NoReturn:
    """Run the program with this process's arguments, and exit."""
    gc.disable()  # until everything is loaded: there is no garbage yet
    # While the modules load, nothing has been changed: a signal may end the process at once, without a traceback. That
    # takes a handler, as the first process of a container never gets a signal whose action is the default.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: os._exit(128 + number))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # The parent may have set SIGCHLD to be ignored: the kernel would reap our children, and we could not read how they
    # ended.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # The parent may have blocked signals, and all that it starts inherits that: we would never see SIGTERM, nor would
    # iptables see the SIGALRM that ends its wait for the lock.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it was closed before this process started
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115 - open until the process ends
    for name in [name for name in os.environ if name.startswith("LOGURU_")]:
        del os.environ[name]  # loguru would read it, but only our own flags set up the log
    if max(abs(time.timezone), abs(time.altzone)) >= _DAY:
        os.environ["TZ"] = "UTC"  # as for a time zone that the C library does not know
        time.tzset()
    from sidecar import cli  # noqa: PLC0415 - handle signals before the slow imports

    code = cli.main(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # the reader has gone: there is nobody to report it to
            stream.flush()
    # The interpreter would first reset signal handlers to the default: a late SIGTERM would then turn a clean exit into
    # death by signal. Besides, tearing down the modules one by one takes 80 ms.
    os._exit(code)


if __name__ == "__main__":
    main()
