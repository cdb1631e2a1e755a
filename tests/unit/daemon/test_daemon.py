from collections.abc import Callable, Collection
from typing import Literal, cast

import pytest

from sidecar.daemon import daemon
from sidecar.daemon.daemon import Journal, Pace, Schedule
from sidecar.daemon.vitals import Vitals
from sidecar.daemon.wakeup import Wakeup, Woken
from sidecar.errors import (
    CommandError,
    CommandMissing,
    CommandTimeout,
    InterfaceMissing,
    LockHeld,
    SidecarError,
    Stopped,
)
from sidecar.node.command import Result
from sidecar.node.events import Events
from sidecar.node.iproute import IpRoute
from sidecar.node.reconcile import Reconciler
from sidecar.state.actions import AddAddress, AddRule, Failure, RemoveSurplus, Report
from sidecar.state.desired import desired
from sidecar.state.model import Address, Part, Rule
from support.fake_kernel import FakeKernel
from support.namespace import IPV4

ADDED = AddAddress(Address(IPV4, 32, "lo"), "host")
GOAL = desired([IPV4], interface="lo", port=443)
QUIET = Report((), (), ())
CHANGED = Report((ADDED,), (), ())
FAILED = Report((), (ADDED,), (Failure("add 10.96.0.2/32", InterfaceMissing("eth9")),))


class Sleeps:
    """A Wakeup that needs no time: what ends each sleep is given, and how long it was asked to last remembered."""

    def __init__(self, *ends: Literal["clock", "signal", "event"]) -> None:
        self.asked: list[float] = []
        self._ends = list(ends)

    @property
    def stopping(self) -> bool:
        return not self._ends

    def wait(self, seconds: float, _events: Events | None = None) -> Woken:
        self.asked.append(seconds)
        return {"clock": Woken.BY_CLOCK, "signal": Woken.BY_SIGNAL, "event": Woken.BY_EVENT}[self._ends.pop(0)]


class Sizes(Events):
    """Events of a node in memory: the size of its tables is how many rules there are."""

    def __init__(self, kernel: FakeKernel) -> None:
        self._kernel = kernel
        self.are_whole = True
        self.taken = -1

    def size(self) -> int:
        return sum(map(len, self._kernel.rules["iptables"].values()))

    def take_sizes(self) -> None:
        self.taken = self.size()

    def forget(self) -> None:
        pass

    def take_part(self) -> Part | None:
        return Part.RULES

    def watch_legacy(self, families: Collection[int]) -> None:
        pass


def passes(kernel: FakeKernel, sleeps: Sleeps, events: Events | None = None) -> Report | None:
    """Run the daemon over a node in memory."""
    reconciler = Reconciler(GOAL, IpRoute(kernel), {})
    return daemon.run(reconciler, cast("Wakeup", sleeps), 60.0, Journal(GOAL, 443), events)


def test_the_loop_gives_signs_of_life_and_tells_how_it_went() -> None:
    kernel, now = FakeKernel(), [1000.0]
    vitals = Vitals(GOAL, 10.0, clock=lambda: now[0], now=lambda: now[0])
    signs: list[str] = []
    ends: list[Literal["clock"]] = ["clock"] * 8

    class Waits(Sleeps):
        def wait(self, seconds: float, events: Events | None = None) -> Woken:
            now[0] += seconds
            signs.append(vitals.hang())
            return super().wait(seconds, events)

    reconciler = Reconciler(GOAL, IpRoute(kernel), {})
    sleeps = cast("Wakeup", Waits(*ends))
    daemon.run(reconciler, sleeps, 60.0, Journal(GOAL, 443), vitals=vitals)
    assert signs == [""] * 8
    assert vitals.readiness()[0]
    assert vitals.counts().passes == {"in_sync": 7, "changed": 1, "failed": 0}


def fail(kind: type[SidecarError], *arguments: object) -> Callable[[], Result]:
    def failing() -> Result:
        raise kind(*arguments)

    return failing


def test_a_node_that_lacks_something_ends_the_daemon_at_its_first_pass() -> None:
    kernel, sleeps = FakeKernel(), Sleeps("clock")
    kernel.before[0] = fail(CommandMissing, "ip")
    report = passes(kernel, sleeps)
    assert report
    assert report.exit_code == 3
    assert sleeps.asked == []


