"""The command line interface: arguments in, text and exit code out. Loads only what the command needs."""

import contextlib
import gc
import importlib
import io
import os
import select
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, cast

from sidecar import PROGRAM, __version__
from sidecar.commands.output import as_json
from sidecar.errors import ConfigError, Interrupted, NodeError, SidecarError, reason
from sidecar.settings import in_child, invocation, usage
from sidecar.settings.invocation import Invocation
from sidecar.settings.options import FLAGS, ON_A_NODE
from sidecar.text import quoted, visible, width

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sidecar.commands.output import Answer, Terminal
    from sidecar.settings.options import Loaded

MOST_FAULTS: Final = 10  # how many faults are printed before the rest is counted


def main(argv: Sequence[str]) -> int:
    """Run the program with these arguments (without its own name) and return its exit code."""
    line = invocation.parse(argv)
    if line.command in ON_A_NODE:
        return _run(line, [] if argv else ["for the commands and flags, see --help"])
    if line.faults:
        return _refuse(line, line.faults)
    if line.command == "help":
        _print(usage.usage("" if line.topic == "help" else line.topic, width(sys.stdout)))
    elif line.command == "completion":
        from sidecar.settings import completion  # noqa: PLC0415 - loaded only if needed

        _print(completion.script(line.topic))
    else:
        return _print_version(line)
    return 0


def _print_version(line: Invocation) -> int:
    output = _output(line)
    try:
        FLAGS["output"].check(output)
    except ValueError as error:
        origin = FLAGS["output"].spelled if "output" in line.values else FLAGS["output"].variable
        return _refuse(line, [f"{origin}={quoted(output)}: {error}"])
    answer = {"schema": "version/v1", "exit": 0, "version": __version__}
    _print(as_json(answer) if output == "json" else f"{PROGRAM} {__version__}")
    return 0


def _output(line: Invocation) -> str:
    """Return the format that the answer should have, as typed or as the environment says."""
    output = FLAGS["output"]
    if line.command not in (*output.commands, "unknown"):
        return "text"
    return line.values.get("output", [os.environ.get(output.variable) or "text"])[-1]


def _run(line: Invocation, hints: Sequence[str]) -> int:
    """Run a command on the node; `hints` are printed if the settings are wrong."""
    loading = in_child.begin(lambda: _load(line))
    if line.command == "run":
        from sidecar.commands import run  # noqa: PLC0415 - this takes a tenth of a second
    else:
        _answers(line.command)  # loaded while the child loads
    # Everything loaded so far stays: the garbage collector, off until here, need never scan it again.
    gc.freeze()
    gc.enable()
    try:
        loaded = loading()
    except ChildProcessError as error:
        return _fail(line, SidecarError.exit_code, [f"the settings could not be read: {error}"])
    if isinstance(loaded, list):
        return _refuse(line, [*loaded, *hints])
    from sidecar.log.setup import end_logging  # noqa: PLC0415 - as above

    try:
        return run.run(loaded.options, loaded.warnings) if line.command == "run" else _answer(line, loaded)
    finally:
        end_logging()


def _load(line: Invocation) -> "Loaded | list[str]":
    """Return the settings, or what is wrong with them; this runs in the child process."""
    from sidecar.commands import inherited  # noqa: PLC0415 - as above, and only in the child

    try:
        return inherited.load(line)
    except ConfigError as error:
        return list(error.faults)


def _answer(line: Invocation, loaded: "Loaded") -> int:
    """Print a command's answers, and return its exit code."""
    from sidecar.commands.output import Terminal  # noqa: PLC0415 - as above

    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr] # it is a TextIOWrapper here
    terminal = Terminal.of(sys.stdout, os.environ, _is_read)
    code = 0
    try:
        for text, code in _answers(line.command)(loaded, terminal):  # noqa: B007 - the last one counts
            with _ended_by_signals(0 if loaded.options.watch else SidecarError.exit_code):
                print(text, flush=True)
    except BrokenPipeError:  # nobody reads the output any more
        return code
    except Interrupted:
        return SidecarError.exit_code
    except OSError as error:
        return _fail(line, NodeError.exit_code, [f"cannot continue: {reason(error)}"])
    return 0 if loaded.options.watch else code  # --watch ends by a signal, which is a success


@contextlib.contextmanager
def _ended_by_signals(code: int) -> "Iterator[None]":
    """Let a signal end the process at once: the reader of a pipe, or Ctrl-S, may keep us waiting for ever."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: os._exit(code)) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def _answers(command: str) -> "Callable[[Loaded, Terminal], Iterator[Answer]]":
    """Load a command, and no other; return the function that yields its answers."""
    module = importlib.import_module(f"sidecar.commands.{command}")  # this takes a tenth of a second
    return cast("Callable[[Loaded, Terminal], Iterator[Answer]]", module.answers)


def _is_read() -> bool:
    """Whether standard output still has a reader: the other end of a pipe may be gone."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return not poll.poll(0)


def _refuse(line: Invocation, faults: Sequence[str]) -> int:
    return _fail(line, ConfigError.exit_code, faults)


def _fail(line: Invocation, code: int, failures: Sequence[str]) -> int:
    """Print why there is no answer, in the format that the answer would have; return the exit code."""
    if _output(line) == "json":
        _print(as_json({"schema": "error/v1", "exit": code, "failures": [visible(each) for each in failures]}))
        return code
    more = len(failures) - MOST_FAULTS
    _complain(*failures[:MOST_FAULTS], *([f"and {more} more"] if more > 0 else []))
    return code


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
