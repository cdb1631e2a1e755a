"""The edge: arguments in, exit code out. What a command word needs is loaded only when it is asked for."""

import contextlib
import gc
import sys
from collections.abc import Sequence
from typing import Final, TextIO

from sidecar import PROGRAM, __version__, flags
from sidecar.errors import ConfigError

#: How many faults are told before the rest is counted.
MOST_FAULTS: Final = 10


def main(argv: Sequence[str]) -> int:
    """Run the program with these arguments (without its own name) and return its exit code."""
    line = flags.parse(argv)
    if line.command == "help":
        _print(flags.usage(), sys.stdout)
        return 0
    if line.command != "version":
        return _run(line)
    if line.faults:
        return _refuse(ConfigError(line.faults))
    _print(f"{PROGRAM} {__version__}", sys.stdout)
    return 0


def _run(line: flags.Invocation) -> int:
    from sidecar import run, settings  # noqa: PLC0415 - this takes a tenth of a second

    # What is loaded by now stays: the garbage collector, off until here, need never look at it again.
    gc.freeze()
    gc.enable()
    try:
        given, warnings = settings.load(line)
    except ConfigError as error:
        return _refuse(error)
    return run.run(given, warnings)


def _refuse(error: ConfigError) -> int:
    for fault in error.faults[:MOST_FAULTS]:
        _print(f"{PROGRAM}: {fault}", sys.stderr)
    if (more := len(error.faults) - MOST_FAULTS) > 0:
        _print(f"{PROGRAM}: and {more} more", sys.stderr)
    return error.exit_code


def _print(text: str, stream: TextIO) -> None:
    with contextlib.suppress(OSError):  # nobody reads it, or the disk is full: there is nowhere to say so
        print(text, file=stream)
