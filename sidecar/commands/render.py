"""What is on the node, and what is to be done there, as text for a person and as JSON for a program (docs/json.md)."""

import json
import shlex
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from sidecar.state.actions import Action
from sidecar.state.inventory import Item, State
from sidecar.state.model import Family
from sidecar.text import visible

#: Versions of the JSON: they change when a field is taken away or gets another meaning.
STATUS: Final = "status/v1"
PLAN: Final = "plan/v1"
CLEANUP: Final = "cleanup/v1"
CLEANUP_PLAN: Final = "cleanup-plan/v1"

#: Columns of a line, and of the state before a thing's name.
WIDTH: Final = 100
_STATE: Final = 11

_COLOURS: Final = {State.PRESENT: "32", State.NO_EFFECT: "33", State.UNKNOWN: "35"}
_RED: Final = "31"


@dataclass(frozen=True, slots=True)
class BackendInUse:
    """By what the rules of a family are observed, and why."""

    family: Family
    command: str
    version: str
    reason: str


@dataclass(frozen=True, slots=True)
class Status:
    """What a look at the node found."""

    items: tuple[Item, ...]
    in_sync: bool
    exit_code: int
    backends: tuple[BackendInUse, ...]
    settings: tuple[str, ...]
    """The flags that set what differs from the default."""

    origin: str
    """Whose settings they are, if they are not one's own."""

    warnings: tuple[str, ...]
    failures: tuple[str, ...]


def summary(status: Status) -> str:
    """Return the one line that matters most."""
    order = list(State)
    wrong = sorted(
        (item for item in status.items if item.state is not State.PRESENT), key=lambda item: order.index(item.state)
    )
    if status.in_sync:
        held = ", ".join(item.name for item in status.items if item.kind == "address")
        rules = sum(item.kind == "rule" for item in status.items)
        text = f"in sync: {held}" + (f", {rules} rules" if rules else "")
        return f"{text}; but {_counted(wrong)}" if wrong else text
    if not wrong:
        return f"not in sync: {'; '.join(status.failures)}"
    return f"{_counted(wrong)}, of {len(status.items)}; first {_state(wrong[0])}: {wrong[0].name}"


def _counted(items: Sequence[Item]) -> str:
    numbers = Counter(item.state for item in items)
    return ", ".join(f"{numbers[state]} {_words(state)}" for state in State if numbers[state])


def _words(state: State) -> str:
    return {
        State.COPIES: "with copies",
        State.ELSEWHERE: "on another interface",
        State.NO_EFFECT: "without effect",
        State.UNKNOWN: "not known",
    }.get(state, state.value)


def status_text(status: Status, *, coloured: bool) -> str:
    """Return the most important line first, then by what was looked, then a table of what was found."""
    lines = [*_wrapped(visible(summary(status)), "  "), ""]
    origin = f" ({status.origin})" if status.origin else ""
    lines += _wrapped(f"settings   {visible(shlex.join(status.settings))}{origin}", " " * _STATE)
    for each in status.backends:
        lines += _wrapped(f"IPv{each.family} rules {each.command} {each.version}: {each.reason}", " " * _STATE)
    lines.append("")
    for item in status.items:
        lines += _row(item, coloured=coloured)
    notes = [*(f"warning: {text}" for text in status.warnings), *(f"error: {text}" for text in status.failures)]
    if notes:
        lines += ["", *(line for note in notes for line in _wrapped(visible(note), "  "))]
    return "\n".join(lines)


def _row(item: Item, *, coloured: bool) -> Iterator[str]:
    state = _state(item)
    detail = f" ({item.detail})" if item.detail and item.state is not State.COPIES else ""
    name = f"interface {item.name}" if item.kind == "interface" else item.name
    first, *rest = _wrapped(f"{state:<{_STATE}}{visible(name + detail)}", " " * _STATE)
    if coloured:
        first = f"\x1b[{_COLOURS.get(item.state, _RED)}m{first[:_STATE]}\x1b[0m{first[_STATE:]}"
    yield from (first, *rest)


