"""When is the next pass, and what of the last one is worth a line in the log."""

import random
import re
from collections.abc import Callable
from typing import Final

from loguru import logger

from sidecar import verbosity
from sidecar.errors import LockHeld, NodeError, Stopped
from sidecar.model import Report
from sidecar.reconcile import Reconciler
from sidecar.wakeup import Wakeup

#: Seconds until the first retry, and until the first look after a change.
SOON: Final = 1.0

#: Seconds until the next try while somebody holds the xtables lock.
LOCK_RETRY: Final = 2.0


def run(reconciler: Reconciler, wakeup: Wakeup, interval: float, journal: "Journal") -> Report | None:
    """Make passes until a signal says stop, and return None.

    Or return the report of the very first pass, if it shows that this node cannot do what is asked of it: to go
    on would hide that. Later on the same failure may pass, as when a package is being upgraded: it is retried.
    """
    schedule = Schedule(interval)
    first = True
    try:
        while not wakeup.stopping:
            report = reconciler.reconcile()
            journal.record(report)
            if first and any(isinstance(failure.error, NodeError) for failure in report.failures):
                return report
            first = False
            if wakeup.wait(schedule.next(report)):
                schedule.start_over()
    except Stopped:
        pass
    return None


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
        if failed and all(isinstance(failure.error, LockHeld) for failure in report.failures):
            # Whoever holds the lock lets go of it soon, and there is much to do then.
            self._delay = min(self._delay, LOCK_RETRY)
        self._failing = failed
        return self._delay * self._jitter() if failed else self._delay


class Journal:
    """Writes the log of passes: a failure when it is new, success when it is news, and nothing otherwise."""

    def __init__(self, goal: Callable[[], str]) -> None:
        """`goal` tells what "in sync" means, in words."""
        self._goal = goal
        self._known: set[str] = set()
        self._noticed: set[str] = set()
        self._failed_passes = 0
        self._was_in_sync = False

    def record(self, report: Report) -> None:
        """Log what is new about this report."""
        for notice in report.notices:
            if notice.text not in self._noticed:
                logger.bind(**notice.facts).log("WARNING" if notice.certain else verbosity.PASS, str(notice))
        self._noticed = {notice.text for notice in report.notices}
        if not report.in_sync:
            self._failed_passes += 1
            self._was_in_sync = False
            self._log_new(report)
            return
        if not self._was_in_sync:
            after = f" after {self._failed_passes} failed passes" if self._failed_passes else ""
            logger.bind(failed_passes=self._failed_passes).info(f"in sync{after}: {self._goal()}")
        self._known.clear()
        self._failed_passes = 0
        self._was_in_sync = True

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
