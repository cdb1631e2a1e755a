"""The command `status`: observes the node, and changes nothing."""

import contextlib
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Final

from sidecar.commands.output import GREEN, MAGENTA, RED, YELLOW, Answer, Terminal, as_json, coloured, notes, wrapped
from sidecar.daemon.wakeup import Wakeup
from sidecar.errors import Interrupted, LockHeld
from sidecar.log.setup import collect_warnings
from sidecar.node import xtables_lock
from sidecar.node.access import access
from sidecar.node.brief import LONGEST_LOOK, BriefCommands
from sidecar.node.events import Events
from sidecar.node.netlink import Watch
from sidecar.settings.options import Loaded, Origin
from sidecar.state.actions import Failure, exit_code
from sidecar.state.inventory import Item, State, is_in_sync, survey
from sidecar.state.model import BackendInUse
from sidecar.state.plan import notices, obstacles
from sidecar.text import WIDTH

SCHEMA: Final = "status/v2"  # the version of the JSON: it changes when a field is removed or its meaning changes
WATCH_INTERVAL: Final = 2.0  # seconds between two looks with --watch, if nothing happens
STATE_COLUMNS: Final = 11  # width of the state column, before the name
_CLEAR: Final = "\x1b[H\x1b[J"  # moves the cursor to the upper left, and clears everything below (man 4 console_codes)

_COLOURS: Final = {State.PRESENT: GREEN, State.NO_EFFECT: YELLOW, State.UNKNOWN: MAGENTA}


def _now() -> datetime:
    """Return the time in the local time zone, in whole seconds."""
    return datetime.now().astimezone().replace(microsecond=0)


@dataclass(frozen=True, slots=True)
class Status:
    """What a look at the node found."""

    items: tuple[Item, ...]
    in_sync: bool
    exit_code: int
    backends: tuple[BackendInUse, ...]
    settings: tuple[str, ...]  # the flags that differ from the default
    origin: Origin
    warnings: tuple[str, ...]
    failures: tuple[str, ...]
    cause: str = ""  # why something could not be looked at, if that is known
    time: datetime = field(default_factory=_now, compare=False)  # when it was looked at


def answers(loaded: Loaded, terminal: Terminal) -> Iterator[Answer]:
    """Yield the status; with --watch, again at each change. Raises OSError if no command can be run at all."""
    is_watching = loaded.options.watch
    for number, status in enumerate(_follow(loaded, terminal.is_read if is_watching else None)):
        if loaded.options.output == "json":
            yield status_json(status), status.exit_code
            continue
        before = _CLEAR if is_watching and terminal.is_tty else "\n" if number else ""
        before += f"{status.time:%Y-%m-%d %H:%M:%S}\n" if is_watching else ""
        yield before + status_text(status, is_coloured=terminal.is_coloured, columns=terminal.width), status.exit_code


def _follow(loaded: Loaded, is_read: Callable[[], bool] | None) -> Iterator[Status]:
    """Yield the status once; or, with `is_read`, at each change until a signal comes or nobody reads it."""
    logged = collect_warnings(loaded.options)
    commands = BriefCommands(loaded.options.command_timeout)
    # Nothing is changed here, so a signal can end the running command and with it the look.
    wakeup = Wakeup(commands.wakeup_fd, on_stop=commands.interrupt, on_interrupt=commands.interrupt)
    node = access(loaded.options, commands, creates=False, longest_look=LONGEST_LOOK)
    reconciler = node.reconciler()

    def look() -> Status:
        commands.begin()
        reconciler.reconsider()
        observed, unseen = reconciler.observe()
        failures = (*unseen, *obstacles(node.desired, observed))
        in_sync = not failures and is_in_sync(node.desired, observed)
        noticed = [str(notice) for notice in notices(node.desired, observed) if notice.certain]
        return Status(
            items=survey(node.desired, observed),
            in_sync=in_sync,
            exit_code=exit_code(failures, in_sync=in_sync),
            backends=observed.backends,
            settings=tuple(loaded.options.changed()),
            origin=loaded.origin,
            warnings=(*loaded.warnings, *logged, *noticed),
            failures=tuple(map(str, failures)),
            cause=_cause(unseen),
        )

    if is_read is None:
        yield look()
        return
    events = Events(Watch.of(node.desired))
    last: Status | None = None
    with contextlib.suppress(Interrupted):
        while not wakeup.stopping and is_read():
            status = look()
            if status != last:
                yield status
            last = status
            wakeup.wait(WATCH_INTERVAL, events)


