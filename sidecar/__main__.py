"""`python -m sidecar`, and the console script."""

import contextlib
import os
import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the program with this process's arguments, and exit."""
    # While the modules load nothing has been touched: Ctrl-C may end that at once, and without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from sidecar import cli  # noqa: PLC0415 - this is the load that the line above is for

    code = cli.main(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # the reader has gone: there is nobody to tell
            stream.flush()
    # The interpreter would first put signal handlers back to the default: a SIGTERM that comes late would then
    # turn a clean end into death by signal. Besides, taking the modules down one by one takes 80 ms.
    os._exit(code)


if __name__ == "__main__":
    main()
