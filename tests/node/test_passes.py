"""Passes and cleanups on the real kernel: both backends, both families, a network namespace for each test."""

import time
from dataclasses import dataclass, replace
from itertools import combinations, count, cycle, product
from pathlib import Path
from typing import Final

import pytest

from sidecar.node.command import Result
from sidecar.node.iproute import IpRoute
from sidecar.node.iptables import Iptables
from sidecar.node.reconcile import Reconciler
from sidecar.state.actions import RemoveRule, RemoveSurplus, Report
from sidecar.state.desired import desired
from sidecar.state.inventory import is_in_sync
from sidecar.state.model import Desired, Family, IPAddress
from support.namespace import IPV4, IPV6, Namespace, NamespaceCommands
from support.sweep import sweep

pytestmark = pytest.mark.usefixtures("privileged")

#: What iptables-save shows once everything is in place, in its own order.
SAVED = """\
-t filter -A INPUT -d {cidr} -p tcp -m tcp --dport 443 -j ACCEPT
-t filter -A OUTPUT -s {cidr} -p tcp -m tcp --sport 443 -j ACCEPT
-t raw -A PREROUTING -d {cidr} -p tcp -m tcp --dport 443 -j NOTRACK
-t raw -A OUTPUT -d {cidr} -p tcp -m tcp --dport 443 -j NOTRACK
-t raw -A OUTPUT -s {cidr} -p tcp -m tcp --sport 443 -j NOTRACK
"""


@dataclass(frozen=True)
class Node:
    """A namespace, looked at through one backend and for one address."""

    namespace: Namespace
    commands: NamespaceCommands
    backend: str
    ip: IPAddress

    @property
    def family(self) -> Family:
        return self.ip.version

    @property
    def cidr(self) -> str:
        return f"{self.ip}/{self.ip.max_prefixlen}"

    @property
    def goal(self) -> Desired:
        return desired([self.ip], interface="lo", port=443, setup_iptables=True)

    def reconciler(self, goal: Desired | None = None, wait: float = 5.0) -> Reconciler:
        goal = goal or self.goal
        families: set[Family] = {rule.family for rule in goal.rules}
        iptables = {family: Iptables(self.commands.run, family, self.backend, wait) for family in families}
        return Reconciler(goal, IpRoute(self.commands.run), iptables)

    def reconcile(self) -> Report:
        return self.reconciler().reconcile()

    def iptables(self, *words: str, check: bool = True) -> str:
        return self.namespace.iptables(self.backend, self.family, *words, check=check)

    def rules(self) -> list[str]:
        return self.namespace.rules(self.backend, self.family)

    def in_place(self) -> bool:
        return self.rules() == SAVED.format(cidr=self.cidr).splitlines() and self.namespace.addresses() == [self.cidr]


@pytest.fixture(params=[IPV4, IPV6], ids=["IPv4", "IPv6"])
def node(namespace: Namespace, backend: str, request: pytest.FixtureRequest) -> Node:
    return Node(namespace, NamespaceCommands(namespace), backend, request.param)


def test_one_pass_puts_the_address_and_exactly_the_five_rules_in_place(node: Node) -> None:
    report = node.reconcile()
    assert report.in_sync
    assert node.namespace.addresses() == [node.cidr]
    assert node.rules() == SAVED.format(cidr=node.cidr).splitlines()


def test_a_second_pass_changes_nothing(node: Node) -> None:
    def state() -> tuple[str, str]:
        # A rule that was taken away and added again would have another handle.
        return node.namespace.run("nft", "--handle", "list", "ruleset"), node.namespace.run("ip", "address", "show")

    node.reconcile()
    before = state()
    report = node.reconcile()
    assert report.in_sync
    assert not report.changed
    assert state() == before


def test_looking_changes_nothing(node: Node) -> None:
    def state() -> tuple[str, list[str], str]:
        return (
            node.namespace.run("nft", "--handle", "list", "ruleset"),
            node.rules(),
            node.namespace.run("ip", "address", "show"),
        )

    tool = Iptables(node.commands.run, node.family, node.backend, 5.0)
    for situation in ("empty", "set up"):
        before = state()
        seen = tool.observe(node.goal.rules)
        assert set(seen.copies.values()) == {0 if situation == "empty" else 1}
        assert (seen.hindrances, seen.errors) == ({}, ())
        IpRoute(node.commands.run).observe()
        assert state() == before
        node.reconcile()


