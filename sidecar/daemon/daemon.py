"""Decides when the next pass runs, and what to log about the last one."""

import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from loguru import logger

from sidecar.daemon.vitals import Vitals
from sidecar.daemon.wakeup import Wakeup, Woken
from sidecar.errors import LockHeld, NodeError, Stopped
from sidecar.log import levels
from sidecar.log.setup import begin_pass
from sidecar.node.claims import Claims
from sidecar.node.events import Events
from sidecar.node.reconcile import Reconciler
from sidecar.settings import durations
from sidecar.state.actions import Action, MoveToFront, RemoveAddress, RemoveFormer, RemoveSurplus, Report
from sidecar.state.model import Desired, Observed

SOON: Final = 1.0  # seconds until the first retry, and until the first pass after a change
LATER: Final = 7.0  # seconds from there to the second pass after a change, where events show further ones

#: Passes that events may trigger at once, and how many per second after that.
BURST: Final = 5.0
PASSES_PER_SECOND: Final = 2.5

#: How many equal changes within COUNTED_FOR seconds are logged one by one; further ones are only counted.
SEPARATELY: Final = 3
COUNTED_FOR: Final = 60.0

SHOWN: Final = 4  # how many addresses a log line names before it counts the rest
LOCK_RETRY: Final = 2.0  # seconds until the next try while another process holds the xtables lock


def run(  # noqa: PLR0913 - what to do, when to do it, and whom to tell
    reconciler: Reconciler,
    wakeup: Wakeup,
    interval: float,
    journal: "Journal",
    events: Events | None = None,
    *,
    vitals: Vitals | None = None,
    claims: Claims | None = None,
) -> Report | None:
    """Run passes until a signal stops the loop, and return None.

    If the very first pass shows that this node cannot do what the settings ask for, return its report: going on
    would hide that. Later, the same failure may be temporary, for example during a package upgrade, so it is retried.
    """
    schedule, pace = Schedule(interval, has_events=bool(events and events.are_whole)), Pace()
    first, woken = True, Woken.BY_CLOCK
    try:
        while not wakeup.stopping:
            begin_pass()
            if claims:
                claims.take_missing()
            if vitals:
                vitals.pass_begins()
            is_repair = woken is Woken.BY_EVENT
            part = events.take_part() if events and is_repair else None
            # A repair comes first. What changes while it looks must show up next time.
            before_look = events.take_sizes if events else lambda: None
            report = reconciler.reconcile(reconsiders=not is_repair, first=part, before_look=before_look)
            if vitals:
                vitals.pass_ended(report)
            journal.record(report)
            if first and any(isinstance(failure.error, NodeError) for failure in report.failures):
                return report
            first = False
            _pass_on(report, events, claims)
            seconds = schedule.next(report, by_event=is_repair)
            if vitals:
                vitals.sleeps(seconds)
            woken = _sleep(wakeup, schedule, pace, seconds, events)
    except Stopped:
        pass
    finally:
        journal.close()
    return None


def _pass_on(report: Report, events: Events | None, claims: Claims | None) -> None:
    """Let the events, and through the claims other processes, know what a pass observed.

    Forget events that the pass caused itself; the next one, 1 s after a change, sees what others did meanwhile.
    """
    if claims and report.observed:
        claims.show_foreign(is_foreign=report.observed.history.was_foreign)
    if events is None:
        return
    if report.observed:
        events.interface_index = report.observed.history.index
        events.watch_legacy({each.family for each in report.observed.backends if each.is_legacy})
    if any(isinstance(action, RemoveSurplus | MoveToFront | RemoveAddress | RemoveFormer) for action in report.changed):
        events.forget()
        events.take_part()


def _sleep(wakeup: Wakeup, schedule: "Schedule", pace: "Pace", seconds: float, events: Events | None) -> Woken:
    """Wait for the next pass, and return what ended the wait; an event does so at once, but not too often."""
    woken = wakeup.wait(seconds, events)
    if woken is Woken.BY_EVENT:
        delay = pace.delay()
        if delay and wakeup.wait(min(delay, seconds)) is Woken.BY_SIGNAL:
            woken = Woken.BY_SIGNAL
        if events:
            events.forget()
    if woken is Woken.BY_SIGNAL:
        schedule.start_over()
    return woken


