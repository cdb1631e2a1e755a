"""When is the next pass, and what of the last one is worth a line in the log."""

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from loguru import logger

from sidecar.daemon.vitals import Vitals
from sidecar.daemon.wakeup import Wakeup, Woken
from sidecar.errors import LockHeld, NodeError, Stopped
from sidecar.log import levels
from sidecar.node.events import Events
from sidecar.node.reconcile import Reconciler
from sidecar.settings import durations
from sidecar.state.actions import Action, MoveToFront, RemoveAddress, RemoveSurplus, Report
from sidecar.state.model import Desired, Observed

#: Seconds until the first retry, and until the first look after a change.
SOON: Final = 1.0

#: Passes that may come at once because something may be gone, and how many a second after that.
BURST: Final = 5.0
PASSES_PER_SECOND: Final = 2.5

#: Of changes of one kind, how many within so many seconds are logged one by one; more are counted.
SEPARATELY: Final = 3
COUNTED_FOR: Final = 60.0

#: How many addresses a line names before it counts the rest.
SHOWN: Final = 4

#: Seconds until the next try while somebody holds the xtables lock.
LOCK_RETRY: Final = 2.0


def run(  # noqa: PLR0913 - what it does, when, and who is told
    reconciler: Reconciler,
    wakeup: Wakeup,
    interval: float,
    journal: "Journal",
    events: Events | None = None,
    *,
    vitals: Vitals | None = None,
) -> Report | None:
    """Make passes until a signal says stop, and return None.

    Or return the report of the very first pass, if it shows that this node cannot do what is asked of it: to go
    on would hide that. Later on the same failure may pass, as when a package is being upgraded: it is retried.
    """
    schedule, pace = Schedule(interval), Pace()
    first = True
    try:
        while not wakeup.stopping:
            if events:
                events.take_sizes()  # before the look: what changes while it goes on is to be seen the next time
            if vitals:
                vitals.pass_begins()
            report = reconciler.reconcile()
            if vitals:
                vitals.pass_ended(report)
            journal.record(report)
            if first and any(isinstance(failure.error, NodeError) for failure in report.failures):
                return report
            first = False
            if events:
                _forget_own_changes(events, report)
            seconds = schedule.next(report)
            if vitals:
                vitals.sleeps(seconds)
            _sleep(wakeup, schedule, pace, seconds, events)
    except Stopped:
        pass
    return None


def _forget_own_changes(events: Events, report: Report) -> None:
    """Forget what a pass caused itself; what others did meanwhile is seen by the look that comes 1 s after a change."""
    if report.observed:
        events.legacy_families = {each.family for each in report.observed.backends if each.is_legacy}
    if any(isinstance(action, RemoveSurplus | MoveToFront | RemoveAddress) for action in report.changed):
        events.forget()


def _sleep(wakeup: Wakeup, schedule: "Schedule", pace: "Pace", seconds: float, events: Events | None) -> None:
    """Wait for the next pass; when something of ours may be gone that is at once, but not too often."""
    woken = wakeup.wait(seconds, events)
    if woken is Woken.BY_EVENT:
        delay = pace.delay()
        if delay:
            woken = wakeup.wait(min(delay, seconds))
        if events:
            events.forget()
    if woken is Woken.BY_SIGNAL:
        schedule.start_over()