def test_every_subset_that_is_deleted_comes_back_and_nothing_else_changes(
    node: Node,
    thorough: bool,  # noqa: FBT001 - a fixture
) -> None:
    node.reconcile()
    parts = [None, *node.goal.rules]
    for size in range(len(parts) + 1) if thorough else (1, len(parts)):
        for subset in combinations(parts, size):
            for part in subset:
                if part is None:
                    node.namespace.run("ip", "address", "delete", node.cidr, "dev", "lo")
                else:
                    node.iptables("-t", part.table, "-D", part.chain, *part.match)
            report = node.reconcile()
            assert report.in_sync, (subset, report)
            assert len(report.changed) == size, (subset, report)
            assert sorted(node.rules()) == sorted(SAVED.format(cidr=node.cidr).splitlines())
            assert node.namespace.addresses() == [node.cidr]


def test_rules_set_by_hand_in_the_short_spelling_are_recognised(node: Node) -> None:
    for words in (
        "-t raw -A PREROUTING -p tcp -d {ip} --dport 443 -j NOTRACK",
        "-t raw -A OUTPUT -p tcp --dport 443 --destination {ip} -j NOTRACK",
        "-t raw -A OUTPUT -s {ip} --protocol tcp --sport 443 -j NOTRACK",
        "-A INPUT -d {ip} -p tcp --dport https -j ACCEPT",
        "-A OUTPUT --source {ip} -p 6 --source-port 443 -j ACCEPT",
    ):
        node.iptables(*words.format(ip=node.ip).split())
    report = node.reconcile()
    assert report.in_sync
    assert len(report.changed) == 1  # the address
    assert node.in_place()


def test_copies_become_one(node: Node) -> None:
    node.reconcile()
    for number, rule in enumerate(node.goal.rules):
        for _ in range(number):
            node.iptables("-t", rule.table, "-A", rule.chain, *rule.match)
    assert node.reconcile().in_sync
    assert sorted(node.rules()) == sorted(SAVED.format(cidr=node.cidr).splitlines())


def test_what_two_sidecars_have_added_at_once_becomes_one_by_one_transaction(node: Node) -> None:
    goal = desired([node.ip + n for n in range(20)], interface="lo", port=443, setup_iptables=True)
    others = [f"-A INPUT -p tcp -m tcp --dport {port} -j ACCEPT" for port in (1, 2, 3)]
    rules = [f"-A {rule.chain} {' '.join(rule.match)}" for rule in goal.rules if rule.table == "filter"]
    raw = [f"-A {rule.chain} {' '.join(rule.match)}" for rule in goal.rules if rule.table == "raw"]
    filled = [others[0], *rules[:9], others[1], *rules[:21], *rules, others[2], *rules]
    lines = ["*raw", *raw, *raw[5:], "COMMIT", "*filter", *filled, "COMMIT", ""]
    command = f"{'iptables' if node.family == 4 else 'ip6tables'}-{node.backend}-restore"
    node.namespace.run(command, "--noflush", stdin="\n".join(lines))
    report = node.reconciler(goal).reconcile()
    assert report.in_sync
    assert node.commands.processes() == ["ip", command, "ip", command, command, "ip", command]
    kept = dict.fromkeys(f"-t filter {each}" for each in filled if " INPUT " in each)
    assert [rule for rule in node.rules() if "-A INPUT" in rule] == list(kept)
    assert len(node.rules()) == 103


def test_of_several_copies_the_place_of_the_first_is_kept(node: Node) -> None:
    """It has its effect there; behind the DROP it would have none."""
    node.reconcile()
    node.iptables("-I", "INPUT", "-i", "lo", "-j", "ACCEPT")
    node.iptables("-A", "INPUT", "-j", "DROP")
    before = node.rules()
    for _ in range(3):
        node.iptables("-A", "INPUT", *node.goal.rules[3].match)
    assert node.reconcile().in_sync
    assert node.rules() == before


def test_very_many_copies_go_many_at_once(node: Node) -> None:
    rule = node.goal.rules[1]
    command = "iptables" if node.family == 4 else "ip6tables"

    def add_500() -> None:
        lines = f"*{rule.table}\n" + f"{rule.line}\n" * 100 + "COMMIT\n"
        for _ in range(5):
            node.namespace.run(f"{command}-{node.backend}-restore", "--noflush", stdin=lines)
        node.commands.processes()

    add_500()
    report = node.reconcile()
    assert report.in_sync
    assert [action for action in report.changed if action.facts.get("copies")] == [RemoveSurplus(rule, 499)]
    assert len(node.commands.processes()) < 50
    assert node.in_place()
    add_500()
    report = node.reconciler().cleanup(deadline=float("inf"))
    assert report.in_sync
    assert RemoveRule(rule, 501) in report.changed
    assert node.rules() == []
    assert len(node.commands.processes()) < 20


