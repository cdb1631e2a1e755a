"""The edge: arguments in, exit code out. What a command word needs is loaded only when it is asked for."""

import contextlib
import gc
import sys
from collections.abc import Sequence
from typing import TextIO

from sidecar import PROGRAM, __version__, flags
from sidecar.errors import ConfigError


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


def _run(line: flags.CommandLine) -> int:
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
    for fault in error.faults:
        _print(f"{PROGRAM}: {fault}", sys.stderr)
    return error.exit_code


def _print(text: str, stream: TextIO) -> None:
    with contextlib.suppress(OSError):  # nobody reads it, or the disk is full: there is nowhere to say so
        print(text, file=stream)
