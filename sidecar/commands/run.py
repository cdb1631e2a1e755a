"""The command `run`: keeps the node in the desired state, and returns an exit code."""

import shlex
import time
from collections.abc import Sequence

from loguru import logger

from sidecar import PROGRAM, __version__
from sidecar.commands import cleanup
from sidecar.daemon import daemon
from sidecar.daemon.vitals import Vitals
from sidecar.daemon.wakeup import Wakeup
from sidecar.errors import Interrupted, NodeError, Stopped, reason
from sidecar.log.setup import start_logging
from sidecar.node.access import Access, access
from sidecar.node.claims import PATIENCE, Claims
from sidecar.node.command import Commands
from sidecar.node.events import Events
from sidecar.node.leftovers import Leftovers
from sidecar.node.netlink import Watch
from sidecar.node.reconcile import Reconciler
from sidecar.settings.options import Options
from sidecar.state import desired
from sidecar.state.actions import Report


def run(options: Options, warnings: Sequence[str]) -> int:
    """Do what the settings ask for, log warnings about them, and return the exit code."""
    start_logging(options)
    try:
        commands = Commands(options.command_timeout)
        wakeup = Wakeup(
            commands.wakeup_fd, on_stop=commands.stop, on_interrupt=commands.interrupt, on_child=commands.reap
        )
    except OSError as error:
        logger.error(f"cannot start: {reason(error)}")
        return NodeError.exit_code
    _log_settings(options, warnings)
    try:
        return _run(options, commands, wakeup)
    except NodeError as error:
        logger.bind(**error.facts).error(error)
        return error.exit_code
    except Interrupted:
        logger.error("ended at once by a second signal")
        return 1


def _run(options: Options, commands: Commands, wakeup: Wakeup) -> int:
    mine = Claims()
    node = access(options, commands, mine=mine)
    journal = daemon.Journal(node.desired, options.port)
    leftovers = Leftovers(options, commands, journal.changed)
    # A pass by hand leaves what an earlier one has set up: nobody may run to keep it, but somebody wanted it.
    reconciler = node.reconciler(journal.changed, *([leftovers.remove] if options.daemon else []))
    commands.require(node.programs)
    vitals = _answer_probes(options, node) if options.health_address and options.daemon else None
    mine.take(desired.claims(node.desired, options.port), is_over=lambda: wakeup.stopping)
    leftovers.begin()
    if options.daemon:
        events = Events(Watch.of(node.desired))
        report = daemon.run(reconciler, wakeup, options.sync_interval, journal, events, vitals=vitals, claims=mine)
        if vitals:
            vitals.stops(options.cleanup_timeout)
    else:
        report = _make_one_pass(reconciler, journal)
    # Stopping a daemon is a success. But a single pass that was stopped must not look done to its caller.
    code = report.exit_code if report else int(not options.daemon)
    return max(code, _clean_up(options, node, mine, leftovers)) if options.cleanup else code


def _answer_probes(options: Options, node: Access) -> Vitals:
    """Start answering probes, and return the record that the answers come from. Raises CannotListen."""
    from sidecar.daemon import health, takeover  # noqa: PLC0415 - loaded only with --health-address

    port = takeover.listen(options.health_address)
    vitals = Vitals(node.desired, options.command_timeout)
    vitals.starts(PATIENCE)
    node.commands.on_end = vitals.command_ended
    health.serve(port, vitals)
    return vitals


def _log_settings(options: Options, warnings: Sequence[str]) -> None:
    """Log the version, and the settings that differ from the default; the line is the same for every source."""
    facts = logger.bind(version=__version__, settings=options.texts())
    facts.info(f"{PROGRAM} {__version__}: {shlex.join(options.changed())}")
    for warning in warnings:
        logger.warning(warning)


def _make_one_pass(reconciler: Reconciler, journal: daemon.Journal) -> Report | None:
    """Run one pass; return its report, or None if a signal ended it."""
    try:
        report = reconciler.reconcile()
    except Stopped:
        logger.error("stopped by a signal before the pass was done")
        return None
    journal.record(report)
    return report


def _clean_up(options: Options, node: Access, mine: Claims, leftovers: Leftovers) -> int:
    """Remove what this instance set up, and log what is left; return the exit code."""
    deadline = time.monotonic() + options.cleanup_timeout
    kept = cleanup.needed_by_others(node, options.port, mine)
    report = cleanup.clean_up(node, options.port, kept, deadline)
    stays = cleanup.names(kept)
    if stays:
        logger.info(f"left in place because another instance on this node needs it: {', '.join(stays)}")
    for failure in report.failures:
        logger.bind(**failure.facts).error(failure)
    for action in report.remaining:
        logger.bind(**action.facts).error(f"cleanup is incomplete, possibly left to do: {action.todo}")
    for text in cleanup.on_others(desired.without(node.desired, options.port, kept), report.observed):
        logger.warning(text)
    if report.in_sync:
        leftovers.forget(kept)
        logger.info(f"cleanup done: nothing {'else ' if stays else ''}is left on this node")
    return report.exit_code
