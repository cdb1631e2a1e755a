"""Records what the loop did and when it last reported. The main thread writes it; the thread that answers probes reads.

The loop is alive if it is on time: with each report, it also says when it will report next at the latest. In a pass
that is the end of the next command: `--command-timeout`, the second that a killed command gets, and SLACK. In a sleep
it is twice the length (events that come too often at most double it) and SLACK. A loop later than that counts as hung.
A command that was killed when its time was up also counts as a hang, until a pass completes without one.

Counters start at 0 for every name known beforehand, as Prometheus sees no increase in a first value.
"""

import bisect
import re
import threading
import time
from collections.abc import Callable, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Final

from sidecar.errors import CommandStuck, pasteable
from sidecar.state import actions
from sidecar.state.actions import Action, Report
from sidecar.state.inventory import State, survey
from sidecar.state.model import Desired, Interface, Object, Observed
from sidecar.state.plan import unknowns
from sidecar.text import visible

SLACK: Final = 5.0  # seconds that a busy node may take beyond the expected time

#: Upper bounds of the histograms' buckets, in seconds.
BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

#: How a pass can end: nothing to do; something repaired; something still not as desired.
RESULTS: Final = ("in_sync", "changed", "failed")

#: Why a command gave no answer. 0 and 1 are answers ("no such rule" is one); iptables exits with 4 if the lock is held.
REASONS: Final = ("timeout", "signal", "lock", "exit_status")
_ANSWERS: Final = (0, 1)
_LOCK: Final = 4

_MOST_LINES: Final = 20  # how many lines say what is missing before the rest is counted


