"""The command `cleanup`: take away what the options want, and tell what was there."""

import math
import re
import time
from collections.abc import Iterator, Sequence

from sidecar.commands.inspection import backends, exit_code, steps
from sidecar.commands.render import CLEANUP_PLAN, Cleaned, Plan
from sidecar.daemon.wakeup import Wakeup
from sidecar.errors import Interrupted
from sidecar.log.setup import collect_warnings
from sidecar.node import claims
from sidecar.node.command import Commands
from sidecar.node.instances import running
from sidecar.node.iproute import IpRoute
from sidecar.node.reconcile import Reconciler
from sidecar.settings.options import Options, desired_state
from sidecar.state.actions import Action, RemoveAddress, RemoveRule
from sidecar.state.desired import LINK, things, without
from sidecar.state.model import Desired
from sidecar.state.plan import teardown


def cleanup(options: Options, warnings: Sequence[str]) -> Cleaned:
    """Take it away, but for what a running instance on this node wants. Raises OSError if nothing can be run."""
    logged = collect_warnings(options)
    deadline = time.monotonic() + options.cleanup_timeout
    commands = Commands(options.command_timeout)
    wakeup = Wakeup(on_stop=commands.interrupt, on_interrupt=commands.interrupt)
    wanted = desired_state(options)
    mine = claims.Claims()
    mine.take(things(wanted, options.port), is_over=lambda: wakeup.stopping or time.monotonic() > deadline)
    kept = mine.wanted_by_others() | _wanted_by_processes(wanted, options.port)
    wanted = without(wanted, options.port, kept)
    done: list[Action] = []
    commands.finish_by(deadline)
    shown = _in_words(kept)
    try:
        report = _reconciler(options, wanted, commands, done).cleanup(deadline)
    except Interrupted:
        failures, left, absent, code = ["a signal ended it: see with --dry-run what is left"], [], [], 1
    else:
        failures, left = list(map(str, report.failures)), [action.todo for action in report.remaining]
        absent = list(_absent(wanted, done)) if report.in_sync else []
        code = max(report.exit_code, int(bool(shown)))
    return Cleaned(
        removed=tuple(_thing(action) for action in done),
        absent=tuple(absent),
        kept=shown,
        left=tuple(left),
        failures=tuple(failures),
        warnings=(*warnings, *logged),
        exit_code=code,
    )


def dry_run(options: Options, warnings: Sequence[str]) -> Plan:
    """Return what a cleanup would do now; claim nothing. Raises OSError if nothing can be run."""
    logged = collect_warnings(options)
    commands = Commands(options.command_timeout)
    wanted = desired_state(options)
    blind: list[str] = []
    kept = _wanted_by_processes(wanted, options.port)
    try:
        kept |= claims.held(things(wanted, options.port))
    except FileNotFoundError:  # no instance has run here
        pass
    except OSError as error:
        blind.append(f"whether a running instance wants it cannot be seen ({error.strerror}): run as root")
    wanted = without(wanted, options.port, kept)
    reconciler = _reconciler(options, wanted, commands, [])
    observed, unseen = reconciler.observe()
    todo, failed = steps(reconciler, teardown(wanted, observed))
    failures = (*unseen, *failed)
    shown = _in_words(kept)
    return Plan(
        steps=todo,
        failures=(*map(str, failures), *blind),
        exit_code=max(exit_code(failures, in_sync=not todo and not shown), int(bool(blind))),
        schema=CLEANUP_PLAN,
        nothing="nothing of it is on this node: nothing to do",
        warnings=(*warnings, *logged),
        kept=shown,
    )


def _wanted_by_processes(wanted: Desired, port: int) -> frozenset[str]:
    """Return what a running sidecar wants, also one that cannot claim it: the Go one, or one with a /run of its own."""
    theirs = {name for instance in running()[0] for name in instance.wants()}
    return frozenset(theirs.intersection(things(wanted, port)))


def _reconciler(options: Options, wanted: Desired, commands: Commands, done: list[Action]) -> Reconciler:
    tools = backends(options, wanted, commands, math.inf)
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


def _in_words(names: frozenset[str]) -> tuple[str, ...]:
    """Return what desired.things calls by these names, but for the interface: it is not what is to be cleaned up."""
    found = []
    for name in sorted(names):
        if match := re.fullmatch(r"(.+)@(.+)", name):
            found.append(f"{match[1]} on {match[2]}")
        elif not name.startswith(LINK):
            found.append(f"the rules for {name}")
    return tuple(found)
