"""The record behind the probes and metrics, and what a scrape makes of it."""

import itertools

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from sidecar.daemon import metrics, vitals
from sidecar.daemon.vitals import SLACK, Vitals
from sidecar.errors import CommandTimeout, InterfaceMissing, LockHeld
from sidecar.state.actions import AddAddress, AddRule, CreateLink, Failure, RemoveAddress, RemoveSurplus, Report
from sidecar.state.desired import desired
from sidecar.state.model import Address, BackendInUse, Hindrance, Link, LinkAddress, Observed
from support.namespace import IPV4

GOAL = desired([IPV4], interface="lo", port=443, setup_iptables=True)
RULE = GOAL.rules[0]
ADDRESS = GOAL.addresses[0]
THERE = Link("lo", addresses=(LinkAddress(IPV4, 32, "host"),))
NFT = BackendInUse(4, "iptables-nft", "1.8.9", is_legacy=False, reason="")
ALL = Observed((THERE,), dict.fromkeys(GOAL.rules, 1), backends=(NFT,))
IN_SYNC = Report((), (), (), observed=ALL)
ADDED = Report((AddAddress(ADDRESS, "host"),), (), (), observed=ALL)
FAILED = Report(
    (),
    (AddAddress(ADDRESS, "host"), AddRule(RULE, insert=False)),
    (Failure(AddAddress(ADDRESS, "host").todo, InterfaceMissing("lo")),),
    observed=Observed((Link("lo"),), {**ALL.copies, RULE: 0}),
)


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def record(clock: Clock) -> Vitals:
    return Vitals(GOAL, 10.0, clock=clock, now=clock)


def make_pass(record: Vitals, report: Report) -> None:
    record.pass_begins()
    record.pass_ended(report)
    record.sleeps(60.0)


def samples(record: Vitals) -> dict[tuple[str, ...], float]:
    """Scrape; return each sample by its name, without the prefix, and the values of its labels."""
    text = metrics.exposition(record).decode()
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert all(sample.name.startswith("apiserver_proxy_sidecar_") for sample in found)
    named = {_key(sample): sample.value for sample in found}
    assert len(named) == len(found)
    return named


def _key(sample: Sample) -> tuple[str, ...]:
    return sample.name.removeprefix("apiserver_proxy_sidecar_"), *sample.labels.values()


# Alive


def test_it_is_alive_as_long_as_it_is_heard_of_in_time(record: Vitals, clock: Clock) -> None:
    record.starts(60.0)
    clock.time += 60.0
    assert record.hang() == ""
    for _ in range(10):  # a pass may take long, as long as its commands come to an end
        record.pass_begins()
        for _ in range(10):
            clock.time += 11.0
            assert record.hang() == ""
            record.command_ended(("ip", "address"), 0, 11.0)
        record.pass_ended(IN_SYNC)
        record.sleeps(60.0)
        clock.time += 119.0
        assert record.hang() == ""


@pytest.mark.parametrize(
    ("doing", "seconds"),
    [("starting", 60.0), ("in a pass", 10.0), ("after a pass", 0.0), ("asleep", 120.0), ("stopping", 20.0)],
)
def test_it_is_dead_once_it_is_clearly_late(record: Vitals, clock: Clock, doing: str, seconds: float) -> None:
    record.starts(60.0)
    if doing != "starting":
        record.pass_begins()
    if doing in ("after a pass", "asleep", "stopping"):
        record.pass_ended(IN_SYNC)
    if doing in ("asleep", "stopping"):
        record.sleeps(60.0)
    if doing == "stopping":
        record.stops(20.0)
    clock.time += seconds + SLACK
    assert record.hang() == ""
    clock.time += 1.0
    assert record.hang() == f"hung, {doing}: its next report is 1 s overdue"
    assert record.readiness()[0] is False
    assert samples(record)["alive",] == samples(record)["ready",] == 0.0


def test_a_command_that_hung_counts_until_a_pass_got_by_without(record: Vitals) -> None:
    make_pass(record, IN_SYNC)
    record.pass_begins()
    record.command_ended(("ip", "-json", "address"), None, 10.0)
    assert (
        record.hang() == "`ip -json address` was killed after 10 s, and no pass has completed without a timeout since"
    )
    record.pass_ended(FAILED)
    assert record.hang()
    record.pass_begins()
    record.command_ended(("ip", "-json", "address"), 0, 0.01)
    assert record.hang()  # it may hang yet in this pass
    record.pass_ended(IN_SYNC)
    assert record.hang() == ""


