"""What each command that looks or cleans up answers, as text or as JSON, and its exit code."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from sidecar.commands import cleanup, doctor, render_findings
from sidecar.commands import render as rendered
from sidecar.commands.doctor import LONGEST_WAIT
from sidecar.commands.inspection import Inspection
from sidecar.doctor import findings
from sidecar.settings.options import Loaded

Answer: TypeAlias = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Terminal:
    """What the answer is printed on."""

    is_one: bool
    coloured: bool
    encoding: str
    is_read: Callable[[], bool]
    """Whether anybody still reads it."""


#: Puts the cursor to the upper left, and clears what is below (man 4 console_codes).
_CLEAR: Final = "\x1b[H\x1b[J"


def answers(command: str, loaded: Loaded, terminal: Terminal) -> Iterator[Answer]:
    """Yield what a command answers; once, but for --watch.

    Raises OSError if no command can be run at all, and Interrupted if a signal ended it.
    """
    yield from _COMMANDS[command](loaded, terminal)


def _status(loaded: Loaded, terminal: Terminal) -> Iterator[Answer]:
    inspection = Inspection(loaded.options, loaded.warnings, loaded.origin, LONGEST_WAIT)
    watched = inspection.follow(terminal.is_read) if loaded.options.watch else iter([inspection.status()])
    for number, status in enumerate(watched):
        if loaded.options.output == "json":
            yield rendered.status_json(status), status.exit_code
            continue
        text = rendered.status_text(status, coloured=terminal.coloured)
        before = "" if not loaded.options.watch else _CLEAR if terminal.is_one else "\n" if number else ""
        yield before + text, status.exit_code


def _plan(loaded: Loaded, _: Terminal) -> Iterator[Answer]:
    yield _planned(loaded, Inspection(loaded.options, loaded.warnings, loaded.origin).plan())


def _cleanup(loaded: Loaded, _: Terminal) -> Iterator[Answer]:
    if loaded.options.dry_run:
        yield _planned(loaded, cleanup.dry_run(loaded.options, loaded.warnings))
        return
    done = cleanup.cleanup(loaded.options, loaded.warnings)
    as_json = loaded.options.output == "json"
    yield (rendered.cleaned_json if as_json else rendered.cleaned_text)(done), done.exit_code


def _planned(loaded: Loaded, plan: rendered.Plan) -> Answer:
    as_json = loaded.options.output == "json"
    return (rendered.plan_json if as_json else rendered.plan_text)(plan), plan.exit_code


def _doctor(loaded: Loaded, terminal: Terminal) -> Iterator[Answer]:
    found = doctor.doctor(loaded.options, loaded.warnings)
    if loaded.options.output == "json":
        text = render_findings.as_json(found)
    else:
        text = render_findings.as_text(found, coloured=terminal.coloured, encoding=terminal.encoding)
    yield text, findings.exit_code(found)


_COMMANDS: Final[dict[str, Callable[[Loaded, Terminal], Iterator[Answer]]]] = {
    "status": _status,
    "plan": _plan,
    "cleanup": _cleanup,
    "doctor": _doctor,
}
