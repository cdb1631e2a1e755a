"""Passes and cleanups on a node in memory, with every call failing or dying in turn."""

from ipaddress import ip_address
from itertools import count
from typing import NoReturn

import pytest

from sidecar.errors import (
    CommandTimeout,
    DeadlineReached,
    InterfaceMissing,
    Interrupted,
    LockHeld,
    NotSupported,
    OutputUnreadable,
    Stopped,
)
from sidecar.node.command import Result
from sidecar.node.iproute import IpRoute
from sidecar.node.iptables import Iptables
from sidecar.node.reconcile import Reconciler
from sidecar.state.actions import AddRule, RemoveSurplus
from sidecar.state.desired import desired
from sidecar.state.model import Desired, Family, Part
from support.fake_kernel import FakeKernel
from support.namespace import IPV4, IPV6

pytestmark = pytest.mark.usefixtures("privileged")

GOAL = desired([IPV4, IPV6], interface="lo", port=443, setup_iptables=True)
RAW_RULE = "-d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j NOTRACK"


class Killed(BaseException):
    """SIGKILL: nothing in the program may catch it."""


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def __call__(self) -> float:
        return self.now


def reconciler(kernel: FakeKernel, goal: Desired = GOAL, clock: Clock | None = None) -> Reconciler:
    clock = clock or Clock()
    families: set[Family] = {rule.family for rule in goal.rules}
    iptables = {family: Iptables(kernel, family, "nft", 5.0) for family in sorted(families)}
    return Reconciler(goal, IpRoute(kernel), iptables, clock=clock, sleep=clock.sleep)


def in_place(kernel: FakeKernel) -> bool:
    """Whether exactly what is desired is there, each rule once."""
    rules = [rule for chains in kernel.rules.values() for chain in chains.values() for rule in chain]
    return sorted(kernel.addresses["lo"]) == ["10.96.0.2/32", "fd00:10:96::2/128"] and (
        sorted(rules) == sorted(" ".join(rule.match) for rule in GOAL.rules)
    )


def synced() -> FakeKernel:
    kernel = FakeKernel()
    assert reconciler(kernel).reconcile().in_sync
    kernel.calls.clear()
    return kernel


@pytest.fixture
def clock() -> Clock:
    return Clock()


def raise_(error: BaseException) -> NoReturn:
    raise error


FAILURES = {
    "exit 2": lambda: Result(2, "", "it says no"),
    "exit 4": lambda: Result(4, "", "it is locked"),
    "hangs": lambda: raise_(CommandTimeout(("ip",), "", "was killed")),
    "prints nothing": lambda: Result(0, "", ""),
    "prints nonsense": lambda: Result(0, "[{\x00", ""),
}


def test_one_pass_puts_everything_in_place() -> None:
    kernel = FakeKernel()
    report = reconciler(kernel).reconcile()
    assert report.in_sync
    assert report.exit_code == 0
    assert in_place(kernel)
    assert len(report.changed) == 12


