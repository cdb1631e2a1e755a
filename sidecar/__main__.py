"""`python -m sidecar`, and the console script."""

import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the program with this process's arguments, and exit."""
    # While the modules load nothing has been touched: Ctrl-C may end that at once, and without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from sidecar import cli  # noqa: PLC0415 - this is the load that the line above is for

    sys.exit(cli.main(sys.argv[1:]))


if __name__ == "__main__":
    main()