def test_rules_and_addresses_that_only_resemble_ours_are_left_alone(node: Node) -> None:
    node.namespace.run("ip", "address", "add", "10.96.0.3/32", "dev", "lo")
    node.namespace.run("ip", "link", "add", "other", "type", "veth")
    node.namespace.run("ip", "address", "add", node.cidr, "dev", "other")
    for words in (
        "-A INPUT -d {ip} -p tcp --dport 444 -j ACCEPT",
        "-A INPUT -d {ip} -p udp --dport 443 -j ACCEPT",
        "-A INPUT -d {ip} -p tcp --dport 443 -j DROP",
        "-A INPUT -d {ip} -p tcp --dport 443 -m comment --comment ours? -j ACCEPT",
        "-A INPUT ! -d {ip} -p tcp --dport 443 -j ACCEPT",
        "-A INPUT -i lo -d {ip} -p tcp --dport 443 -j ACCEPT",
        "-t raw -A OUTPUT -d {ip} -p tcp --dport 443 -j CT --notrack",
        "-t raw -A OUTPUT -d {ip} -p tcp --dport 443 -j ACCEPT",
    ):
        node.iptables(*words.format(ip=node.ip).split())
    rules, addresses = node.rules(), node.namespace.run("ip", "-oneline", "address", "show")
    assert len(node.reconcile().changed) == 6
    assert len(node.rules()) == len(rules) + 5
    assert node.reconciler().cleanup(deadline=float("inf")).in_sync
    assert node.rules() == rules
    assert node.namespace.run("ip", "-oneline", "address", "show") == addresses


@pytest.mark.parametrize(
    "separator", sweep(["\n", "\v", "\x1c", "\x85", "\u2028", '\n"', "\\\n"], ["\n", "\x85", "\\\n"])
)
def test_a_comment_that_looks_like_our_rule_is_not_taken_for_it(node: Node, separator: str) -> None:
    forged = separator.join(("x", node.goal.rules[3].line, "#"))
    node.iptables("-A", "INPUT", "-p", "udp", "-m", "comment", "--comment", forged, "-j", "DROP")
    node.iptables("-A", "INPUT", "-p", "tcp", "-m", "comment", "--comment", forged, "-j", "DROP")
    others = node.iptables("-S", "INPUT")
    report = node.reconcile()
    assert report.in_sync
    assert len(report.changed) == 6
    assert node.iptables("-S", "INPUT") == others + f"{node.goal.rules[3].line}\n"
    (notice,) = report.notices
    assert str(notice).startswith("without effect behind `-A INPUT -p tcp -m comment --comment ")
    assert node.reconciler().cleanup(deadline=float("inf")).in_sync
    assert node.iptables("-S", "INPUT") == others


@pytest.mark.parametrize("place", ["before", "behind"])
def test_a_rule_that_iptables_takes_for_ours_stays_where_it_is(namespace: Namespace, backend: str, place: str) -> None:
    """ip6tables-nft does not compare prefix lengths: what deletes ours would delete the other one."""
    node = Node(namespace, NamespaceCommands(namespace), backend, IPV6)
    wider = [rule.match for rule in node.goal.rules]
    before = [
        ("-t", r.table, "-A", r.chain, *(w.replace("/128", "/127") for w in m))
        for r, m in zip(node.goal.rules, wider, strict=True)
    ]
    if place == "behind":
        node.reconcile()
    for words in before:
        for _ in range(2):
            node.iptables(*words)
    others = [rule for rule in node.rules() if "/127" in rule]
    assert len(others) == 10
    assert node.reconcile().in_sync
    for rule in node.goal.rules:
        node.iptables("-t", rule.table, "-A", rule.chain, *rule.match)  # a second copy of each
    assert node.reconcile().in_sync
    assert len(node.rules()) == 15
    goal = desired([IPV6], interface="lo", port=443, setup_iptables=True, insert=True)
    node.iptables("-I", "INPUT", "-j", "DROP")
    assert node.reconciler(goal).reconcile().in_sync
    assert [rule for rule in node.rules() if "/127" in rule] == others


def test_hundreds_of_copies_go_and_rules_that_iptables_takes_for_ours_stay(namespace: Namespace, backend: str) -> None:
    node = Node(namespace, NamespaceCommands(namespace), backend, IPV6)
    match = f"-d {IPV6}/128 -p tcp -m tcp --dport 443 -j ACCEPT"
    lines = [f"-A INPUT {match}"] * 250 + ["-A INPUT -s ::1/128 -j ACCEPT", f"-A INPUT {match.replace('/128', '/127')}"]
    text = "\n".join(["*filter", *lines, "COMMIT", ""])
    namespace.run(f"ip6tables-{backend}-restore", "--noflush", stdin=text)
    others = [rule for rule in node.rules() if match not in rule]
    assert len(others) == 2
    assert node.reconcile().in_sync
    assert len(node.rules()) == 5 + len(others)
    assert [rule for rule in node.rules() if "/128 -p" not in rule or "::1" in rule or "/127" in rule] == others
    assert node.reconciler().cleanup(float("inf")).in_sync
    assert node.rules() == others


