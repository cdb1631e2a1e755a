"""The command line interface: arguments in, text and exit code out. Loads only what the command needs."""

import contextlib
import gc
import io
import os
import select
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from sidecar import PROGRAM, __version__
from sidecar.errors import ConfigError, Interrupted, NodeError, SidecarError, reason
from sidecar.settings import in_child, invocation, usage
from sidecar.settings.invocation import Invocation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sidecar.commands.output import Answer, Terminal
    from sidecar.settings.options import Loaded

MOST_FAULTS: Final = 10  # how many faults are printed before the rest is counted


def main(argv: Sequence[str]) -> int:
    """Run the program with these arguments (without its own name) and return its exit code."""
    line = invocation.parse(argv)
    if line.command == "help":
        _print(usage.usage())
        return 0
    if line.command != "version":
        return _run(line)
    if line.faults:
        return _refuse(line.faults)
    _print(f"{PROGRAM} {__version__}")
    return 0


def _run(line: Invocation) -> int:
    loading = in_child.begin(lambda: _load(line))
    if line.command == "run":
        from sidecar.commands import run  # noqa: PLC0415 - this takes a tenth of a second
    else:
        _commands()  # loaded while the child loads
    # Everything loaded so far stays: the garbage collector, off until here, need never scan it again.
    gc.freeze()
    gc.enable()
    try:
        loaded = loading()
    except ChildProcessError as error:
        _complain(f"the settings could not be read: {error}")
        return SidecarError.exit_code
    if isinstance(loaded, list):
        return _refuse(loaded)
    from sidecar.log.setup import end_logging  # noqa: PLC0415 - as above

    try:
        return run.run(loaded.options, loaded.warnings) if line.command == "run" else _answer(line.command, loaded)
    finally:
        end_logging()


def _load(line: Invocation) -> "Loaded | list[str]":
    """Return the settings, or what is wrong with them; this runs in the child process."""
    from sidecar.commands import inherited  # noqa: PLC0415 - as above, and only in the child

    try:
        return inherited.load(line)
    except ConfigError as error:
        return list(error.faults)


def _answer(command: str, loaded: "Loaded") -> int:
    """Print a command's answers, and return its exit code."""
    from sidecar.commands.output import Terminal  # noqa: PLC0415 - as above

    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr] # it is a TextIOWrapper here
    is_tty = sys.stdout.isatty()
    terminal = Terminal(is_tty, is_tty and "NO_COLOR" not in os.environ, sys.stdout.encoding or "ascii", _is_read)
    code = 0
    try:
        for text, code in _commands()[command](loaded, terminal):  # noqa: B007 - the last one counts
            with _ended_by_signals(0 if loaded.options.watch else SidecarError.exit_code):
                print(text, flush=True)
    except BrokenPipeError:  # nobody reads the output any more
        return code
    except Interrupted:
        return SidecarError.exit_code
    except OSError as error:
        _complain(f"cannot continue: {reason(error)}")
        return NodeError.exit_code
    return 0 if loaded.options.watch else code  # --watch ends by a signal, which is a success


@contextlib.contextmanager
def _ended_by_signals(code: int) -> "Iterator[None]":
    """Let a signal end the process at once: the reader of a pipe, or Ctrl-S, may keep us waiting for ever."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: os._exit(code)) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def _commands() -> "dict[str, Callable[[Loaded, Terminal], Iterator[Answer]]]":
    """Load the commands; return the function for each command word that yields its answers."""
    from sidecar.commands import cleanup, doctor, plan, status  # noqa: PLC0415 - this takes a tenth of a second

    return {"status": status.answers, "plan": plan.answers, "cleanup": cleanup.answers, "doctor": doctor.answers}


def _is_read() -> bool:
    """Whether standard output still has a reader: the other end of a pipe may be gone."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return not poll.poll(0)


def _refuse(faults: Sequence[str]) -> int:
    more = len(faults) - MOST_FAULTS
    _complain(*faults[:MOST_FAULTS], *([f"and {more} more"] if more > 0 else []))
    return ConfigError.exit_code


def _complain(*lines: str) -> None:
    """Print lines to standard error, without waiting for long."""
    from sidecar.log.outlet import Patience, stderr_outlet  # noqa: PLC0415 - loaded only if needed

    text = "".join(f"{PROGRAM}: {line}\n" for line in lines)
    try:
        stderr_outlet(Patience()).write(text.encode(sys.stderr.encoding, errors="backslashreplace"))
    except io.UnsupportedOperation:  # it is not a file but an object, as in tests
        sys.stderr.write(text)
    except OSError:  # nobody reads it, or the disk is full: there is nowhere to report it
        return


def _print(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it, or the disk is full: there is nowhere to report it
        print(text)