def test_what_changes_legacy_tables_while_it_looks_is_not_taken_for_what_it_saw() -> None:
    kernel = FakeKernel()
    events = Sizes(kernel)
    kernel.after[2] = lambda: kernel.rules["iptables"]["raw", "OUTPUT"].append("-j ACCEPT")
    passes(kernel, Sleeps("clock"), events)
    assert events.taken != events.size()


def test_what_is_missing_later_is_waited_for() -> None:
    kernel, sleeps = FakeKernel(), Sleeps("clock", "clock", "clock")
    kernel.before[3] = fail(CommandMissing, "ip")  # after a look, an addition and a look
    assert passes(kernel, sleeps) is None
    assert kernel.addresses["lo"] == ["10.96.0.2/32"]
    assert sleeps.asked[0] == 1
    assert 0.75 <= sleeps.asked[1] <= 1


def test_a_signal_makes_the_retries_start_over() -> None:
    kernel, sleeps = FakeKernel(), Sleeps("clock", "clock", "clock", "signal", "clock")
    kernel.before = dict.fromkeys(range(10), fail(CommandTimeout, ("ip",), "", "was killed"))
    passes(kernel, sleeps)
    assert sleeps.asked[3] >= 6
    assert sleeps.asked[4] <= 1


def test_an_event_brings_a_look_at_once_and_many_of_them_not_too_often() -> None:
    ends: list[Literal["clock", "signal", "event"]] = ["event", "clock"] * 40
    kernel, sleeps = FakeKernel(), Sleeps("event", *ends)
    passes(kernel, sleeps)
    assert sleeps.asked[0] == 1  # after the first pass, which changed something
    waits = [seconds for seconds in sleeps.asked if seconds < 1]
    assert len(sleeps.asked) - len(waits) > 30
    assert waits
    assert max(waits) <= 60


def test_after_an_event_the_repair_comes_before_another_look_at_the_choice_of_the_backend() -> None:
    looks: list[int] = []

    class Chosen(Reconciler):
        def reconsider(self) -> None:
            looks.append(len(sleeps.asked))

    sleeps = Sleeps("event", "clock", "signal", "event", "clock")
    daemon.run(Chosen(GOAL, IpRoute(FakeKernel()), {}), cast("Wakeup", sleeps), 60.0, Journal(GOAL, 443))
    assert looks == [0, 2, 3]  # not after the first and the fourth sleep


def test_the_pace_lets_a_few_through_and_then_so_many_a_second() -> None:
    now = 0.0
    pace = Pace(lambda: now)
    assert [pace.delay() for _ in range(5)] == [0] * 5
    assert [pace.delay() for _ in range(3)] == pytest.approx([0.4, 0.8, 1.2])
    now = 100.0
    assert [pace.delay() for _ in range(6)] == pytest.approx([0] * 5 + [0.4])


def test_with_time_in_between_every_event_is_answered_at_once() -> None:
    now = 0.0
    pace = Pace(lambda: now)
    for _ in range(1000):
        now += 0.4
        assert pace.delay() == pytest.approx(0)


def test_a_stop_in_the_middle_of_a_pass_ends_it() -> None:
    def stopped() -> Result:
        raise Stopped

    kernel, sleeps = FakeKernel(), Sleeps("clock")
    kernel.before[1] = stopped
    assert passes(kernel, sleeps) is None
    assert sleeps.asked == []


def delays(reports: list[Report], interval: float = 60.0, jitter: float = 1.0) -> list[float]:
    schedule = Schedule(interval, lambda: jitter)
    return [schedule.next(report) for report in reports]


def test_a_node_in_sync_is_looked_at_once_an_interval() -> None:
    assert delays([QUIET] * 3) == [60, 60, 60]


def test_after_a_change_the_looks_come_soon_and_then_ever_later() -> None:
    assert delays([CHANGED] + [QUIET] * 7) == [1, 2, 4, 8, 16, 32, 60, 60]