def test_cleanup_removes_every_copy(node: Node) -> None:
    node.reconcile()
    for rule in node.goal.rules:
        node.iptables("-t", rule.table, "-A", rule.chain, *rule.match)
    assert node.reconciler().cleanup(deadline=float("inf")).in_sync
    assert node.rules() == []
    assert node.namespace.addresses() == []


def test_insert_puts_the_rules_in_front(node: Node) -> None:
    node.iptables("-A", "INPUT", "-j", "DROP")
    assert node.reconciler(replace(node.goal, insert=True)).reconcile().in_sync
    assert node.rules()[:2] == [SAVED.format(cidr=node.cidr).splitlines()[0], "-t filter -A INPUT -j DROP"]


def test_a_rule_without_effect_is_noticed(node: Node) -> None:
    node.iptables("-A", "INPUT", "-p", "tcp", "-j", "DROP")
    report = node.reconcile()
    assert report.in_sync
    (notice,) = report.notices
    assert str(notice).startswith("without effect behind `-A INPUT -p tcp -j DROP`: -t filter -A INPUT -d ")
    assert str(notice).endswith("; --rule-position=insert puts it in front")


def test_what_may_hinder_a_rule_is_uncertain(node: Node) -> None:
    node.iptables("-N", "FIREWALL")
    node.iptables("-A", "FIREWALL", "-j", "DROP")
    node.iptables("-A", "INPUT", "-j", "FIREWALL")
    (notice,) = node.reconcile().notices
    assert not notice.certain
    assert str(notice).startswith("perhaps without effect behind `-A INPUT -j FIREWALL`")


def test_a_rule_that_slid_back_is_moved_to_the_front_without_a_moment_in_which_it_is_missing(node: Node) -> None:
    goal = desired([node.ip], interface="lo", port=443, setup_iptables=True, insert=True)
    assert node.reconciler(goal).reconcile().in_sync
    node.iptables("-I", "INPUT", "-j", "DROP")
    node.iptables("-I", "OUTPUT", "-j", "REJECT")
    node.iptables("-t", "raw", "-I", "PREROUTING", "-j", "ACCEPT")
    node.commands.calls.clear()
    report = node.reconciler(goal).reconcile()
    assert report.in_sync
    assert report.notices == ()
    assert [action.done.partition(",")[0] for action in report.changed] == ["moved to the front"] * 3
    assert [argv[0].rpartition("-")[2] for argv in node.commands.calls] == ["ip", *["restore"] * 4, "ip", "restore"]
    rules = node.rules()
    assert sorted(rules[:4]) != rules
    first = {rule.split()[3]: rule for rule in reversed([rule for rule in rules if rule.startswith("-t filter")])}
    assert "-j ACCEPT" in first["INPUT"]
    assert "-j ACCEPT" in first["OUTPUT"]
    assert len(rules) == 8
    assert node.reconciler(goal).reconcile().changed == ()


@pytest.mark.parametrize(
    "target", [("-j", "FIREWALL"), ("-i", "eth0", "-j", "DROP"), ("-m", "mark", "--mark", "5", "-j", "DROP")]
)
def test_what_may_be_meant_to_come_first_is_not_fought_with(node: Node, target: tuple[str, ...]) -> None:
    goal = desired([node.ip], interface="lo", port=443, setup_iptables=True, insert=True)
    assert node.reconciler(goal).reconcile().in_sync
    node.iptables("-N", "FIREWALL")
    node.iptables("-I", "INPUT", *target)
    assert node.reconciler(goal).reconcile().changed == ()


def test_a_flushed_table_is_filled_again(node: Node) -> None:
    node.reconcile()
    node.iptables("-t", "raw", "-F")
    node.iptables("-F")
    assert node.reconcile().in_sync
    assert node.in_place()


def test_the_whole_ruleset_deleted_is_set_up_again(namespace: Namespace) -> None:
    node = Node(namespace, NamespaceCommands(namespace), "nft", IPV4)
    node.reconcile()
    namespace.run("nft", "flush", "ruleset")
    assert node.reconcile().in_sync
    assert node.in_place()