def test_a_pass_in_sync_asks_once_per_tool_and_changes_nothing() -> None:
    kernel = synced()
    report = reconciler(kernel).reconcile()
    assert report.in_sync
    assert not report.changed
    assert [argv[0] for argv in kernel.calls] == ["ip", "iptables-nft-restore", "ip6tables-nft-restore"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_any_call_the_next_pass_reaches_the_goal(when: str) -> None:
    for number in count():
        kernel = FakeKernel()
        getattr(kernel, when)[number] = lambda: raise_(Killed())
        try:
            reconciler(kernel).reconcile()
        except Killed:
            getattr(kernel, when).clear()
            assert reconciler(kernel).reconcile().in_sync
            assert in_place(kernel)
        else:
            assert number == 3 + 3 + 3  # looks, what adds to each, looks
            break


@pytest.mark.parametrize("failure", FAILURES)
def test_whatever_fails_the_report_is_honest_and_the_next_pass_reaches_the_goal(failure: str) -> None:
    for number in count():
        kernel = FakeKernel()
        kernel.before[number] = FAILURES[failure]
        report = reconciler(kernel).reconcile()
        if len(kernel.calls) <= number:
            break
        assert not report.in_sync or in_place(kernel)
        assert report.in_sync == (not report.failures and not report.remaining)
        kernel.before.clear()
        assert reconciler(kernel).reconcile().in_sync
        assert in_place(kernel)


def test_what_was_changed_is_repaired_before_the_look_at_the_rest() -> None:
    def first_calls(part: Part) -> list[str]:
        kernel = synced()
        kernel.addresses["lo"].clear()
        kernel.rules["iptables"]["raw", "PREROUTING"].clear()
        kernel.calls.clear()
        report = reconciler(kernel).reconcile(first=part)
        assert (report.in_sync, len(report.changed)) == (True, 3)
        assert in_place(kernel)
        return [" ".join(argv[:2]) for argv in kernel.calls[:6]]

    looks = ["ip -json", "iptables-nft-restore --noflush", "ip6tables-nft-restore --noflush"]
    assert first_calls(Part.LINKS) == [looks[0], "ip -force", *looks, "iptables-nft -w"]
    assert first_calls(Part.RULES) == [*looks[1:], "iptables-nft -w", "iptables-nft -w", *looks[:2]]


def test_what_failed_in_the_part_that_was_repaired_first_is_not_tried_again_in_the_same_pass() -> None:
    class Hanging(FakeKernel):
        def __call__(self, *argv: str, stdin: str = "") -> Result:
            if "add" in argv:
                self.calls.append(argv)
                raise CommandTimeout(argv, "", "was killed after 10s")
            return super().__call__(*argv, stdin=stdin)

    kernel = Hanging()
    goal = desired([IPV4], interface="lo", port=443)
    report = Reconciler(goal, IpRoute(kernel), {}).reconcile(first=Part.LINKS)
    assert [type(failure.error) for failure in report.failures] == [CommandTimeout]
    assert len([argv for argv in kernel.calls if "add" in argv]) == 1


@pytest.mark.parametrize("failure", ["exit 2", "exit 4", "hangs"])
def test_a_failing_look_is_not_absence(failure: str) -> None:
    kernel = synced()
    before = kernel.state()
    kernel.before = dict.fromkeys(range(50), FAILURES[failure])
    report = reconciler(kernel).reconcile()
    assert kernel.state() == before
    assert not report.in_sync
    assert not report.changed
    assert {failure.attempt for failure in report.failures} == {
        "look at the addresses",
        "look at the IPv4 rules",
        "look at the IPv6 rules",
    }


def test_one_family_failing_does_not_keep_the_other_from_being_repaired() -> None:
    kernel = FakeKernel()

    class OnlyIPv4(FakeKernel):
        def __call__(self, *argv: str, stdin: str = "") -> Result:
            if argv[0].startswith("ip6tables"):
                return Result(3, "", "Table does not exist")
            return super().__call__(*argv, stdin=stdin)

    kernel = OnlyIPv4()
    report = reconciler(kernel).reconcile()
    assert kernel.rules["iptables"]["raw", "PREROUTING"] == [RAW_RULE]
    assert [type(failure.error) for failure in report.failures] == [NotSupported]
    assert report.exit_code == 3


def test_a_rule_that_another_program_adds_between_look_and_act_is_there_once_in_the_end() -> None:
    kernel = FakeKernel()
    # Call 0 looks at the addresses, 1 at the IPv4 rules: they are missing. Then somebody adds one.
    kernel.after[1] = lambda: kernel.rules["iptables"]["raw", "PREROUTING"].append(RAW_RULE)
    report = reconciler(kernel).reconcile()
    assert report.in_sync
    assert in_place(kernel)


def test_a_single_rule_that_another_program_adds_between_look_and_act_is_not_added_again() -> None:
    kernel = synced()
    kernel.rules["iptables"]["raw", "PREROUTING"].clear()
    kernel.after[len(kernel.calls) + 1] = lambda: kernel.rules["iptables"]["raw", "PREROUTING"].append(RAW_RULE)
    report = reconciler(kernel).reconcile()
    assert report.in_sync
    assert in_place(kernel)
    assert report.changed == ()


def test_copies_become_one_even_if_the_kernel_lacks_something_for_another_rule() -> None:
    """As when two sidecars have set up at the same moment."""

    class Lacking(FakeKernel):
        def __call__(self, *argv: str, stdin: str = "") -> Result:
            if f"-A {GOAL.rules[0].chain}" in f"{' '.join(argv)} {stdin}":
                return Result(3, "", "No chain/target/match by that name")
            return super().__call__(*argv, stdin=stdin)

    def add_twice() -> None:
        for rule in GOAL.rules[1:5]:
            kernel.rules["iptables"][rule.place] += [" ".join(rule.match)] * 2

    kernel = Lacking()
    kernel.after[1] = add_twice  # after the look at the rules
    report = reconciler(kernel).reconcile()
    assert report.exit_code == 3
    assert [type(failure.error) for failure in report.failures] == [NotSupported, NotSupported]
    assert sum(map(len, kernel.rules["iptables"].values())) == 4


def test_beside_a_rule_that_older_releases_take_for_ours_one_that_compares_prefixes_deletes_only_ours() -> None:
    kernel = synced()
    chain = kernel.rules["ip6tables"]["filter", "INPUT"]
    wider = chain[0].replace("/128", "/127")
    chain += [chain[0], wider]
    assert reconciler(kernel).reconcile().in_sync
    assert kernel.rules["ip6tables"]["filter", "INPUT"] == [chain[0], wider]
    assert reconciler(kernel).cleanup(float("inf")).in_sync
    assert kernel.rules["ip6tables"]["filter", "INPUT"] == [wider]


def test_copies_are_reduced_to_one() -> None:
    kernel = synced()
    kernel.rules["iptables"]["raw", "PREROUTING"] += [RAW_RULE] * 3
    report = reconciler(kernel).reconcile()
    assert report.changed == (RemoveSurplus(GOAL.rules[0], 3),)
    assert in_place(kernel)


def test_of_several_copies_the_place_of_the_first_is_kept() -> None:
    kernel = synced()
    chain = kernel.rules["iptables"]["filter", "INPUT"]
    kernel.rules["iptables"]["filter", "INPUT"] = ["-i lo -j ACCEPT", *chain, "-j DROP", *chain]
    assert reconciler(kernel).reconcile().in_sync
    assert kernel.rules["iptables"]["filter", "INPUT"] == ["-i lo -j ACCEPT", *chain, "-j DROP"]


@pytest.mark.parametrize("when", [1, 3])  # the look at the IPv4 rules, and the closer one before the removal
def test_the_last_copy_is_safe_from_two_that_remove_a_surplus_at_once(when: int) -> None:
    kernel = synced()
    kernel.rules["iptables"]["raw", "PREROUTING"].append(RAW_RULE)
    # The other sidecar removes the surplus copy right after we counted two.
    kernel.after[when] = lambda: kernel.rules["iptables"]["raw", "PREROUTING"].remove(RAW_RULE)
    report = reconciler(kernel).reconcile()
    assert report.in_sync
    assert report.changed == ()  # it was not taken away, nor added again
    assert in_place(kernel)


def test_an_address_that_appears_just_before_it_is_added_is_no_failure() -> None:
    kernel = FakeKernel()
    kernel.after[0] = lambda: kernel.addresses["lo"].append("10.96.0.2/32")
    # A rule is doubled at the same moment: neither keeps the other from being put right in the same pass.
    kernel.after[3] = lambda: kernel.rules["iptables"]["raw", "PREROUTING"].extend([RAW_RULE] * 2)
    report = reconciler(kernel).reconcile()
    assert report.in_sync
    assert in_place(kernel)


def test_a_chain_that_cannot_be_read_does_not_keep_the_others_from_being_kept_right() -> None:
    class OneOpaqueChain(FakeKernel):
        def __call__(self, *argv: str, stdin: str = "") -> Result:
            if "INPUT" in argv or "INPUT" in stdin:
                return Result(3, "", "Parsing nftables rule failed")
            return super().__call__(*argv, stdin=stdin)

    kernel = OneOpaqueChain()
    report = reconciler(kernel).reconcile()
    assert len(report.changed) == 2 + 2 * 4
    assert report.observed
    assert list(report.observed.unknown) == [rule for rule in GOAL.rules if rule.chain == "INPUT"]
    assert report.exit_code == 0  # nothing to wait for, and a later look will not know more
    report = reconciler(kernel).cleanup(20.0)
    assert kernel.state() == FakeKernel().state()
    assert [action.todo for action in report.remaining] == [
        f"remove rule: {rule}" for rule in GOAL.rules if rule.chain == "INPUT"
    ]
    assert report.exit_code == 1


def test_others_that_keep_deleting_do_not_make_a_pass_endless() -> None:
    class Opponent(FakeKernel):
        def __call__(self, *argv: str, stdin: str = "") -> Result:
            result = super().__call__(*argv, stdin=stdin)
            self.rules["iptables"]["raw", "PREROUTING"].clear()
            return result

    kernel = Opponent()
    report = reconciler(kernel).reconcile()
    assert report.remaining == (AddRule(GOAL.rules[0], insert=False),)
    assert report.exit_code == 1
    assert len(kernel.calls) < 60


def test_a_missing_interface_fails_and_the_rules_are_set_up_all_the_same() -> None:
    kernel = FakeKernel()
    goal = desired([IPV4], interface="eth9", port=443, setup_iptables=True, link_kind="")
    report = reconciler(kernel, goal).reconcile()
    assert [type(failure.error) for failure in report.failures] == [InterfaceMissing]
    assert report.exit_code == 1
    assert kernel.rules["iptables"]["raw", "PREROUTING"] == [RAW_RULE]
    assert kernel.addresses == {"lo": []}


def test_an_interface_that_cannot_be_created_is_one_failure() -> None:
    kernel = FakeKernel()
    refused = Result(2, "", "it says no")
    kernel.before = dict.fromkeys(range(50), lambda: refused if "-batch" in kernel.calls[-1] else None)
    goal = desired([IPV4], interface="own0", port=443, setup_iptables=True)
    report = reconciler(kernel, goal).reconcile()
    assert [failure.attempt for failure in report.failures] == ["create interface own0 (dummy)"]
    assert kernel.rules["iptables"]["raw", "PREROUTING"] == [RAW_RULE]


def test_an_interface_is_created_and_goes_with_the_cleanup() -> None:
    kernel = FakeKernel()
    before = kernel.state()
    goal = desired([IPV4], interface="own0", port=443)
    assert reconciler(kernel, goal).reconcile().in_sync
    assert kernel.addresses["own0"] == ["10.96.0.2/32"]
    assert reconciler(kernel, goal).cleanup(60.0).in_sync
    assert kernel.state() == before


def test_a_duplicate_goes_only_after_the_address_is_in_place() -> None:
    kernel = FakeKernel("eth0")
    kernel.addresses["eth0"] = ["10.96.0.2/32", "10.0.0.1/24"]
    goal = desired([IPV4], interface="lo", port=443, remove_duplicates=True)
    kernel.before[1] = FAILURES["exit 2"]  # the address cannot be added
    assert not reconciler(kernel, goal).reconcile().in_sync
    assert "10.96.0.2/32" in kernel.addresses["eth0"]
    assert reconciler(kernel, goal).reconcile().in_sync
    assert kernel.addresses == {"lo": ["10.96.0.2/32"], "eth0": ["10.0.0.1/24"]}


def test_insert_puts_the_rules_in_front() -> None:
    kernel = FakeKernel()
    kernel.rules["iptables"]["filter", "INPUT"].append("-j DROP")
    goal = desired([IPV4], interface="lo", port=443, setup_iptables=True, insert=True)
    assert reconciler(kernel, goal).reconcile().in_sync
    assert kernel.rules["iptables"]["filter", "INPUT"][1] == "-j DROP"


def test_a_stop_ends_the_pass_at_once() -> None:
    kernel = FakeKernel()
    kernel.before[4] = lambda: raise_(Stopped())
    with pytest.raises(Stopped):
        reconciler(kernel).reconcile()
    assert len(kernel.calls) == 5


def test_cleanup_takes_away_every_copy_and_nothing_else() -> None:
    kernel = FakeKernel("eth0")
    kernel.addresses["lo"].append("10.1.2.3/32")
    kernel.addresses["eth0"].append("10.96.0.2/32")
    kernel.rules["iptables"]["filter", "INPUT"].append("-d 10.96.0.2/32 -p tcp -m tcp --dport 444 -j ACCEPT")
    before = kernel.state()
    assert reconciler(kernel).reconcile().in_sync
    kernel.rules["iptables"]["raw", "PREROUTING"] += [RAW_RULE] * 2
    report = reconciler(kernel).cleanup(20.0)
    assert len(report.changed) == 12  # ten rules, each once, and two addresses
    assert report.exit_code == 0
    assert kernel.state() == before


def test_a_batch_that_ends_early_without_a_word_on_its_lines_is_done_line_by_line() -> None:
    class EndsEarly(FakeKernel):
        def __call__(self, *argv: str, stdin: str = "") -> Result:
            if "-force" in argv:
                super().__call__(*argv, stdin=stdin.splitlines()[0])
                return Result(255, "", 'Error: argument "x" is wrong: invalid')
            return super().__call__(*argv, stdin=stdin)

    kernel = EndsEarly()
    goal = desired([IPV4 + n for n in range(9)], interface="lo", port=443)  # more than one more in each round
    report = Reconciler(goal, IpRoute(kernel), {}).reconcile()
    assert report.in_sync
    assert kernel.addresses["lo"] == [address.cidr for address in goal.addresses]


def test_a_tool_that_hangs_is_not_asked_again_in_the_same_pass() -> None:
    class Hanging(FakeKernel):
        def __call__(self, *argv: str, stdin: str = "") -> Result:
            if "-A " in stdin:
                self.calls.append(argv)
                raise CommandTimeout(argv, "", "was killed after 10s")
            return super().__call__(*argv, stdin=stdin)

    kernel = Hanging()
    report = reconciler(kernel).reconcile()
    assert len(report.changed) == 2  # the addresses
    assert len(kernel.calls) == 3 + 1 + 2 + 3  # looks, the addresses, one of each family, looks


def test_when_time_is_up_the_reason_is_what_took_it(clock: Clock) -> None:
    class Hanging(FakeKernel):
        def __call__(self, *argv: str, stdin: str = "") -> Result:
            if clock() >= 10:
                raise DeadlineReached(argv, stdin)
            if argv[0] == "ip":
                return super().__call__(*argv, stdin=stdin)
            clock.sleep(1)
            if clock() >= 5:
                raise CommandTimeout(argv, stdin, "was killed after 0.3s")
            return Result(4, "", "Another app is currently holding the xtables lock")

    report = reconciler(Hanging(), clock=clock).cleanup(10.0)
    assert [type(failure.error) for failure in report.failures if "rules" in failure.attempt] == [LockHeld] * 2


def test_what_was_removed_before_time_was_up_is_not_said_to_be_left(clock: Clock) -> None:
    class SlowDeletion(FakeKernel):
        def __call__(self, *argv: str, stdin: str = "") -> Result:
            if clock() >= 10:
                raise DeadlineReached(argv, stdin)
            clock.sleep(10 if "-D " in stdin else 0)
            return super().__call__(*argv, stdin=stdin)

    kernel = SlowDeletion()
    assert reconciler(kernel).reconcile().in_sync
    report = reconciler(kernel, clock=clock).cleanup(10.0)
    assert len(report.changed) == 5  # the rules of one family
    assert not set(report.changed) & set(report.remaining)
    assert len(report.remaining) == 12 - 5


def test_cleanup_of_a_clean_node_does_nothing() -> None:
    kernel = FakeKernel()
    assert reconciler(kernel).cleanup(20.0).in_sync
    assert len(kernel.calls) == 3


@pytest.mark.parametrize("failure", ["exit 2", "exit 4", "hangs"])
def test_cleanup_goes_on_after_a_failure_at_any_call(failure: str) -> None:
    for number in count():
        kernel = synced()
        kernel.before[number] = FAILURES[failure]
        report = reconciler(kernel).cleanup(20.0)
        if len(kernel.calls) <= number:
            break
        assert report.in_sync
        assert kernel.state() == FakeKernel().state()


def test_cleanup_reports_what_it_cannot_remove_and_removes_the_rest() -> None:
    class Stubborn(FakeKernel):
        def __call__(self, *argv: str, stdin: str = "") -> Result:
            if "-D PREROUTING" in f"{' '.join(argv)} {stdin}":
                return Result(126, "", "no")
            return super().__call__(*argv, stdin=stdin)

    kernel = Stubborn()
    assert reconciler(kernel).reconcile().in_sync
    report = reconciler(kernel).cleanup(20.0)
    assert [str(action.todo) for action in report.remaining] == [
        f"remove rule: {rule}" for rule in GOAL.rules if rule.chain == "PREROUTING"
    ]
    assert report.exit_code == 1
    assert kernel.addresses["lo"] == []


def test_cleanup_cut_short_by_a_second_signal_says_what_may_be_left(log: list[str]) -> None:
    kernel = synced()
    log.clear()
    kernel.before[4] = lambda: raise_(Interrupted())  # three looks and the deletion of one family into it
    with pytest.raises(Interrupted):
        reconciler(kernel).cleanup(20.0)
    left = [line for line in log if "possibly left to do" in line]
    assert len(left) == 7
    assert left[-1].endswith("remove fd00:10:96::2/128 from lo")


class Locked(FakeKernel):
    """Somebody else holds the xtables lock until a certain time."""

    def __init__(self, clock: Clock, until: float) -> None:
        super().__init__()
        self.clock, self.until = clock, until

    def __call__(self, *argv: str, stdin: str = "") -> Result:
        if argv[0] != "ip" and self.clock() < self.until:
            return Result(4, "", "Another app is currently holding the xtables lock")
        return super().__call__(*argv, stdin=stdin)


def test_cleanup_waits_for_the_lock_and_only_then_takes_the_address() -> None:
    clock = Clock()
    kernel = Locked(clock, until=0.0)
    assert reconciler(kernel, clock=clock).reconcile().in_sync
    kernel.until = 8.0
    kernel.calls.clear()
    report = reconciler(kernel, clock=clock).cleanup(20.0)
    assert report.in_sync
    assert kernel.state() == FakeKernel().state()
    looks = [("ip", "-json"), ("iptables-nft-restore", "--noflush"), ("ip6tables-nft-restore", "--noflush")]
    assert [argv[:2] for argv in kernel.calls[-9:]] == [*looks, *looks[1:], ("ip", "-force"), *looks]


def test_cleanup_gives_up_at_its_deadline_and_says_what_is_perhaps_left() -> None:
    clock = Clock()
    kernel = Locked(clock, until=0.0)
    assert reconciler(kernel, clock=clock).reconcile().in_sync
    kernel.until = 100.0
    report = reconciler(kernel, clock=clock).cleanup(20.0)
    assert 20.0 <= clock.now < 21.0
    assert kernel.addresses["lo"] == []  # gone all the same
    assert [type(failure.error) for failure in report.failures] == [LockHeld, LockHeld]
    assert [action.todo for action in report.remaining] == [f"remove rule: {rule}" for rule in GOAL.rules]
    assert report.exit_code == 1


def test_a_check_that_finds_what_is_not_there_does_not_keep_a_rule_from_being_added() -> None:
    """As in ip6tables-legacy 1.8.9, whose -C takes a rule with another port for ours."""

    class CredulousCheck(FakeKernel):
        def __call__(self, *argv: str, stdin: str = "") -> Result:
            result = super().__call__(*argv, stdin=stdin)
            return Result(0, "", "") if "-C" in argv else result

    kernel = CredulousCheck()
    assert reconciler(kernel).reconcile().in_sync
    assert in_place(kernel)


def test_a_broken_check_does_not_add_copies_of_what_the_listing_shows() -> None:
    """As in iptables 1.8.10, whose -C does not find rules that are there."""

    class BlindCheck(FakeKernel):
        def __call__(self, *argv: str, stdin: str = "") -> Result:
            if "-C" in argv or "\n-C" in stdin:
                self.calls.append(argv)
                return Result(1, "", "Bad rule (does a matching rule exist in that chain?).")
            return super().__call__(*argv, stdin=stdin)

    kernel = BlindCheck()
    for _ in range(3):
        assert reconciler(kernel).reconcile().in_sync
        assert in_place(kernel)


def test_output_that_makes_no_sense_is_a_failure_that_says_so() -> None:
    kernel = synced()
    kernel.before[0] = FAILURES["prints nonsense"]
    report = reconciler(kernel).reconcile()
    assert [type(failure.error) for failure in report.failures] == [OutputUnreadable]
    assert "`ip -json address show`" in str(report.failures[0])


def test_a_hundred_addresses_take_as_many_processes_as_one() -> None:
    ips = [ip_address(f"10.96.1.{n}") for n in range(100)]
    goal = desired(ips, interface="lo", port=443, setup_iptables=True)
    kernel = FakeKernel()
    assert reconciler(kernel, goal).reconcile().in_sync
    kernel.calls.clear()
    only_ipv4 = Reconciler(goal, IpRoute(kernel), {4: Iptables(kernel, 4, "nft", 5.0)})
    assert only_ipv4.reconcile().in_sync
    assert len(kernel.calls) == 2