def test_where_the_kernel_tells_of_changes_two_looks_after_a_change_are_enough() -> None:
    schedule = Schedule(60.0, lambda: 1.0, has_events=True)
    reports = [QUIET, CHANGED, QUIET, QUIET, QUIET, CHANGED, CHANGED, QUIET, FAILED, FAILED, FAILED, QUIET]
    assert [schedule.next(report) for report in reports] == [60, 1, 7, 60, 60, 1, 1, 7, 1, 2, 4, 60]


def test_events_that_come_to_nothing_take_the_place_of_no_look() -> None:
    schedule = Schedule(60.0, lambda: 1.0, has_events=True)
    looks = [
        (CHANGED, True),
        (QUIET, True),
        (QUIET, True),
        (QUIET, False),
        (QUIET, True),
        (QUIET, False),
        (QUIET, True),
    ]
    assert [schedule.next(report, by_event=by_event) for report, by_event in looks] == [1, 1, 1, 7, 7, 60, 60]


def test_a_failing_pass_is_retried_soon_and_then_ever_later() -> None:
    assert delays([QUIET] + [FAILED] * 8) == [60, 1, 2, 4, 8, 16, 32, 60, 60]


def test_a_new_failure_after_a_success_starts_over() -> None:
    assert delays([FAILED, FAILED, FAILED, QUIET, FAILED]) == [1, 2, 4, 8, 1]


def test_every_change_starts_over() -> None:
    assert delays([CHANGED, QUIET, QUIET, CHANGED, QUIET]) == [1, 2, 4, 1, 2]


def test_while_the_lock_is_held_the_next_try_comes_within_two_seconds() -> None:
    held = Failure("look at the IPv4 rules", LockHeld(("iptables",), "", "exited with 4"))
    locked = Report((), (), (held,))
    both = Report((), (ADDED,), (held, *FAILED.failures))
    assert delays([locked] * 5) == [1, 2, 2, 2, 2]
    assert delays([both] * 5) == [1, 2, 4, 8, 16]


def test_when_somebody_asks_for_a_look_the_retries_start_over() -> None:
    schedule = Schedule(60.0, lambda: 1.0)
    before = [schedule.next(FAILED) for _ in range(4)]
    schedule.start_over()
    assert before + [schedule.next(FAILED) for _ in range(2)] == [1, 2, 4, 8, 1, 2]


def test_only_failures_get_jitter() -> None:
    assert delays([FAILED, FAILED, CHANGED, QUIET], jitter=0.75) == [0.75, 1.5, 1, 2]


def test_no_delay_is_longer_than_the_interval() -> None:
    assert delays([CHANGED, FAILED, QUIET], interval=0.5) == [0.5, 0.5, 0.5]


@pytest.fixture
def journal(log: list[str]) -> Journal:
    log.clear()
    return Journal(GOAL, 443)


def test_a_change_that_comes_again_and_again_is_counted(log: list[str]) -> None:
    now = 0.0
    journal = Journal(GOAL, 443, lambda: now)
    log.clear()
    for _ in range(600):
        now += 0.1
        journal.changed(ADDED)
    assert [line.split()[0] for line in log] == ["INFO", "INFO", "INFO", "WARNING"]
    assert log[3] == "WARNING something keeps changing it back, only counted from now on: added 10.96.0.2/32 to lo"
    now += 1
    journal.changed(ADDED)
    assert log[4:] == [
        "WARNING something keeps changing it back, 600 times within 1m0s: added 10.96.0.2/32 to lo",
        "INFO added 10.96.0.2/32 to lo",
    ]


def test_the_count_is_logged_when_the_changes_end_and_nothing_is_remembered(log: list[str]) -> None:
    now = 0.0
    journal = Journal(GOAL, 443, lambda: now)
    journal.record(QUIET)
    for _ in range(500):
        now += 0.1
        journal.changed(ADDED)
    log.clear()
    journal.record(QUIET)
    assert log == []
    now += 60
    journal.record(QUIET)
    assert log == ["WARNING something keeps changing it back, 500 times within 50s: added 10.96.0.2/32 to lo"]
    now += 7 * 24 * 3600
    journal.changed(ADDED)
    assert log[1:] == ["INFO added 10.96.0.2/32 to lo"]


