"""The command `cleanup`: take away what the options want, and tell what was there."""

import math
import re
import time
from collections.abc import Iterator

from sidecar import claims, logs
from sidecar.command import Commands
from sidecar.desired import things, without
from sidecar.errors import Interrupted
from sidecar.inspection import backends, exit_code, steps
from sidecar.iproute import IpRoute
from sidecar.model import Action, Desired, RemoveAddress, RemoveRule
from sidecar.options import Options, goal
from sidecar.plan import teardown
from sidecar.reconcile import Reconciler
from sidecar.render_status import CLEANUP_PLAN, Cleaned, Plan
from sidecar.wakeup import Wakeup


def cleanup(given: Options) -> Cleaned:
    """Take it away, but for what a running instance on this node claims. Raises OSError if nothing can be run."""
    warnings = logs.collect_warnings(given)
    commands = Commands(given.command_timeout)
    Wakeup(on_stop=commands.interrupt, on_interrupt=commands.interrupt)
    wanted = goal(given)
    mine = claims.Claims()
    mine.take(things(wanted, given.port), is_over=lambda: False)
    kept = mine.wanted_by_others()
    wanted = without(wanted, given.port, kept)
    done: list[Action] = []
    deadline = time.monotonic() + given.cleanup_timeout
    commands.finish_by(deadline)
    left: tuple[str, ...] = ()
    failures = ["a signal ended it: see with --dry-run what is left"]
    code = 1
    try:
        report = _reconciler(given, wanted, commands, done).cleanup(deadline)
    except Interrupted:
        pass
    else:
        left = tuple(action.todo for action in report.remaining)
        failures = list(map(str, report.failures))
        code = max(report.exit_code, int(bool(kept)))
    return Cleaned(
        removed=tuple(_thing(action) for action in done),
        absent=tuple(_absent(wanted, done)) if code in (0, int(bool(kept))) and not left else (),
        kept=tuple(_in_words(name) for name in sorted(kept)),
        left=left,
        failures=tuple(failures),
        warnings=tuple(warnings),
        exit_code=code,
    )


def dry_run(given: Options) -> Plan:
    """Return what a cleanup would do now; claim nothing. Raises OSError if nothing can be run."""
    logs.collect_warnings(given)
    commands = Commands(given.command_timeout)
    wanted = goal(given)
    try:
        kept = claims.held(things(wanted, given.port))
    except OSError:  # no instance has run here, or only root can see
        kept = frozenset()
    wanted = without(wanted, given.port, kept)
    reconciler = _reconciler(given, wanted, commands, [])
    observed, unseen = reconciler.observe()
    todo, failed = steps(reconciler, teardown(wanted, observed))
    failures = (*unseen, *failed)
    return Plan(
        todo,
        tuple(map(str, failures)),
        exit_code(failures, in_sync=not todo and not kept),
        CLEANUP_PLAN,
        "nothing of it is on this node: nothing to do",
        tuple(_in_words(name) for name in sorted(kept)),
    )


def _reconciler(given: Options, wanted: Desired, commands: Commands, done: list[Action]) -> Reconciler:
    tools = backends(given, wanted, commands, math.inf)
    for each in tools.values():
        each.include_leftovers()
        each.create_nothing()
    return Reconciler(wanted, IpRoute(commands.run), tools, begin=commands.begin, on_change=done.append)


def _absent(wanted: Desired, done: list[Action]) -> Iterator[str]:
    """Yield what there was nothing of."""
    addresses = {action.address for action in done if isinstance(action, RemoveAddress)}
    rules = {action.rule for action in done if isinstance(action, RemoveRule)}
    yield from (str(rule) for rule in wanted.rules if rule not in rules)
    yield from (str(address) for address in wanted.addresses if address not in addresses)


def _thing(action: Action) -> str:
    """Return what an action has removed."""
    match action:
        case RemoveRule(rule, copies):
            return f"{rule} ({copies} copies)" if copies > 1 else str(rule)
        case RemoveAddress(address):
            return str(address)
        case _:
            return str(action.facts.get("interface", action.done))


def _in_words(name: str) -> str:
    """Return what desired.things calls by this name."""
    if name.startswith("link "):
        return f"interface {name.removeprefix('link ')}"
    if match := re.fullmatch(r"(.+)@(.+)", name):
        return f"{match[1]} on {match[2]}"
    return f"the rules for {name}"