class Pace:
    """Allows BURST passes at once, then PASSES_PER_SECOND: a program that keeps undoing changes must not make us spin.

    A token bucket: each pass takes one token, and tokens come back over time.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tokens = BURST
        self._last = clock()

    def delay(self) -> float:
        """Count the next pass, and return the seconds to wait before it."""
        now = self._clock()
        self._tokens = min(BURST, self._tokens + (now - self._last) * PASSES_PER_SECOND)
        self._last = now
        self._tokens -= 1
        return max(0.0, -self._tokens / PASSES_PER_SECOND)


def _jitter() -> float:
    return random.uniform(0.75, 1.0)  # noqa: S311 - not a secret


class Schedule:
    """Computes the seconds from one pass to the next.

    The delay is 1 s after a change or a first failure, then doubles with each pass up to the interval; but in sync, and
    where events show each change, one more look is enough. After a failed pass it gets jitter, so that a thousand
    nodes with the same problem do not retry in step.
    """

    def __init__(self, interval: float, jitter: Callable[[], float] = _jitter, *, has_events: bool = False) -> None:
        self._interval = interval
        self._jitter = jitter
        self._has_events = has_events
        self._delay = interval
        self._failing = False

    def start_over(self) -> None:
        """Forget earlier failures: somebody asks for a pass, perhaps because the cause is repaired."""
        self._failing = False

    def next(self, report: Report, *, by_event: bool = False) -> float:
        """Return the seconds to wait after the pass that made this report.

        A pass by an event that comes to nothing takes the place of none of the looks that follow a change.
        """
        failed = not report.in_sync
        if report.changed or (failed and not self._failing):
            delay = SOON
        elif self._has_events and not failed:
            later = LATER if self._delay == SOON else self._interval
            delay = self._delay if by_event else later
        else:
            delay = self._delay * 2
        self._delay = min(delay, self._interval)
        if report.failures and all(isinstance(failure.error, LockHeld) for failure in report.failures):
            # The lock is usually released soon, and then there is much to do.
            self._delay = min(self._delay, LOCK_RETRY)
        self._failing = failed
        return self._delay * self._jitter() if failed else self._delay


@dataclass(slots=True)
class Changes:
    """How often the same change was made, and when first and last."""

    first: float
    last: float
    number: int = 0

    def log(self, action: Action) -> None:
        """Log the count, if not every change was logged by itself."""
        if self.number > SEPARATELY:
            seconds = durations.render(round(self.last - self.first))
            facts = logger.bind(**action.facts, times=self.number)
            facts.warning(f"something keeps changing it back, {self.number} times within {seconds}: {action.done}")


class Journal:
    """Logs passes: a failure when it is new, success when it ends a failure or comes first, and nothing otherwise."""

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
        """Log a change; if the same one keeps coming back, log only how often."""
        now = self._clock()
        self._log_counts([action], now - COUNTED_FOR)
        changes = self._changes.setdefault(action, Changes(now, now))
        changes.last = now
        changes.number += 1
        if changes.number <= SEPARATELY:
            logger.bind(**action.facts).info(action.done)
        elif changes.number == SEPARATELY + 1:
            logger.bind(**action.facts).warning(
                f"something keeps changing it back, only counted from now on: {action.done}"
            )

    def close(self) -> None:
        """Log what is only counted so far."""
        self._log_counts(list(self._changes), float("inf"))

    def _log_counts(self, actions: Sequence[Action], before: float) -> None:
        """Log and forget the counts of these actions that began before a point in time."""
        for action in actions:
            changes = self._changes.get(action)
            if changes and changes.first < before:
                changes.log(action)
                del self._changes[action]

    def record(self, report: Report) -> None:
        """Log what is new about this report, and the counts of changes that began a while ago."""
        self._log_counts(list(self._changes), self._clock() - COUNTED_FOR)
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
        """Return in words what is in place."""
        shown = [address.cidr for address in self._desired.addresses[:SHOWN]]
        if len(self._desired.addresses) > SHOWN:
            shown.append(f"{len(self._desired.addresses) - SHOWN} more")
        text = f"{', '.join(shown)} on {self._desired.interface}"
        if not self._desired.rules:
            return text
        commands = " and ".join(each.command for each in observed.backends) if observed else ""
        unknown = f" ({len(observed.unknown)} unknown)" if observed and observed.unknown else ""
        return f"{text}, {len(self._desired.rules)} rules for port {self._port} by {commands}{unknown}"

    def _log_new(self, report: Report) -> None:
        # Numbers in an error (seconds, process ids) do not make it a new failure, but an address in the attempt does.
        lines = {
            f"{failure.attempt}: {re.sub('[0-9]+', '', str(failure.error))}": (str(failure), failure.facts)
            for failure in report.failures
        }
        if not lines:
            # Every action succeeded, yet the node is not in sync: another program changes it at the same time.
            lines = {
                action.todo: (f"others keep changing it; still to do: {action.todo}", action.facts)
                for action in report.remaining
            }
        for gist, (line, facts) in lines.items():
            if gist not in self._known:
                logger.bind(**facts).error(line)
        self._known = set(lines)