def test_each_change_that_ends_is_forgotten() -> None:
    now = 0.0
    journal = Journal(GOAL, 443, lambda: now)
    rule = Rule(4, "raw", "OUTPUT", ("-j", "NOTRACK"))
    for surplus in range(10_000):
        now += 0.4
        journal.changed(RemoveSurplus(rule, surplus))
        journal.record(QUIET)
    remembered = journal._changes  # noqa: SLF001 - what it keeps cannot be seen from outside
    assert len(remembered) <= daemon.COUNTED_FOR / 0.4 + 1
    now += 61
    journal.record(QUIET)
    assert remembered == {}


def test_the_end_of_the_program_logs_the_count(log: list[str]) -> None:
    journal = Journal(GOAL, 443, lambda: 0.0)
    for _ in range(5):
        journal.changed(ADDED)
    log.clear()
    journal.close()
    journal.close()
    assert log == ["WARNING something keeps changing it back, 5 times within 0s: added 10.96.0.2/32 to lo"]


def test_a_change_now_and_then_is_said_each_time(log: list[str]) -> None:
    now = 0.0
    journal = Journal(GOAL, 443, lambda: now)
    log.clear()
    for _ in range(10):
        now += 61
        journal.changed(ADDED)
    assert log == ["INFO added 10.96.0.2/32 to lo"] * 10


def test_in_sync_is_said_once(journal: Journal, log: list[str]) -> None:
    for _ in range(1000):
        journal.record(QUIET)
    assert log == ["INFO in sync: 10.96.0.2/32 on lo"]


def test_the_same_failure_is_said_once_and_then_counted(journal: Journal, log: list[str]) -> None:
    for report in [FAILED] * 100 + [QUIET]:
        journal.record(report)
    assert len(log) == 2
    assert log[0].startswith("ERROR could not add 10.96.0.2/32: interface eth9 does not exist")
    assert log[1] == "INFO in sync after 100 failed passes: 10.96.0.2/32 on lo"


def test_a_failure_that_comes_back_is_said_again(journal: Journal, log: list[str]) -> None:
    for report in [FAILED, QUIET, FAILED]:
        journal.record(report)
    assert [line.split()[0] for line in log] == ["ERROR", "INFO", "ERROR"]


def test_a_further_failure_is_said_besides_a_known_one(journal: Journal, log: list[str]) -> None:
    other = Failure("look at the IPv4 rules", LockHeld(("iptables",), "", "exited with 4"))
    journal.record(FAILED)
    journal.record(Report((), (), (*FAILED.failures, other)))
    assert len(log) == 2


def test_another_wording_of_the_same_failure_is_not_news(journal: Journal, log: list[str]) -> None:
    for seconds in range(10):
        error = CommandError(("iptables",), "", "exited with 4", f"Another app holds it; {seconds}s left")
        journal.record(Report((), (), (Failure("look at the IPv4 rules", error),)))
    assert len(log) == 1


def test_each_of_several_addresses_is_named(journal: Journal, log: list[str]) -> None:
    failures = [Failure(f"add 10.96.0.{n}/32 to lo", CommandError(("ip",), "", "exited with 2")) for n in range(3)]
    journal.record(Report((), (), tuple(failures)))
    assert len(log) == 3


def test_a_failure_that_comes_back_beside_a_lasting_one_is_said_again(journal: Journal, log: list[str]) -> None:
    other = Failure("look at the IPv4 rules", LockHeld(("iptables",), "", "exited with 4"))
    for failures in (FAILED.failures, (*FAILED.failures, other)) * 3:
        journal.record(Report((), (), failures))
    assert len(log) == 1 + 3


def test_another_reason_is_news(journal: Journal, log: list[str]) -> None:
    for reason in ("one", "one", "two", "two"):
        error = CommandError(("ip",), "", "exited with 1", reason)
        journal.record(Report((), (), (Failure("look at the addresses", error),)))
    assert len(log) == 2


def test_a_tug_of_war_is_named(journal: Journal, log: list[str]) -> None:
    rule = Rule(4, "raw", "OUTPUT", ("-j", "NOTRACK"))
    for _ in range(10):
        journal.record(Report((AddRule(rule, insert=False),), (AddRule(rule, insert=False),), ()))
    assert log == ["ERROR others keep changing it; still to do: add rule: -t raw -A OUTPUT -j NOTRACK"]
