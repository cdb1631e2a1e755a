"""`python -m sidecar`, and the console script."""

import contextlib
import os
import signal
import sys
from typing import NoReturn

from sidecar.wakeup import SIGNALS


def main() -> NoReturn:
    """Run the program with this process's arguments, and exit."""
    # Signals wait until there is somebody to handle them (wakeup.py). The first process of a container would never
    # see one that came earlier, and Ctrl-C would show a traceback from whatever is being loaded.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it was closed before we were started
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115 - for as long as we live
    from sidecar import cli  # noqa: PLC0415 - this is what takes its time

    code = cli.main(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # the reader has gone: there is nobody to tell
            stream.flush()
    # The interpreter would first put signal handlers back to the default: a SIGTERM that comes late would then
    # turn a clean end into death by signal. Besides, taking the modules down one by one takes 80 ms.
    os._exit(code)


if __name__ == "__main__":
    main()