@pytest.mark.long
@pytest.mark.parametrize(
    ("backend", "node", "effect"),
    sweep(
        product(("nft", "legacy"), (IPV4, IPV6), ("before", "after")),
        [("nft", IPV6, "after"), ("legacy", IPV4, "before")],
    ),
    indirect=["backend", "node"],
)
def test_killed_at_any_command_the_next_pass_reaches_the_goal(node: Node, effect: str) -> None:
    class Killed(BaseException):
        pass

    class Dying(NamespaceCommands):
        def run(self, *argv: str, stdin: str = "") -> Result:
            if len(self.calls) == number and effect == "before":
                raise Killed
            result = super().run(*argv, stdin=stdin)
            if len(self.calls) == number + 1 and effect == "after":
                raise Killed
            return result

    for number in count():  # noqa: B007 - read by Dying
        dying = replace(node, commands=Dying(node.namespace))
        try:
            dying.reconcile()
        except Killed:
            assert node.reconcile().in_sync
            assert node.in_place()
        else:
            break
        assert node.reconciler().cleanup(deadline=float("inf")).in_sync
    assert number == 6  # looks, what adds the address and the rules, looks


def test_a_pass_in_sync_starts_one_process_for_addresses_and_one_per_family(namespace: Namespace, backend: str) -> None:
    node = Node(namespace, NamespaceCommands(namespace), backend, IPV4)
    goal = desired([IPV4, IPV6], interface="lo", port=443, setup_iptables=True)
    assert node.reconciler(goal).reconcile().in_sync
    node.commands.processes()
    for _ in range(2):
        assert node.reconciler(goal).reconcile().in_sync
        assert node.commands.processes() == ["ip", f"iptables-{backend}-restore", f"ip6tables-{backend}-restore"]


def test_many_addresses_take_as_many_processes_as_one(namespace: Namespace, backend: str) -> None:
    node = Node(namespace, NamespaceCommands(namespace), backend, IPV4)
    goal = desired([IPV4 + n for n in range(7)], interface="lo", port=443, setup_iptables=True)
    assert node.reconciler(goal).reconcile().in_sync
    node.commands.processes()
    assert node.reconciler(goal).reconcile().in_sync
    assert node.commands.processes() == ["ip", f"iptables-{backend}-restore"]