def _state(item: Item) -> str:
    return item.detail if item.state is State.COPIES else item.state.value


def status_json(status: Status) -> str:
    """Return the same as one object in one line."""
    return _json(
        {
            "schema": STATUS,
            "exit": status.exit_code,
            "in_sync": status.in_sync,
            "summary": summary(status),
            "settings": list(status.settings),
            "settings_of": status.origin,
            "backends": [
                {"family": each.family, "command": each.command, "version": each.version, "reason": each.reason}
                for each in status.backends
            ],
            "items": [
                {"kind": item.kind, "name": item.name, "state": item.state.value, "detail": item.detail, **item.facts}
                for item in status.items
            ],
            "warnings": list(status.warnings),
            "failures": list(status.failures),
        }
    )


#: An action, with its commands as they can be pasted.
Step: TypeAlias = tuple[Action, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done, and by what."""

    steps: tuple[Step, ...]
    failures: tuple[str, ...]
    exit_code: int
    schema: str
    nothing: str
    """What it means if there is nothing to do."""

    origin: str = ""
    """Whose settings they are, if they are not one's own."""

    warnings: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    """What is left because another instance wants it."""


def plan_text(plan: Plan) -> str:
    """Return the commands, one a line, that a shell runs as they are; everything else is a comment to it."""
    lines = [command for _, commands in plan.steps for command in commands]
    told = [f"# settings {visible(plan.origin)}"] if plan.origin else []
    told += [f"# warning: {visible(warning)}" for warning in plan.warnings]
    if not lines and not plan.failures and not plan.kept:
        lines = [f"# {plan.nothing}"]
    lines += [f"# stays, as an instance that runs on this node wants it: {visible(thing)}" for thing in plan.kept]
    lines += [f"# error: {visible(failure)}" for failure in plan.failures]
    return "\n".join((*told, *lines))


def plan_json(plan: Plan) -> str:
    """Return the same as one object in one line."""
    steps = [{"action": action.todo, "commands": list(commands), **action.facts} for action, commands in plan.steps]
    return _json(
        {
            "schema": plan.schema,
            "exit": plan.exit_code,
            "settings_of": plan.origin,
            "steps": steps,
            "kept": list(plan.kept),
            "warnings": list(plan.warnings),
            "failures": list(plan.failures),
        }
    )


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What a cleanup did."""

    removed: tuple[str, ...]
    absent: tuple[str, ...]
    kept: tuple[str, ...]
    """What is left because another instance wants it."""

    left: tuple[str, ...]
    failures: tuple[str, ...]
    warnings: tuple[str, ...]
    exit_code: int


def cleaned_text(done: Cleaned) -> str:
    """Return the most important line first, then one for each thing."""
    lines = ["clean: nothing of it is left on this node"]
    if done.kept and not (done.left or done.failures):
        lines = _wrapped("not clean: an instance that runs on this node wants it; stop it first", "  ")
    elif done.exit_code:
        lines = ["not clean: not all could be removed"]
    for state, things in (
        ("left", done.left),
        ("in use", done.kept),
        ("removed", done.removed),
        ("not there", done.absent),
    ):
        for thing in things:
            lines += _wrapped(f"{state:<{_STATE}}{visible(thing)}", " " * _STATE)
    notes = [*(f"warning: {text}" for text in done.warnings), *(f"error: {text}" for text in done.failures)]
    for note in notes:
        lines += _wrapped(visible(note), "  ")
    return "\n".join(lines)


def cleaned_json(done: Cleaned) -> str:
    """Return the same as one object in one line."""
    names = ("removed", "absent", "kept", "left", "warnings", "failures")
    return _json({"schema": CLEANUP, "exit": done.exit_code, **{name: list(getattr(done, name)) for name in names}})


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
