"""The command `run`: from settings to an exit code."""

import shlex
import time
from collections.abc import Mapping, Sequence
from typing import Final

from loguru import logger

from sidecar import PROGRAM, __version__
from sidecar.daemon import daemon
from sidecar.daemon.vitals import Vitals
from sidecar.daemon.wakeup import Wakeup
from sidecar.errors import Interrupted, NodeError, Stopped
from sidecar.log.setup import start_logging
from sidecar.node import claims, iproute
from sidecar.node.backends import Backend
from sidecar.node.command import Commands, Run
from sidecar.node.events import Events
from sidecar.node.iproute import IpRoute
from sidecar.node.netlink import Watch
from sidecar.node.reconcile import Reconciler
from sidecar.settings.options import Options, desired_state
from sidecar.state.actions import Report
from sidecar.state.desired import things, without
from sidecar.state.model import Desired, Family

#: How many addresses a line of the log names before it counts the rest.
SHOWN: Final = 4


def run(options: Options, warnings: Sequence[str]) -> int:
    """Do what the settings ask for, warn of what is wrong with them, and return the exit code."""
    start_logging(options)
    try:
        commands = Commands(options.command_timeout)
        wakeup = Wakeup(on_stop=commands.stop, on_interrupt=commands.interrupt)
    except OSError as error:
        logger.error(f"cannot start: {error.strerror}: see `ulimit -n`")
        return NodeError.exit_code
    _log_settings(options, warnings)
    try:
        return _run(options, commands, wakeup)
    except NodeError as error:
        logger.bind(**error.facts).error(error)
        return error.exit_code
    except Interrupted:
        logger.error("a second signal: ended at once")
        return 1


def _run(options: Options, commands: Commands, wakeup: Wakeup) -> int:
    wanted = desired_state(options)
    iptables = backends(options, wanted, commands.run)
    programs = [iproute.COMMAND, *(name for each in iptables.values() for name in each.programs)]
    journal = daemon.Journal(lambda: _in_words(wanted, options.port, iptables))
    reconciler = Reconciler(wanted, IpRoute(commands.run), iptables, begin=commands.begin, on_change=journal.changed)
    commands.require(programs)
    vitals = _answer_probes(options, wanted, commands, iptables) if options.health_address and options.daemon else None
    claimed = claims.Claims()
    claimed.take(things(wanted, options.port), is_over=lambda: wakeup.stopping)
    if options.daemon:
        events = Events(Watch.of(wanted), lambda: [family for family, each in iptables.items() if each.is_legacy])
        report = daemon.run(reconciler, wakeup, options.sync_interval, journal, events, vitals=vitals)
        if vitals:
            vitals.stops(options.cleanup_timeout)
    else:
        report = _make_one_pass(reconciler, journal)
    # A daemon that was stopped is in order. But whoever waits for the one pass must not take it for done.
    code = report.exit_code if report else int(not options.daemon)
    if options.cleanup:
        for each in iptables.values():
            each.include_leftovers()
        kept = claimed.wanted_by_others()
        reconciler = Reconciler(
            without(wanted, options.port, kept), IpRoute(commands.run), iptables, begin=commands.begin
        )
        code = max(code, _clean_up(options.cleanup_timeout, reconciler, commands, kept))
    return code


def _answer_probes(options: Options, wanted: Desired, commands: Commands, iptables: Mapping[Family, Backend]) -> Vitals:
    """Answer probes from now on, and return the record that the answers come from. Raises CannotListen."""
    from sidecar.daemon import health  # noqa: PLC0415 - only who asks for it loads it

    listener = health.listen(options.health_address)
    vitals = Vitals(wanted, options.command_timeout, lambda: _in_use(iptables))
    vitals.starts(claims.PATIENCE)
    commands.on_end = vitals.command_ended
    health.serve(listener, vitals)
    return vitals


def backends(options: Options, wanted: Desired, run: Run) -> dict[Family, Backend]:
    """Return what observes and changes the rules, for each family that has any."""
    families: list[Family] = sorted({rule.family for rule in wanted.rules})
    return {family: Backend(run, family, options.iptables_backend, options.iptables_wait) for family in families}


def _log_settings(options: Options, warnings: Sequence[str]) -> None:
    """Log the version, and the settings that differ from the default: the same line wherever they came from."""
    facts = logger.bind(version=__version__, settings=options.texts())
    facts.info(f"{PROGRAM} {__version__}: {shlex.join(options.changed())}")
    for warning in warnings:
        logger.warning(warning)


def _make_one_pass(reconciler: Reconciler, journal: daemon.Journal) -> Report | None:
    """Return its report, or None if a signal ended it."""
    try:
        report = reconciler.reconcile()
    except Stopped:
        logger.error("stopped by a signal before the pass was done")
        return None
    journal.record(report)
    return report


def _clean_up(seconds: float, reconciler: Reconciler, commands: Commands, wanted: frozenset[str]) -> int:
    if wanted:
        logger.info(f"left in place, as another instance on this node wants it: {', '.join(sorted(wanted))}")
    deadline = time.monotonic() + seconds
    commands.finish_by(deadline)
    report = reconciler.cleanup(deadline)
    for failure in report.failures:
        logger.bind(**failure.facts).error(failure)
    for action in report.remaining:
        logger.bind(**action.facts).error(f"cleanup is not done, perhaps left to do: {action.todo}")
    if report.in_sync:
        logger.info(f"cleanup done: nothing {'else ' if wanted else ''}of it is left on this node")
    return report.exit_code


def _in_use(iptables: Mapping[Family, Backend]) -> str:
    """Return the backends that are in use, as --iptables-backend spells them; empty as long as they are not known."""
    return ",".join(sorted({each.command.partition("-")[2] or "system" for each in iptables.values() if each.reason}))


def _in_words(goal: Desired, port: int, iptables: Mapping[Family, Backend]) -> str:
    shown = [address.cidr for address in goal.addresses[:SHOWN]]
    if len(goal.addresses) > SHOWN:
        shown.append(f"{len(goal.addresses) - SHOWN} more")
    commands = " and ".join(each.command for each in iptables.values())
    rules = f", {len(goal.rules)} rules for port {port} by {commands}"
    return f"{', '.join(shown)} on {goal.interface}" + (rules if goal.rules else "")