class Pace:
    """Lets a few passes come at once, and then so many a second: an opponent must not make us spin.

    A bucket of tokens: each pass takes one, and they come back with time.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tokens = BURST
        self._last = clock()

    def delay(self) -> float:
        """Return the seconds to wait before the next pass, which is counted."""
        now = self._clock()
        self._tokens = min(BURST, self._tokens + (now - self._last) * PASSES_PER_SECOND)
        self._last = now
        self._tokens -= 1
        return max(0.0, -self._tokens / PASSES_PER_SECOND)


def _jitter() -> float:
    return random.uniform(0.75, 1.0)  # noqa: S311 - nothing secret about it


class Schedule:
    """Seconds from one pass to the next.

    After a change or a first failure 1 s, then doubled from pass to pass up to the interval. A failing pass gets
    jitter, so that a thousand nodes in the same trouble do not move in step.
    """

    def __init__(self, interval: float, jitter: Callable[[], float] = _jitter) -> None:
        self._interval = interval
        self._jitter = jitter
        self._delay = interval
        self._failing = False

    def start_over(self) -> None:
        """Forget that passes failed before: somebody asks for a look, perhaps because it is repaired."""
        self._failing = False

    def next(self, report: Report) -> float:
        """Return the seconds to wait after a pass with this report."""
        failed = not report.in_sync
        starts_over = report.changed or (failed and not self._failing)
        self._delay = min(SOON if starts_over else self._delay * 2, self._interval)
        if report.failures and all(isinstance(failure.error, LockHeld) for failure in report.failures):
            # Whoever holds the lock lets go of it soon, and there is much to do then.
            self._delay = min(self._delay, LOCK_RETRY)
        self._failing = failed
        return self._delay * self._jitter() if failed else self._delay


@dataclass(slots=True)
class Changes:
    """How often the same change was made since some moment."""

    since: float
    number: int = 0

    def log(self, action: Action, now: float) -> None:
        """Log what was counted, if anything was."""
        if self.number > SEPARATELY:
            seconds = durations.render(round(now - self.since))
            facts = logger.bind(**action.facts, times=self.number)
            facts.warning(f"something keeps changing it back, {self.number} times within {seconds}: {action.done}")


class Journal:
    """Writes the log of passes: a failure when it is new, success when it is news, and nothing otherwise."""

    def __init__(self, desired: Desired, port: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._desired = desired
        self._port = port
        self._clock = clock
        self._changes: dict[Action, Changes] = {}
        self._known: set[str] = set()
        self._noticed: set[str] = set()
        self._failed_passes = 0
        self._was_in_sync = False

    def changed(self, action: Action) -> None:
        """Log a change; of the same one again and again only how often."""
        now = self._clock()
        changes = self._changes.get(action)
        if changes is None or now - changes.since > COUNTED_FOR:
            if changes:
                changes.log(action, now)
            changes = self._changes[action] = Changes(now)
        changes.number += 1
        if changes.number <= SEPARATELY:
            logger.bind(**action.facts).info(action.done)
        elif changes.number == SEPARATELY + 1:
            logger.bind(**action.facts).warning(f"something keeps changing it back, counted from now on: {action.done}")

    def record(self, report: Report) -> None:
        """Log what is new about this report."""
        for notice in report.notices:
            if notice.text not in self._noticed:
                logger.bind(**notice.facts).log("WARNING" if notice.certain else levels.PASS, str(notice))
        self._noticed = {notice.text for notice in report.notices}
        if not report.in_sync:
            self._failed_passes += 1
            self._was_in_sync = False
            self._log_new(report)
            return
        if not self._was_in_sync:
            after = f" after {self._failed_passes} failed passes" if self._failed_passes else ""
            logger.bind(failed_passes=self._failed_passes).info(f"in sync{after}: {self._in_words(report.observed)}")
        self._known.clear()
        self._failed_passes = 0
        self._was_in_sync = True

    def _in_words(self, observed: Observed | None) -> str:
        """Return what is in place."""
        shown = [address.cidr for address in self._desired.addresses[:SHOWN]]
        if len(self._desired.addresses) > SHOWN:
            shown.append(f"{len(self._desired.addresses) - SHOWN} more")
        text = f"{', '.join(shown)} on {self._desired.interface}"
        if not self._desired.rules:
            return text
        commands = " and ".join(each.command for each in observed.backends) if observed else ""
        return f"{text}, {len(self._desired.rules)} rules for port {self._port} by {commands}"

    def _log_new(self, report: Report) -> None:
        # Seconds and process ids in an error make no other failure of it, but an address in what was tried does.
        lines = {
            f"{failure.attempt}: {re.sub('[0-9]+', '', str(failure.error))}": (str(failure), failure.facts)
            for failure in report.failures
        }
        if not lines:
            # Everything that was tried succeeded, and yet it is not so: somebody else changes it at the same time.
            lines = {
                action.todo: (f"others keep changing it; still to do: {action.todo}", action.facts)
                for action in report.remaining
            }
        for gist, (line, facts) in lines.items():
            if gist not in self._known:
                logger.bind(**facts).error(line)
        self._known = set(lines)
