"""`python -m sidecar`, and the console script."""

import contextlib
import gc
import os
import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the program with this process's arguments, and exit."""
    gc.disable()  # until all is loaded: there is nothing to collect in it
    # While the modules load nothing has been touched: a signal may end that at once, without a traceback. It takes a
    # handler, as the first process of a container would never see a signal left to its default.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: os._exit(128 + number))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Whoever started us may have told the kernel to reap children by itself: then nobody learns how they ended.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it was closed before we were started
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115 - for as long as we live
    for name in [name for name in os.environ if name.startswith("LOGURU_")]:
        del os.environ[name]  # loguru would read it, and the log is set up by our own flags alone
    from sidecar import cli  # noqa: PLC0415 - signals are to be handled before anything takes its time

    code = cli.main(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # the reader has gone: there is nobody to tell
            stream.flush()
    # The interpreter would first put signal handlers back to the default: a SIGTERM that comes late would then
    # turn a clean end into death by signal. Besides, taking the modules down one by one takes 80 ms.
    os._exit(code)


if __name__ == "__main__":
    main()