@pytest.mark.parametrize("number", [2, 50])
def test_set_up_and_cleanup_of_many_addresses_take_one_process_for_each_kind(
    namespace: Namespace, backend: str, number: int
) -> None:
    node = Node(namespace, NamespaceCommands(namespace), backend, IPV4)
    both = [each + n for n in range(number // 2) for each in (IPV4, IPV6)]
    goal = desired(both, interface="lo", port=443, setup_iptables=True)
    restores = [f"iptables-{backend}-restore", f"ip6tables-{backend}-restore"]
    report = node.reconciler(goal).reconcile()
    assert (report.in_sync, len(report.changed)) == (True, 6 * number)
    assert node.commands.processes() == ["ip", *restores] * 3
    assert len(namespace.addresses()) == number
    assert [len(namespace.rules(backend, family)) for family in (4, 6)] == [5 * number // 2] * 2
    report = node.reconciler(goal).cleanup(deadline=float("inf"))
    assert (report.in_sync, len(report.changed)) == (True, 6 * number)
    assert node.commands.processes() == ["ip", *restores, *restores, "ip", "ip", *restores]
    assert (namespace.addresses(), namespace.rules(backend), namespace.rules(backend, 6)) == ([], [], [])


@pytest.mark.parametrize("bad", ["address", "rule"])
def test_one_that_is_refused_keeps_no_other_out_and_is_named(node: Node, bad: str) -> None:
    """Another address is there with another prefix length; or a rule of the raw table has a word that is wrong."""
    goal = desired([node.ip + n for n in range(20)], interface="lo", port=443, setup_iptables=True)
    rule = goal.rules[52]
    if bad == "rule":
        wrong = replace(rule, match=(*rule.match[:-1], "NOSUCHTARGET"))
        goal = replace(goal, rules=tuple(wrong if each == rule else each for each in goal.rules))
        names = str(wrong)
    else:
        wrong_address = replace(goal.addresses[3], interface="none0")
        goal = replace(goal, addresses=(*goal.addresses[:3], wrong_address, *goal.addresses[4:]))
        names = f"{node.ip + 3}/{node.ip.max_prefixlen} dev none0"
    report = node.reconciler(goal).reconcile()
    assert any(names in str(failure) for failure in report.failures), report.failures
    assert len({failure.attempt for failure in report.failures}) == 1
    assert len(node.namespace.addresses()) == 20 - (bad == "address")
    assert len(node.rules()) == len(set(node.rules())) == 100 - (bad == "rule")
    assert len(node.commands.calls) < 60
    assert node.reconciler(goal).cleanup(deadline=float("inf")).in_sync
    assert (node.namespace.addresses(), node.rules()) == ([], [])


@pytest.mark.parametrize("milliseconds", sweep(range(0, 60, 4), range(0, 60, 20)))
def test_a_kill_in_the_middle_of_a_transaction_leaves_all_or_nothing_of_each_table(
    node: Node, milliseconds: int
) -> None:
    goal = desired([node.ip + n for n in range(200)], interface="lo", port=443, setup_iptables=True)
    tool = Iptables(node.commands.run, node.family, node.backend, 5.0)
    argv, stdin = tool.restore([(rule.table, ("-A", rule.chain, *rule.match)) for rule in goal.rules])
    file = node.namespace.run("mktemp", "-p", "/run").strip()
    node.namespace.run("tee", file, stdin=stdin)
    node.namespace.run("timeout", "-s", "KILL", f"{milliseconds / 1000 or 0.0001}", *argv, file, check=False)
    numbers = {table: len([rule for rule in node.rules() if f"-t {table} " in rule]) for table in ("raw", "filter")}
    assert numbers in ({"raw": 0, "filter": 0}, {"raw": 600, "filter": 0}, {"raw": 600, "filter": 400})
    assert node.reconciler(goal).reconcile().in_sync
    assert len(node.rules()) == 1000


def test_a_held_lock_fails_softly_and_nothing_is_doubled(namespace: Namespace) -> None:
    node = Node(namespace, NamespaceCommands(namespace), "legacy", IPV4)
    with namespace.lock_held():
        report = node.reconciler(wait=1.0).reconcile()
    assert [str(action.todo) for action in report.changed] == ["add 10.96.0.2/32 to lo"]
    assert "look at the IPv4 rules" in report.failures[0].attempt
    assert report.exit_code == 1
    assert report.failures[0].error.transient
    assert node.reconcile().in_sync
    assert node.in_place()


#: Conditions that iptables-nft 1.8.9 does not know, and of which it may not even see that they are there.
UNKNOWN_TO_IPTABLES = (
    "ct state new",
    "ct mark 1",
    "quota 10 mbytes",
    "ct count 3",
    "fib daddr type local",
    "socket transparent 1",
    "numgen inc mod 2 == 0",
    "jhash tcp sport mod 2 == 0",
    'log prefix "x"',
    "tcp option maxseg size 500",
    "limit rate 5 bytes/second",
    "meta skuid 1000",
)


@pytest.mark.parametrize(
    ("ip", "condition"),
    sweep(
        product((IPV4, IPV6), UNKNOWN_TO_IPTABLES),
        list(zip(cycle((IPV4, IPV6)), UNKNOWN_TO_IPTABLES[:1] + UNKNOWN_TO_IPTABLES[-3:], strict=False)),
    ),
)
def test_a_narrower_rule_that_iptables_does_not_fully_see_is_not_ours(
    namespace: Namespace, ip: IPAddress, condition: str
) -> None:
    node = Node(namespace, NamespaceCommands(namespace), "nft", ip)
    family, rule = "ip" if node.family == 4 else "ip6", node.goal.rules[3]
    node.iptables("-N", "OTHER")  # makes the table
    node.iptables("-P", "INPUT", "ACCEPT")
    namespace.run("nft", f"add rule {family} filter INPUT {family} daddr {ip} tcp dport 443 {condition} accept")

    def chain() -> list[str]:
        lines = namespace.run("nft", "list", "chain", family, "filter", "INPUT").splitlines()
        return [line.strip() for line in lines if "dport 443" in line]

    (narrower,) = chain()
    for _ in range(2):  # as after a restart
        reconciler = node.reconciler()
        for _ in range(2):
            report = reconciler.reconcile()
            assert report.exit_code == 0
            assert report.observed
            assert list(report.observed.unknown) == [rule]
            assert not is_in_sync(node.goal, report.observed)
            (notice,) = report.notices
            assert str(notice).startswith(f"unknown whether it is there: {rule}: `")
            assert str(notice).endswith(f"; see `nft list chain {family} filter INPUT`")
        assert chain()[0] == narrower
        assert len(chain()) <= 2
    before = chain()
    report = node.reconciler().cleanup(deadline=float("inf"))
    assert report.exit_code == 1
    assert [action.todo for action in report.remaining] == [f"remove rule: {rule}"]
    assert "-S INPUT` exited with" in str(report.failures[0])
    assert chain() == before
    assert namespace.addresses() == []
    assert "notrack" not in namespace.run("nft", "list", "ruleset")


def test_in_a_chain_that_cannot_be_listed_a_rule_is_added_and_comes_back_if_it_is_deleted(namespace: Namespace) -> None:
    node = Node(namespace, NamespaceCommands(namespace), "nft", IPV4)
    node.iptables("-A", "INPUT", "-j", "DROP")
    namespace.run("nft", 'add rule ip filter INPUT log prefix "x" level info')
    reconciler = node.reconciler()
    assert len(reconciler.reconcile().changed) == 6
    assert reconciler.reconcile().changed == ()
    node.iptables("-D", "INPUT", *node.goal.rules[3].match)
    report = reconciler.reconcile()
    assert len(report.changed) == 1
    assert "chain `INPUT' in table `filter' is incompatible, use 'nft' tool" in str(report.notices[0])
    namespace.run("nft", "flush", "chain", "ip", "filter", "INPUT")
    assert len(reconciler.reconcile().changed) == 1
    assert reconciler.cleanup(deadline=float("inf")).in_sync
    assert "accept\n" not in namespace.run("nft", "list", "table", "ip", "filter")


def test_what_was_added_and_cannot_be_seen_is_not_added_again(namespace: Namespace) -> None:
    """A stand-in for a release whose -C does not find rules that are there, as that of 1.8.10."""

    class Blind(NamespaceCommands):
        def run(self, *argv: str, stdin: str = "") -> Result:
            return Result(1, "", "") if "-C" in argv else super().run(*argv, stdin=stdin)

    node = Node(namespace, Blind(namespace), "nft", IPV4)
    node.iptables("-P", "INPUT", "ACCEPT")
    namespace.run("nft", 'add rule ip filter INPUT log prefix "x" level info')
    reconciler = node.reconciler()
    for _ in range(4):
        report = reconciler.reconcile()
        assert report.in_sync
        assert [str(notice).split("; ")[1] for notice in report.notices] == ["it was added, but `-C` does not find it"]
    assert namespace.run("nft", "list", "chain", "ip", "filter", "INPUT").count("dport 443") == 1


#: Where the extensions of iptables are: Debian has a folder for each architecture.
EXTENSIONS: Final = next((str(path) for path in Path("/usr").glob("lib*/**/xtables")), "")


def without_extension(namespace: Namespace, name: str) -> None:
    """Let an extension of iptables not be installed in the namespace."""
    namespace.run("cp", "-r", EXTENSIONS, "/run/extensions")
    namespace.run("rm", f"/run/extensions/{name}.so")
    namespace.run("mount", "--bind", "/run/extensions", EXTENSIONS)


@pytest.mark.parametrize(
    ("words", "extension"),
    [
        (("-m", "quota", "--quota", "5", "-j", "DROP"), "libxt_quota"),
        (("-p", "tcp", "-j", "MARK", "--set-mark", "5"), "libxt_MARK"),
    ],
)
def test_beside_a_rule_whose_extension_is_not_installed_ours_are_kept_right(
    node: Node, words: tuple[str, ...], extension: str
) -> None:
    node.iptables("-A", "INPUT", *words)
    before = node.iptables("-S", "INPUT")
    other_port = (*node.goal.rules[3].match[:-3], "444", "-j", "ACCEPT")
    node.iptables("-A", "OUTPUT", *other_port)  # ip6tables-legacy 1.8.9 takes it for ours
    node.iptables("-A", "OUTPUT", *words)
    without_extension(node.namespace, extension)
    reconciler = node.reconciler()
    report = reconciler.reconcile()
    assert report.exit_code == 0
    unknown = {rule for rule in node.goal.rules if rule.table == "filter"} if node.backend == "nft" else set()
    assert report.observed
    assert set(report.observed.unknown) == unknown
    assert len(report.changed) == 6 - len(unknown)
    assert reconciler.reconcile().changed == ()
    assert node.reconcile().changed == ()
    if node.backend == "legacy":
        node.iptables("-D", "INPUT", *node.goal.rules[3].match)
        assert len(reconciler.reconcile().changed) == 1
    assert node.reconciler().cleanup(deadline=float("inf")).in_sync == (not unknown)
    assert node.namespace.addresses() == []
    node.namespace.run("umount", "-l", EXTENSIONS)
    assert node.iptables("-S", "INPUT") == before
    assert len(node.iptables("-S", "OUTPUT").splitlines()) == 3


@pytest.mark.parametrize("extension", ["libxt_CT", "libxt_tcp"])
def test_an_iptables_that_lacks_an_extension_for_our_rules(node: Node, extension: str) -> None:
    without_extension(node.namespace, extension)
    report = node.reconcile()
    assert report.exit_code == 3
    assert "this iptables lacks an extension or an option: reinstall or upgrade it; " in str(report.failures[0])
    assert len(node.rules()) == (2 if extension == "libxt_CT" else 0)
    assert len(node.namespace.addresses()) == 1


def test_where_every_chain_has_a_rule_that_cannot_be_listed(node: Node) -> None:
    """docs/field.md, B3: as beside kube-proxy's comments."""
    others = ("-m", "comment", "--comment", "x", "-j", "ACCEPT")
    for table, chain in [("filter", "FORWARD"), ("mangle", "FORWARD"), *(rule.place for rule in node.goal.rules)]:
        node.iptables("-t", table, "-A", chain, *others)
    without_extension(node.namespace, "libxt_comment")
    report = node.reconcile()
    assert report.exit_code == 0
    assert report.observed
    unknown = set(node.goal.rules) if node.backend == "nft" else set()
    assert set(report.observed.unknown) == unknown
    assert len(report.changed) == 6 - len(unknown)


@pytest.mark.parametrize(
    ("backend", "rest", "of_ours"),
    sweep(
        [(backend, *how) for backend in ("nft", "legacy") for how in (("", False), ("-A PRE", False), ("", True))],
        [("nft", "", True), ("legacy", "", False), ("nft", "-A PRE", False)],
    ),
    indirect=["backend"],
)
def test_a_listing_that_is_cut_off_does_not_make_copies_grow(node: Node, rest: str, of_ours: bool) -> None:  # noqa: FBT001 - a parameter
    """iptables exits with 0 when it could not write all of a listing; here a stand-in loses the end.

    The other rules may be for the same address and other ports.
    """

    class CutOff(NamespaceCommands):
        def run(self, *argv: str, stdin: str = "") -> Result:
            result = super().run(*argv, stdin=stdin)
            lines = result.stdout.splitlines(keepends=True)
            if len(lines) < 300:
                return result
            return replace(result, stdout="".join(lines[:200]) + rest)

    to = f"-d {node.cidr} " if of_ours else ""
    others = [f"-A PREROUTING {to}-p tcp -m tcp --dport {port} -j NOTRACK\n" for port in range(1000, 1400)]
    command = "iptables" if node.family == 4 else "ip6tables"
    for at in range(0, len(others), 100):  # an ordinary user's socket buffer does not hold more
        lines = "".join(others[at : at + 100])
        node.namespace.run(f"{command}-{node.backend}-restore", "--noflush", stdin=f"*raw\n{lines}COMMIT\n")
    cut_off = Node(node.namespace, CutOff(node.namespace), node.backend, node.ip)
    for _ in range(2):  # as after a restart
        reconciler = cut_off.reconciler()
        for _ in range(2):
            report = reconciler.reconcile()
            assert report.exit_code == 1
            (failure,) = report.failures
            assert "iptables contradicts itself" in str(failure)
            assert str(node.goal.rules[0]) in str(failure)
            assert len([rule for rule in node.rules() if " 443 " in rule]) == 5
    report = cut_off.reconciler().cleanup(deadline=time.monotonic() + 3)
    assert not report.in_sync
    assert [rule for rule in node.rules() if " 443 " in rule] == [str(node.goal.rules[0])]
    assert node.reconcile().in_sync
    assert len(node.rules()) == 405


def test_a_backend_that_does_not_work_tells_nothing(namespace: Namespace) -> None:
    """It says 1, as it does of a rule that is not there."""
    node = Node(namespace, NamespaceCommands(namespace), "nft", IPV4)
    assert node.reconcile().in_sync
    namespace.run("sh", "-c", "printf '#!/bin/sh\\nexit 1\\n' > /run/broken && chmod +x /run/broken")
    namespace.run("mount", "--bind", "/run/broken", namespace.run("readlink", "-f", "/usr/sbin/iptables-nft").strip())
    report = node.reconciler().cleanup(time.monotonic() + 3)
    assert not report.in_sync
    assert len(report.remaining) == 5
    assert all(failure.attempt == "look at the IPv4 rules" for failure in report.failures)


def test_an_address_with_a_peer_is_another_one(node: Node) -> None:
    if node.family == 6:
        pytest.skip("only IPv4 has the same address twice on an interface")
    node.namespace.run("ip", "address", "add", "10.96.0.2", "peer", "10.9.9.9/32", "dev", "lo")
    assert node.reconcile().in_sync
    assert node.reconciler().cleanup(deadline=float("inf")).in_sync
    assert "peer 10.9.9.9/32" in node.namespace.run("ip", "address", "show", "dev", "lo")


def test_a_table_that_the_kernel_lacks(namespace: Namespace, backend: str) -> None:
    node = Node(namespace, NamespaceCommands(namespace), backend, IPV4)
    goal = replace(node.goal, rules=tuple(replace(rule, table="nosuch") for rule in node.goal.rules[:1]))
    report = node.reconciler(goal).reconcile()
    assert report.exit_code == 3
    assert "-t nosuch -S PREROUTING` exited with 3" in str(report.failures[0])


def test_an_interface_that_does_not_exist(node: Node) -> None:
    goal = desired([node.ip], interface="eth9", port=443, setup_iptables=True, link_kind="")
    report = node.reconciler(goal).reconcile()
    assert report.exit_code == 1
    assert "interface eth9 does not exist" in str(report.failures[0])
    assert node.rules() == SAVED.format(cidr=node.cidr).splitlines()