def test_it_is_alive_while_everything_fails(record: Vitals) -> None:
    make_pass(record, FAILED)
    assert record.hang() == ""


# Ready


def test_it_is_ready_once_a_look_found_everything_in_place(record: Vitals, clock: Clock) -> None:
    assert record.readiness() == (False, "not in sync since 1970-01-01T00:16:40Z\n- the node has not been checked yet")
    clock.time += 20
    make_pass(record, ADDED)
    clock.time += 60
    make_pass(record, IN_SYNC)
    assert record.readiness() == (True, "in sync since 1970-01-01T00:17:00Z, last look 1970-01-01T00:18:00Z")


def test_what_is_missing_is_told_and_since_when(record: Vitals, clock: Clock) -> None:
    make_pass(record, IN_SYNC)
    clock.time += 60
    make_pass(record, FAILED)
    clock.time += 60
    make_pass(record, FAILED)
    is_ready, text = record.readiness()
    assert not is_ready
    since, *lines = text.splitlines()
    assert since == "not in sync since 1970-01-01T00:17:40Z"
    assert lines[0].startswith("- could not add 10.96.0.2/32 to lo: interface lo does not exist")
    assert lines[1:] == [f"- still to do: add rule: {RULE}"]


def test_of_a_great_many_things_some_are_told(record: Vitals) -> None:
    actions = tuple(AddAddress(Address(IPV4 + number, 32, "lo"), "host") for number in range(500))
    make_pass(record, Report((), actions, ()))
    assert len(record.readiness()[1].splitlines()) == 22
    assert record.readiness()[1].endswith("\n- and 480 more")


def test_who_stops_is_not_ready(record: Vitals) -> None:
    make_pass(record, IN_SYNC)
    record.stops(20.0)
    assert record.readiness()[0] is False
    assert record.hang() == ""


# Metrics


def test_passes_by_result(record: Vitals, clock: Clock) -> None:
    for report, seconds in ((ADDED, 0.02), (IN_SYNC, 0.005), (IN_SYNC, 99.0), (FAILED, 0.3)):
        record.pass_begins()
        clock.time += seconds
        record.pass_ended(report)
    shown = samples(record)
    assert [shown["passes_total", result] for result in vitals.RESULTS] == [2, 1, 1]
    assert shown["failures_total", "interface_missing"] == 1
    assert shown["last_pass_timestamp_seconds",] == clock.time
    assert shown["last_success_timestamp_seconds",] == pytest.approx(clock.time - 0.3)
    counts = [shown["pass_duration_seconds_bucket", bound] for bound in ("0.005", "0.01", "0.025", "30.0", "+Inf")]
    assert counts in ([1, 1, 2, 3, 4], [0, 1, 2, 3, 4])  # as the clock's sums are no round numbers
    assert shown["pass_duration_seconds_count",] == 4
    assert shown["pass_duration_seconds_sum",] == pytest.approx(99.325)


def test_repairs_are_what_was_put_back_not_what_was_set_up(record: Vitals) -> None:
    name = ("repairs_total", "address", "10.96.0.2/32 on lo")
    assert samples(record)[name] == 0
    make_pass(record, FAILED)
    make_pass(record, ADDED)
    assert samples(record)[name] == 0
    make_pass(record, ADDED)
    again = Report((*ADDED.changed, AddRule(RULE, insert=True), CreateLink("lo", "dummy")), (), (), observed=ALL)
    make_pass(record, again)
    shown = samples(record)
    assert shown[name] == 2
    assert shown["repairs_total", "rule", str(RULE)] == 1
    assert shown["repairs_total", "interface", "lo"] == 1
    assert len([key for key in shown if key[0] == "repairs_total"]) == 7


def test_copies_that_were_removed(record: Vitals) -> None:
    elsewhere = RemoveAddress(Address(IPV4, 32, "eth0"))
    make_pass(
        record, Report((RemoveSurplus(RULE, 3), elsewhere, RemoveSurplus(GOAL.rules[1], 1)), (), (), observed=ALL)
    )
    shown = samples(record)
    assert shown["copies_removed_total", "rule"] == 4
    assert shown["copies_removed_total", "address"] == 1


