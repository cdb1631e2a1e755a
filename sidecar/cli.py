"""The edge: settings in, exit code out."""

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final, TextIO

from loguru import logger

from sidecar import __version__, daemon, durations, iproute, logs, settings
from sidecar.command import Commands
from sidecar.desired import desired
from sidecar.errors import ConfigError, Interrupted, NodeError, Stopped
from sidecar.iproute import IpRoute
from sidecar.iptables import Iptables
from sidecar.model import Desired, Family, Report
from sidecar.reconcile import Reconciler
from sidecar.settings import Settings
from sidecar.wakeup import Wakeup

PROGRAM: Final = "apiserver-proxy-sidecar"

#: How many addresses a line of the log names before it counts the rest.
SHOWN: Final = 4


def main(argv: Sequence[str]) -> int:
    """Run the program with these arguments (without its own name) and return its exit code."""
    if any(word in ("--help", "-h") for word in argv):
        _print(settings.usage(), sys.stdout)
        return 0
    if list(argv) in (["version"], ["--version"]):
        _print(f"{PROGRAM} {__version__}", sys.stdout)
        return 0
    try:
        given, warnings = settings.load(argv)
    except ConfigError as error:
        for fault in error.faults:
            _print(f"{PROGRAM}: {fault}", sys.stderr)
        return error.exit_code
    logs.setup()
    for warning in warnings:
        logger.warning(warning)
    return _run(given)


def _print(text: str, stream: TextIO) -> None:
    with contextlib.suppress(OSError):  # nobody reads it, or the disk is full: there is nowhere to say so
        print(text, file=stream)


def _run(given: Settings) -> int:
    goal = desired(
        given.ip_address,
        interface=given.interface,
        port=given.port,
        scope=given.address_scope,
        setup_iptables=given.setup_iptables,
        insert=given.rule_position == "insert",
    )
    # Until this program finds out by itself which backend the node uses, auto is the administrator's choice.
    backend = "system" if given.iptables_backend == "auto" else given.iptables_backend
    commands = Commands(given.command_timeout)
    families: list[Family] = sorted({rule.family for rule in goal.rules})
    iptables = {family: Iptables(commands.run, family, backend, given.iptables_wait) for family in families}
    programs = [iproute.COMMAND, *(name for each in iptables.values() for name in each.commands)]
    reconciler = Reconciler(goal, IpRoute(commands.run), iptables)
    wakeup = Wakeup(on_stop=commands.stop, on_interrupt=commands.interrupt)
    try:
        commands.require(programs)
        report = _work(given, reconciler, wakeup, _in_words(goal, iptables))
        # A daemon that was stopped is in order. But whoever waits for the one pass must not take it for done.
        code = report.exit_code if report else int(not given.daemon)
        if given.cleanup:
            code = max(code, _clean_up(given.cleanup_timeout, reconciler, commands))
    except NodeError as error:
        logger.error(error)
        return error.exit_code
    except Interrupted:
        logger.error("a second signal: ended at once")
        return 1
    return code


def _work(given: Settings, reconciler: Reconciler, wakeup: Wakeup, goal: str) -> Report | None:
    """Make one pass, or many. Return None if a signal ended it."""
    journal = daemon.Journal(goal)
    if given.daemon:
        every = durations.render(given.sync_interval)
        logger.info(f"{PROGRAM} {__version__}, to hold {goal}; checks every {every}")
        return daemon.run(reconciler, wakeup, given.sync_interval, journal)
    try:
        report = reconciler.reconcile()
    except Stopped:
        logger.error("stopped by a signal before the pass was done")
        return None
    journal.record(report)
    return report


def _clean_up(seconds: float, reconciler: Reconciler, commands: Commands) -> int:
    deadline = time.monotonic() + seconds
    commands.finish_by(deadline)
    report = reconciler.cleanup(deadline)
    for failure in report.failures:
        logger.error(failure)
    for action in report.remaining:
        logger.error(f"cleanup is not done, perhaps left to do: {action.todo}")
    if report.in_sync:
        logger.info("cleanup done: nothing of it is left on this node")
    return report.exit_code


def _in_words(goal: Desired, iptables: Mapping[Family, Iptables]) -> str:
    shown = [address.cidr for address in goal.addresses[:SHOWN]]
    if len(goal.addresses) > SHOWN:
        shown.append(f"{len(goal.addresses) - SHOWN} more")
    rules = f", {len(goal.rules)} rules by {' and '.join(each.command for each in iptables.values())}"
    return f"{', '.join(shown)} on {goal.interface}" + (rules if goal.rules else "")
