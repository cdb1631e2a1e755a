"""The cleanup, for the command `cleanup` and for `run --cleanup`: what it removes and what it prints."""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

from sidecar.commands.output import Answer, Terminal, as_json, notes, wrapped
from sidecar.commands.plan import Plan, Step, render, steps
from sidecar.commands.status import STATE_COLUMNS
from sidecar.daemon.wakeup import Wakeup
from sidecar.errors import Interrupted, pasteable
from sidecar.log.setup import collect_warnings
from sidecar.node import claims, instances, iproute
from sidecar.node.access import Access, access
from sidecar.node.claims import Claims
from sidecar.node.command import Commands
from sidecar.node.leftovers import Leftovers
from sidecar.settings.options import Loaded
from sidecar.state import compare, desired
from sidecar.state.actions import Action, Failure, RemoveAddress, RemoveRule, Report, exit_code
from sidecar.state.model import Claim, Desired, Interface, Observed
from sidecar.state.plan import teardown, unremovable
from sidecar.text import WIDTH

#: Versions of the JSON: they change when a field is removed or its meaning changes.
SCHEMA: Final = "cleanup/v1"
DRY_RUN_SCHEMA: Final = "cleanup-plan/v2"


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What a cleanup did."""

    removed: tuple[str, ...]
    absent: tuple[str, ...]
    kept: tuple[str, ...]  # objects that stay because another instance needs them
    left: tuple[str, ...]
    failures: tuple[str, ...]
    warnings: tuple[str, ...]
    exit_code: int


def needed_by_others(node: Access, port: int, mine: Claims) -> frozenset[Claim]:
    """Return what another instance on this node needs of the desired state; give up `mine`, this process's claims."""
    return mine.claimed_by_others() | _needed_by_processes(node, port)


def clean_up(
    node: Access, port: int, kept: Collection[Claim], deadline: float, on_change: Callable[[Action], None] | None = None
) -> Report:
    """Remove the desired state except `kept` until `deadline`, on the monotonic clock. Raises Interrupted."""
    node.commands.finish_by(deadline)
    going = node.for_cleanup(desired.without(node.desired, port, kept))
    return going.reconciler(on_change).cleanup(deadline)


def on_others(going: Desired, observed: Observed | None) -> Iterator[str]:
    """Yield which addresses stay on other interfaces, where this program may have added them: before a rename, say."""
    if observed is None:
        return
    for address in going.addresses:
        for link, found in compare.elsewhere(observed, address):
            if compare.is_exact(address, found):
                removal = pasteable(*iproute.command(RemoveAddress(replace(address, interface=link.name))))
                yield f"{found.cidr} is on {link.name}, and stays there; if nobody else needs it: `{removal}`"


def _needed_by_processes(node: Access, port: int) -> frozenset[Claim]:
    return instances.needed().intersection(desired.claims(node.desired, port))


def answers(loaded: Loaded, terminal: Terminal) -> Iterator[Answer]:
    """Clean up, or with --dry-run show what that would do. Raises OSError if no command can be run at all."""
    if loaded.options.dry_run:
        yield render(_dry_run(loaded), loaded.options.output)
        return
    cleaned = _clean_up(loaded)
    is_json = loaded.options.output == "json"
    yield cleaned_json(cleaned) if is_json else cleaned_text(cleaned, terminal.width), cleaned.exit_code


def _clean_up(loaded: Loaded) -> Cleaned:
    logged = collect_warnings(loaded.options)
    deadline = time.monotonic() + loaded.options.cleanup_timeout
    commands = Commands(loaded.options.command_timeout)
    wakeup = Wakeup(commands.wakeup_fd, on_stop=commands.interrupt, on_interrupt=commands.interrupt)
    node, port = access(loaded.options, commands), loaded.options.port
    mine = Claims()
    mine.take(desired.claims(node.desired, port), is_over=lambda: wakeup.stopping or time.monotonic() > deadline)
    done: list[Action] = []
    kept = needed_by_others(node, port, mine)
    left_behind = Leftovers(loaded.options, commands, done.append)
    try:
        report = clean_up(node, port, kept, deadline, done.append)
        others = left_behind.clean_up(deadline)
    except Interrupted:
        failures, left, absent, code = ["ended by a signal: --dry-run shows what is left"], [], [], 1
    else:
        reports = (report, *others)
        failures = [str(failure) for each in reports for failure in each.failures]
        left = [action.todo for each in reports for action in each.remaining]
        going = desired.without(node.desired, port, kept)
        logged += on_others(going, report.observed)
        absent = list(_absent(going, done)) if report.in_sync else []
        code = max(*(each.exit_code for each in reports), int(bool(names(kept))))
        if report.in_sync:
            left_behind.forget(kept)
    return Cleaned(
        removed=tuple(map(_removed, done)),
        absent=tuple(absent),
        kept=names(kept),
        left=tuple(left),
        failures=tuple(failures),
        warnings=(*loaded.warnings, *logged),
        exit_code=code,
    )