@dataclass(slots=True)
class Histogram:
    """A histogram of durations; `counts` has one number for each bucket, and one for longer durations."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    sum: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect.bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds


@dataclass(slots=True)
class Counts:
    """All values that /metrics shows. Times are in seconds; timestamps are Unix time, 0 for never."""

    backend: str = ""
    ready: bool = False
    last_pass: float = 0.0
    last_success: float = 0.0
    passes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(RESULTS, 0))
    pass_seconds: Histogram = field(default_factory=Histogram)
    failures: dict[str, int] = field(default_factory=dict)
    """By kind of error: the class names of errors.py in snake case."""

    repairs: dict[Object, int] = field(default_factory=dict)
    copies_removed: dict[str, int] = field(default_factory=lambda: {"address": 0, "rule": 0})
    in_sync: dict[Object, bool] = field(default_factory=dict)  # without objects that could not be observed
    commands: dict[str, Histogram] = field(default_factory=dict)
    command_failures: dict[tuple[str, str], int] = field(default_factory=dict)
    lock_wait_seconds: float = 0.0

    def copy(self) -> "Counts":
        """Return a copy that later changes do not reach; the objects that are counted never change."""
        plain = {each.name: copy(getattr(self, each.name)) for each in fields(self)}
        return Counts(**plain | {name: deepcopy(plain[name]) for name in ("pass_seconds", "commands")})


class Vitals:
    """The record. Any thread may call any method."""

    def __init__(
        self,
        desired: Desired,
        command_timeout: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._desired = desired
        self._command_timeout = command_timeout
        self._clock = clock
        self._now = now
        self._lock = threading.Lock()
        self._counts = Counts(repairs=dict.fromkeys(_objects(desired), 0))
        self._doing = "starting"
        self._due = float("inf")
        self._began = 0.0
        self._hung = ""
        self._hung_in_pass = False
        self._since = now()
        self._missing: tuple[str, ...] = ("the node has not been checked yet",)

    # What the loop reports

    def starts(self, seconds: float) -> None:
        """Expect the first pass within `seconds`."""
        self._expect("starting", seconds)

    def pass_begins(self) -> None:
        self._began = self._clock()
        self._hung_in_pass = False
        self._expect("in a pass", self._command_timeout)

    def command_ended(self, argv: Sequence[str], exit_status: int | None, seconds: float) -> None:
        """Record how a command ended: its exit status, negative for a signal, None if it was killed at its timeout."""
        program = argv[0]
        with self._lock:
            if program not in self._counts.commands:
                self._counts.commands[program] = Histogram()
                self._counts.command_failures |= {(program, reason): 0 for reason in REASONS}
            self._counts.commands[program].add(seconds)
            if reason := _reason(program, exit_status):
                self._counts.command_failures[program, reason] += 1
            if reason == "lock":
                self._counts.lock_wait_seconds += seconds
            if reason == "timeout":
                self._hung_in_pass = True
                killed = f"`{visible(pasteable(argv))}` was killed after {seconds:.3g} s"
                self._hung = f"{killed}, and no pass has completed without a timeout since"
        if self._doing == "in a pass":
            self._expect("in a pass", self._command_timeout)

    def pass_ended(self, report: Report) -> None:
        now, seconds = self._now(), self._clock() - self._began
        result = ("changed" if report.changed else "in_sync") if report.in_sync else "failed"
        in_sync = _in_sync(self._desired, report.observed) if report.observed else {}
        with self._lock:
            counts = self._counts
            is_stuck = any(isinstance(failure.error, CommandStuck) for failure in report.failures)
            if not (self._hung_in_pass or is_stuck):
                self._hung = ""
            counts.backend = _backends(report.observed) or counts.backend
            counts.passes[result] += 1
            counts.pass_seconds.add(seconds)
            for failure in report.failures:
                name = _snake(type(failure.error).__name__)
                counts.failures[name] = counts.failures.get(name, 0) + 1
            for action in report.changed:
                self._count_change(action)
            counts.in_sync = in_sync
            if report.in_sync != counts.ready or not counts.last_pass:
                self._since = now
            counts.ready, counts.last_pass = report.in_sync, now
            if report.in_sync:
                counts.last_success = now
            self._missing = _missing(report)
        self._expect("after a pass", 0.0)

    def sleeps(self, seconds: float) -> None:
        self._expect("asleep", 2 * seconds)

    def stops(self, seconds: float) -> None:
        """Expect the end of the program, after a cleanup of at most `seconds`."""
        with self._lock:
            self._counts.ready = False
            self._missing = ("stopping",)
            self._since = self._now()
        self._expect("stopping", seconds)

    # What probes and scrapes read

    def hang(self) -> str:
        """Return why the loop is not alive, or an empty string if it is."""
        with self._lock:
            late = self._clock() - self._due
            if late > 0:
                return f"hung, {self._doing}: its next report is {late:.0f} s overdue"
            return self._hung

    def readiness(self) -> tuple[bool, str]:
        """Return whether the last pass left everything in place; and since when, and what is missing or unknown."""
        hang = self.hang()
        with self._lock:
            since, last = _time(self._since), _time(self._counts.last_pass)
            if self._counts.ready and not hang:
                return True, "\n- ".join((f"in sync since {since}, last look {last}", *self._missing))
            lines = (hang,) if hang else self._missing
            return False, "\n- ".join((f"not in sync since {since}", *lines))

    def counts(self) -> Counts:
        """Return a copy of all current values."""
        with self._lock:
            counts = self._counts.copy()
        counts.ready = self.readiness()[0]
        return counts

    def _expect(self, doing: str, seconds: float) -> None:
        with self._lock:
            self._doing = doing
            self._due = self._clock() + seconds + SLACK

    def _count_change(self, action: Action) -> None:
        """Count repairs: objects that were put back after everything had been in place once, not the initial setup."""
        match action:
            case actions.RemoveSurplus(_, surplus):
                self._counts.copies_removed["rule"] += surplus
            case actions.RemoveAddress():
                self._counts.copies_removed["address"] += 1
            case actions.AddAddress(address) | actions.DeprecateAddress(address):
                self._count_repair(address)
            case actions.AddRule(rule) | actions.MoveToFront(rule):
                self._count_repair(rule)
            case actions.CreateLink(interface) | actions.SetLinkUp(interface):
                self._count_repair(Interface(interface))

    def _count_repair(self, repaired: Object) -> None:
        if self._counts.last_success:
            self._counts.repairs[repaired] = self._counts.repairs.get(repaired, 0) + 1


def _objects(desired: Desired) -> list[Object]:
    return [Interface(desired.interface), *desired.addresses, *desired.rules]


def _in_sync(desired: Desired, observed: Observed) -> dict[Object, bool]:
    """Return whether each address and rule that could be observed is as desired."""
    right = {State.PRESENT} if desired.insert else {State.PRESENT, State.NO_EFFECT}
    found = zip(_objects(desired), survey(desired, observed), strict=True)
    return {
        each: item.state in right
        for each, item in found
        if not isinstance(each, Interface) and item.state is not State.UNKNOWN
    }


def _backends(observed: Observed | None) -> str:
    """Return the backends in use, as --iptables-backend spells them; empty until they are known."""
    return ",".join(sorted({each.name for each in observed.backends})) if observed else ""


def _missing(report: Report) -> tuple[str, ...]:
    """Return a line for each object that is not as desired, or not known."""
    tried = {failure.attempt for failure in report.failures}
    todo = [f"still to do: {action.todo}" for action in report.remaining if action.todo not in tried]
    unknown = unknowns(report.observed) if report.observed else ()
    lines = [visible(str(line)) for line in (*report.failures, *todo, *unknown)]
    more = len(lines) - _MOST_LINES
    return (*lines[:_MOST_LINES], *([f"and {more} more"] if more > 0 else []))


def _reason(program: str, exit_status: int | None) -> str:
    """Return why a command gave no answer, or an empty string if it gave one."""
    if exit_status is None:
        return "timeout"
    if exit_status < 0:
        return "signal"
    if exit_status in _ANSWERS:
        return ""
    has_lock = program != "ip" and "-nft" not in program  # nft says so for any refusal of the kernel
    return "lock" if exit_status == _LOCK and has_lock else "exit_status"


def _snake(name: str) -> str:
    return re.sub("(?<!^)(?=[A-Z])", "_", name).lower()


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
