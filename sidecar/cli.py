"""The edge: arguments in, exit code out. What a command word needs is loaded only when it is asked for."""

import contextlib
import gc
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TextIO

from sidecar import PROGRAM, __version__, apart, flags
from sidecar.errors import ConfigError, SidecarError

if TYPE_CHECKING:
    from sidecar.options import Options

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
        return _refuse(line.faults)
    _print(f"{PROGRAM} {__version__}", sys.stdout)
    return 0


def _run(line: flags.Invocation) -> int:
    loading = apart.begin(lambda: _load(line))
    from sidecar import run  # noqa: PLC0415 - this takes a tenth of a second

    # What is loaded by now stays: the garbage collector, off until here, need never look at it again.
    gc.freeze()
    gc.enable()
    try:
        given = loading()
    except ChildProcessError as error:
        _print(f"{PROGRAM}: the settings could not be read: {error}", sys.stderr)
        return SidecarError.exit_code
    return _refuse(given) if isinstance(given, list) else run.run(*given)


def _load(line: flags.Invocation) -> "tuple[Options, list[str]] | list[str]":
    """Return the options and warnings, or the faults; it happens in a process of its own."""
    from sidecar import settings  # noqa: PLC0415 - as above, and only there

    try:
        return settings.load(line)
    except ConfigError as error:
        return list(error.faults)


def _refuse(faults: Sequence[str]) -> int:
    for fault in faults[:MOST_FAULTS]:
        _print(f"{PROGRAM}: {fault}", sys.stderr)
    if (more := len(faults) - MOST_FAULTS) > 0:
        _print(f"{PROGRAM}: and {more} more", sys.stderr)
    return ConfigError.exit_code


def _print(text: str, stream: TextIO) -> None:
    with contextlib.suppress(OSError):  # nobody reads it, or the disk is full: there is nowhere to say so
        print(text, file=stream)