def _dry_run(loaded: Loaded) -> Plan:
    """Return the plan of a cleanup; claim nothing."""
    logged = collect_warnings(loaded.options)
    node, port = access(loaded.options, Commands(loaded.options.command_timeout)), loaded.options.port
    blind: list[str] = []
    kept = _needed_by_processes(node, port)
    try:
        kept |= claims.held(desired.claims(node.desired, port))
    except FileNotFoundError:  # no instance has run here
        pass
    except OSError as error:
        blind.append(f"cannot see whether a running instance needs it ({error.strerror}): run as root")
    going = node.for_cleanup(desired.without(node.desired, port, kept))
    found, failures, observed = _plan(going)
    for others in Leftovers(loaded.options, node.commands).shown():
        more, failed, _ = _plan(others)
        found, failures = (*found, *more), (*failures, *failed)
    return Plan(
        steps=found,
        failures=(*map(str, failures), *blind),
        exit_code=max(exit_code(failures, in_sync=not found and not names(kept)), int(bool(blind))),
        schema=DRY_RUN_SCHEMA,
        nothing="none of it is on this node: nothing to do",
        warnings=(*loaded.warnings, *logged, *on_others(going.desired, observed)),
        kept=names(kept),
    )


def _plan(going: Access) -> tuple[tuple[Step, ...], tuple[Failure, ...], Observed]:
    """Return the steps of a cleanup, what fails about it, and what it rests on."""
    reconciler = going.reconciler()
    observed, unseen = reconciler.observe()
    found, failed = steps(reconciler, teardown(going.desired, observed))
    return found, (*unseen, *failed, *unremovable(observed)), observed


def names(kept: frozenset[Claim]) -> tuple[str, ...]:
    """Return the names of what stays, without the interface, which is not an object of the cleanup."""
    return tuple(sorted(str(claim) for claim in kept if not isinstance(claim, Interface)))


def _absent(going: Desired, done: Sequence[Action]) -> Iterator[str]:
    """Yield the objects that were not there."""
    addresses = {action.address for action in done if isinstance(action, RemoveAddress)}
    rules = {action.rule for action in done if isinstance(action, RemoveRule)}
    yield from (str(rule) for rule in going.rules if rule not in rules)
    yield from (str(address) for address in going.addresses if address not in addresses)


def _removed(action: Action) -> str:
    """Return the name of what an action removed."""
    match action:
        case RemoveRule(rule, copies):
            return f"{rule} ({copies} copies)" if copies > 1 else str(rule)
        case RemoveAddress(address):
            return str(address)
        case _:
            return str(action.facts.get("interface", action.done))


def cleaned_text(cleaned: Cleaned, columns: int = WIDTH) -> str:
    """Return the summary line, then a line for each object."""
    lines = ["clean: nothing is left on this node"]
    if cleaned.kept and not (cleaned.left or cleaned.failures):
        lines = wrapped(
            "not clean: an instance running on this node needs it; stop that instance first", columns=columns
        )
    elif cleaned.exit_code:
        lines = ["not clean: some objects could not be removed"]
    for state, objects in (
        ("left", cleaned.left),
        ("in use", cleaned.kept),
        ("removed", cleaned.removed),
        ("not there", cleaned.absent),
    ):
        for each in objects:
            lines += wrapped(f"{state:<{STATE_COLUMNS}}{each}", STATE_COLUMNS, columns=columns)
    return "\n".join((*lines, *notes(cleaned.warnings, cleaned.failures, columns)))


def cleaned_json(cleaned: Cleaned) -> str:
    """Return the same as one JSON object on one line."""
    shown = asdict(cleaned)
    return as_json({"schema": SCHEMA, "exit": shown.pop("exit_code"), **shown})
