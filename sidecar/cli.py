"""The edge: settings in, exit code out. Everything that ends the process is here."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final

from loguru import logger

from sidecar import __version__, daemon, durations, iproute, logs, settings
from sidecar.command import Commands
from sidecar.desired import desired
from sidecar.errors import ConfigError, Interrupted, NodeError, SidecarError, Stopped
from sidecar.iproute import IpRoute
from sidecar.iptables import Iptables
from sidecar.model import Desired, Failure, Family, Report
from sidecar.reconcile import Reconciler
from sidecar.settings import Settings
from sidecar.wakeup import Wakeup

PROGRAM: Final = "apiserver-proxy-sidecar"

#: How many addresses a line of the log names before it counts the rest.
SHOWN: Final = 4


def main(argv: Sequence[str]) -> int:
    """Run the program with these arguments (without its own name) and return its exit code."""
    if any(word in ("--help", "-h") for word in argv):
        print(settings.usage())
        return 0
    if list(argv) in (["version"], ["--version"]):
        print(f"{PROGRAM} {__version__}")
        return 0
    try:
        given = settings.load(argv)
    except ConfigError as error:
        for fault in error.faults:
            print(f"{PROGRAM}: {fault}", file=sys.stderr)
        return error.exit_code
    logs.setup()
    for line in settings.unknown_variables():
        logger.warning(line)
    return _run(given)


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
        code = report.exit_code if report else 0
        if given.cleanup and not (report and code == NodeError.exit_code and not report.changed):
            code = max(code, _clean_up(given.cleanup_timeout, reconciler, commands))
    except NodeError as error:
        logger.error(error)
        return error.exit_code
    except Interrupted:
        logger.error("a second signal: ended at once")
        return 1
    return code


def _work(given: Settings, reconciler: Reconciler, wakeup: Wakeup, goal: str) -> Report | None:
    """Make one pass, or passes until a signal comes (None)."""
    journal = daemon.Journal(goal)
    if given.daemon:
        every = durations.render(given.sync_interval)
        logger.info(f"{PROGRAM} {__version__} holds {goal}; checks every {every}")
        return daemon.run(reconciler, wakeup, given.sync_interval, journal)
    try:
        report = reconciler.reconcile()
    except Stopped:
        # Not in order, unlike a daemon that is stopped: whoever waits for this one pass must not take it for done.
        return Report((), (), (Failure("finish the pass", SidecarError("stopped by a signal")),))
    journal.record(report)
    return report


def _clean_up(seconds: float, reconciler: Reconciler, commands: Commands) -> int:
    deadline = time.monotonic() + seconds
    commands.resume(deadline)
    report = reconciler.cleanup(deadline)
    for failure in report.failures:
        logger.error(failure)
    for action in report.remaining:
        logger.error(f"cleanup is not done, left to do: {action.todo}")
    if report.in_sync:
        logger.info("cleanup done: nothing of it is left on this node")
    return report.exit_code


def _in_words(goal: Desired, iptables: Mapping[Family, Iptables]) -> str:
    shown = [address.cidr for address in goal.addresses[:SHOWN]]
    if len(goal.addresses) > SHOWN:
        shown.append(f"{len(goal.addresses) - SHOWN} more")
    rules = f", {len(goal.rules)} rules by {' and '.join(each.command for each in iptables.values())}"
    return f"{', '.join(shown)} on {goal.interface}" + (rules if goal.rules else "")