def _cause(failures: Sequence[Failure]) -> str:
    """Return why something could not be looked at: what the node lacks, who holds the lock, or what hangs."""
    if not failures:
        return ""
    error = max((failure.error for failure in failures), key=lambda error: error.exit_code)
    return (isinstance(error, LockHeld) and xtables_lock.held()) or error.cause


def summary(status: Status) -> str:
    """Return the one line that matters most to the reader."""
    order = list(State)
    wrong = sorted(
        (item for item in status.items if item.state is not State.PRESENT), key=lambda item: order.index(item.state)
    )
    if status.in_sync:
        held = ", ".join(item.name for item in status.items if item.kind == "address")
        rules = sum(item.kind == "rule" for item in status.items)
        text = f"in sync: {held}" + (f", {rules} rules" if rules else "")
        return f"{text}; but {_counted(wrong)}" if wrong else text
    if status.cause:
        return f"{status.cause}; {_counted(wrong)}, of {len(status.items)}" if wrong else status.cause
    if not wrong:
        return f"not in sync: {'; '.join(status.failures or status.warnings)}"
    return f"{_counted(wrong)}, of {len(status.items)}; first {_state(wrong[0])}: {wrong[0].name}"


def _counted(items: Sequence[Item]) -> str:
    numbers = Counter(item.state for item in items)
    return ", ".join(f"{numbers[state]} {_words(state)}" for state in State if numbers[state])


def _words(state: State) -> str:
    return {
        State.COPIES: "with copies",
        State.ELSEWHERE: "on another interface",
        State.NO_EFFECT: "without effect",
        State.UNKNOWN: "unknown",
    }.get(state, state.value)


def status_text(status: Status, *, is_coloured: bool, columns: int = WIDTH) -> str:
    """Return the summary, then the settings and backends, then a table of what was found."""
    origin = f" ({status.origin.detail})" if status.origin.detail else ""
    lines = [*wrapped(summary(status), columns=columns), ""]
    lines += wrapped(f"settings   {shlex.join(status.settings)}{origin}", STATE_COLUMNS, columns=columns)
    for each in status.backends:
        text = f"IPv{each.family} rules {each.command} {each.version}: {each.reason}"
        lines += wrapped(text, STATE_COLUMNS, columns=columns)
    lines.append("")
    for item in status.items:
        lines += _row(item, is_coloured=is_coloured, columns=columns)
    if told := notes(status.warnings, status.failures, columns):
        lines += ["", *told]
    return "\n".join(lines)


def _row(item: Item, *, is_coloured: bool, columns: int) -> Iterator[str]:
    detail = f" ({item.detail})" if item.detail and item.state is not State.COPIES else ""
    name = f"interface {item.name}" if item.kind == "interface" else item.name
    first, *rest = wrapped(f"{_state(item) + ' ':<{STATE_COLUMNS}}{name}{detail}", STATE_COLUMNS, columns=columns)
    yield coloured(first, _COLOURS.get(item.state, RED), STATE_COLUMNS) if is_coloured else first
    yield from rest


def _state(item: Item) -> str:
    return item.detail if item.state is State.COPIES else item.state.value


def status_json(status: Status) -> str:
    """Return the same as one JSON object on one line."""
    return as_json(
        {
            "schema": SCHEMA,
            "time": status.time.isoformat(),
            "exit": status.exit_code,
            "in_sync": status.in_sync,
            "summary": summary(status),
            "settings": list(status.settings),
            "settings_of": asdict(status.origin),
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