def test_what_is_in_sync_and_nothing_of_what_could_not_be_seen(record: Vitals) -> None:
    names = [("in_sync", "address", str(ADDRESS)), *(("in_sync", "rule", str(rule)) for rule in GOAL.rules)]
    assert [key for key in samples(record) if key[0] == "in_sync"] == []
    make_pass(record, IN_SYNC)
    assert [samples(record)[name] for name in names] == [1] * 6
    make_pass(record, FAILED)
    assert [samples(record)[name] for name in names] == [0, 0, 1, 1, 1, 1]
    make_pass(record, Report((), (), FAILED.failures, observed=Observed(None, {RULE: 2})))
    assert [key for key in samples(record) if key[0] == "in_sync"] == [names[1]]
    assert samples(record)[names[1]] == 0


@pytest.mark.parametrize("insert", [True, False])
def test_a_rule_without_effect_is_out_of_place_where_it_would_be_moved(insert: bool, clock: Clock) -> None:  # noqa: FBT001 - pytest passes it by name
    goal = desired([IPV4], interface="lo", port=443, setup_iptables=True, insert=insert)
    record = Vitals(goal, 10.0, clock=clock, now=clock)
    behind = Observed((THERE,), dict.fromkeys(goal.rules, 1), {RULE: Hindrance("-A INPUT -j DROP", certain=True)})
    make_pass(record, Report((), (), (), observed=behind))
    assert samples(record)["in_sync", "rule", str(RULE)] == (not insert)


def test_commands_by_how_they_ended(record: Vitals) -> None:
    for exit_status in (0, 0, 1, 2, -9, None):
        record.command_ended(("ip", "-json", "address"), exit_status, 0.03)
    record.command_ended(("iptables-legacy", "-w", "5", "-S"), 4, 5.0)
    record.command_ended(("iptables-legacy-restore", "-w", "5"), 4, 2.5)
    shown = samples(record)
    assert [shown["command_failures_total", "ip", reason] for reason in vitals.REASONS] == [1, 1, 0, 1]
    assert [shown["command_failures_total", "iptables-legacy", reason] for reason in vitals.REASONS] == [0, 0, 1, 0]
    assert shown["command_duration_seconds_count", "ip"] == 6
    assert shown["command_duration_seconds_bucket", "ip", "0.05"] == 6
    assert shown["lock_waits_total",] == 2
    assert shown["lock_wait_seconds_total",] == 7.5


def test_failures_go_by_the_names_of_errors(record: Vitals) -> None:
    errors = (LockHeld(("iptables",), "", "exited with 4"), CommandTimeout(("ip",), "", "was killed"))
    make_pass(record, Report((), (), tuple(Failure("look", error) for error in (*errors, errors[0]))))
    assert samples(record)["failures_total", "lock_held"] == 2
    assert samples(record)["failures_total", "command_timeout"] == 1


def test_the_version_and_the_backend(record: Vitals) -> None:
    def info() -> tuple[str, ...]:
        return next(key for key in samples(record) if key[0] == "build_info")[1:]

    assert "nft" not in info()
    make_pass(record, IN_SYNC)
    assert "nft" in info()


def test_a_series_that_can_be_named_beforehand_starts_at_zero(record: Vitals) -> None:
    before = samples(record)
    make_pass(record, IN_SYNC)
    make_pass(record, ADDED)
    new = {key for key in samples(record) if key not in before and key[0] not in ("in_sync", "build_info")}
    assert new == set()


def test_counters_never_fall(record: Vitals, clock: Clock) -> None:
    reports = itertools.islice(itertools.cycle([IN_SYNC, FAILED, ADDED]), 20)
    last: dict[tuple[str, ...], float] = {}
    for report in reports:
        clock.time += 1
        record.command_ended(("ip",), None if report is FAILED else 0, 1.0)
        make_pass(record, report)
        now = samples(record)
        rising = [key for key in last if key[0].endswith(("_total", "_count", "_sum", "_bucket"))]
        assert all(now[key] >= last[key] for key in rising)
        last = now
