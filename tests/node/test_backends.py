"""Which iptables: on the real kernel, in both families."""

import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest

from sidecar.errors import (
    CommandError,
    CommandTimeout,
    LockHeld,
    NotSupported,
    PermissionMissing,
    RulesChanged,
    SidecarError,
)
from sidecar.node import claims
from sidecar.node.backends import Backend
from sidecar.node.backends_shown import ShownBackend
from sidecar.node.command import Result
from sidecar.node.iproute import IpRoute
from sidecar.node.programs import is_installed
from sidecar.node.reconcile import Reconciler
from sidecar.state.actions import AddRule, RemoveFormer, Report
from sidecar.state.desired import desired
from sidecar.state.model import Family, RuleSet
from support.namespace import IPV4, IPV6, Namespace, NamespaceCommands

pytestmark = pytest.mark.usefixtures("privileged")

RULES = {4: desired([IPV4], interface="lo", port=443, setup_iptables=True).rules,
         6: desired([IPV6], interface="lo", port=443, setup_iptables=True).rules}  # fmt: skip


class Node:
    def __init__(self, namespace: Namespace, family: Family) -> None:
        self.namespace = namespace
        self.family: Family = family
        self.commands = NamespaceCommands(namespace)
        self.legacy: set[str] = set()
        """The legacy tables that a test has made; /proc tells them to root of the node only."""
        self.nft_fails_with: SidecarError | None = None
        self.nft_says: Result | None = None

    def run(self, *argv: str, stdin: str = "") -> Result:
        if self.nft_fails_with and "nft" in argv[0]:
            raise self.nft_fails_with
        if self.nft_says and "nft" in argv[0]:
            return self.nft_says
        return self.commands.run(*argv, stdin=stdin)

    def backend(self, wish: str = "auto", installed: Callable[[str], bool] = is_installed) -> Backend:
        return Backend(
            self.run,
            self.family,
            wish,
            5.0,
            is_installed=installed,
            legacy_tables=lambda _: sorted(self.legacy),
        )

    def iptables(self, backend: str, table: str, *words: str) -> None:
        if backend == "legacy":
            self.legacy.add(table)
        self.namespace.iptables(backend, self.family, "-t", table, *words)

    def add_ours(self, backend: str) -> None:
        for rule in RULES[self.family]:
            self.iptables(backend, rule.table, "-A", rule.chain, *rule.match)

    def chosen(self) -> str:
        backend = self.backend()
        backend.observe(RULES[self.family])
        return backend.command.rpartition("-")[2]


@pytest.fixture
def node(namespace: Namespace, family: Family) -> Node:
    return Node(namespace, family)


def test_on_an_empty_node_it_is_nft_and_nothing_is_created(node: Node, log: list[str]) -> None:
    assert node.chosen() == "nft"
    assert any(line.endswith("no other rules in either backend") for line in log)
    assert node.namespace.run("nft", "list", "tables") == ""
    assert not [argv for argv in node.commands.calls if "legacy" in argv[0]]


@pytest.mark.parametrize("backend", ["nft", "legacy"])
@pytest.mark.parametrize("hint", ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"])
def test_kubernetes_hint_decides_against_the_rules_that_are_there(
    node: Node, backend: str, hint: str, log: list[str]
) -> None:
    other = "legacy" if backend == "nft" else "nft"
    node.iptables(backend, "mangle", "-N", hint)
    for port in range(1, 20):
        node.iptables(other, "filter", "-A", "INPUT", "-p", "tcp", "--dport", str(port), "-j", "DROP")
    assert node.chosen() == backend
    assert any(line.endswith(f"Kubernetes' chain {hint} is there") for line in log)


def test_of_two_hints_nft_comes_first(node: Node) -> None:
    for backend in ("legacy", "nft"):
        node.iptables(backend, "mangle", "-N", "KUBE-IPTABLES-HINT")
    assert node.chosen() == "nft"


@pytest.mark.parametrize(
    ("nft", "legacy", "chosen"), [(1, 0, "nft"), (0, 1, "legacy"), (1, 2, "legacy"), (2, 2, "nft")]
)
def test_without_a_hint_the_rules_of_others_decide(node: Node, nft: int, legacy: int, chosen: str) -> None:
    node.add_ours("nft" if chosen == "legacy" else "legacy")  # rules of ours do not count
    for backend, number in (("nft", nft), ("legacy", legacy)):
        for port in range(number):
            node.iptables(backend, "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", str(port + 1), "-j", "ACCEPT")
    assert node.chosen() == chosen


def test_rules_that_only_nft_can_express_count_as_well(node: Node) -> None:
    node.iptables("nft", "filter", "-A", "INPUT", "-j", "ACCEPT")
    node.iptables("nft", "filter", "-D", "INPUT", "-j", "ACCEPT")
    ip = "ip" if node.family == 4 else "ip6"
    node.namespace.run("nft", "add", "rule", ip, "filter", "INPUT", "meta", "mark", "set", "1")
    assert node.chosen() == "nft"


@pytest.mark.parametrize("only", ["nft", "legacy"])
def test_where_only_one_is_installed_it_is_that_one(node: Node, only: str) -> None:
    node.iptables("nft" if only == "legacy" else "legacy", "mangle", "-N", "KUBE-IPTABLES-HINT")
    backend = node.backend(installed=lambda name: f"-{only}" in name)
    backend.observe(RULES[node.family])
    assert backend.command.endswith(only)
    assert all(f"-{only}" in program for program in backend.programs)


def test_where_neither_is_installed_it_is_what_iptables_is(node: Node) -> None:
    backend = node.backend(installed=lambda name: "-nft" not in name and "-legacy" not in name)
    backend.observe(RULES[node.family])
    assert backend.command in ("iptables", "ip6tables")


@pytest.mark.parametrize(
    "failure",
    [
        LockHeld(("iptables",), "", "exited with 4"),
        PermissionMissing(["CAP_NET_ADMIN"], "it exited with 4"),
        CommandTimeout(("iptables",), "", "was killed"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_look_that_fails_decides_nothing(node: Node, failure: SidecarError) -> None:
    node.iptables("legacy", "mangle", "-N", "KUBE-IPTABLES-HINT")
    node.nft_fails_with = failure
    backend = node.backend()
    with pytest.raises(type(failure)):
        backend.observe(RULES[node.family])
    node.nft_fails_with = None
    backend.observe(RULES[node.family])
    assert backend.command.endswith("legacy")


@pytest.mark.parametrize("wish", ["nft", "legacy"])
def test_rules_of_ours_in_the_other_backend_are_told_and_go_with_a_cleanup(
    node: Node, wish: str, log: list[str]
) -> None:
    other = "legacy" if wish == "nft" else "nft"
    for _ in range(2):
        node.add_ours(other)
    node.iptables(other, "filter", "-A", "INPUT", "-p", "udp", "-j", "ACCEPT")
    goal = desired([IPV4 if node.family == 4 else IPV6], interface="lo", port=443, setup_iptables=True)
    backend = node.backend(wish)
    reconciler = Reconciler(goal, IpRoute(node.run), {node.family: backend})
    assert reconciler.reconcile().in_sync
    node.legacy |= {"raw", "filter"}  # as /proc tells from now on, for one of the two backends
    assert any("has our rules, too" in line and line.count(": 10;") for line in log)
    assert len(node.namespace.rules(other, node.family)) == 11  # a pass leaves them
    reconciler = Reconciler(goal, IpRoute(node.run), {node.family: backend.for_cleanup()})
    assert reconciler.cleanup(float("inf")).in_sync
    assert node.namespace.rules(wish, node.family) == []
    assert node.namespace.rules(other, node.family) == ["-t filter -A INPUT -p udp -j ACCEPT"]


def test_the_backend_that_is_not_in_use_keeps_nothing_from_being_done(node: Node, log: list[str]) -> None:
    node.nft_fails_with = LockHeld(("iptables",), "", "exited with 4")
    goal = desired([IPV4 if node.family == 4 else IPV6], interface="lo", port=443, setup_iptables=True)
    backend = node.backend("legacy")
    reconciler = Reconciler(goal, IpRoute(node.run), {node.family: backend})
    assert reconciler.reconcile().in_sync
    node.legacy |= {"raw", "filter"}  # as /proc tells from now on
    assert any("could not look for our rules in the other backend: " in line for line in log)
    reconciler = Reconciler(goal, IpRoute(node.run), {node.family: backend.for_cleanup()})
    report = reconciler.cleanup(time.monotonic() + 3)
    assert node.namespace.rules("legacy", node.family) == []
    assert node.namespace.addresses() == []
    assert report.exit_code == 1  # as it is not known whether all is gone


CANNOT_START = [
    Result(1, "", "Failed to initialize nft: Protocol not supported"),
    Result(4, "", "iptables v1.8.9 (nf_tables): Could not fetch rule set generation id: Invalid argument"),
]


@pytest.mark.parametrize("says", CANNOT_START, ids=["init", "generation"])
@pytest.mark.parametrize("rules", [0, 1])
def test_what_cannot_start_cannot_be_in_use(node: Node, says: Result, rules: int, log: list[str]) -> None:
    """docs/field.md, C4; this kernel has nf_tables, so the program's answer stands in for one without."""
    for _ in range(rules):
        node.iptables("legacy", "filter", "-A", "INPUT", "-j", "ACCEPT")
    node.nft_says = says
    goal = desired([IPV4 if node.family == 4 else IPV6], interface="lo", port=443, setup_iptables=True)
    backend = node.backend()
    reconciler = Reconciler(goal, IpRoute(node.run), {node.family: backend})
    assert reconciler.reconcile().in_sync
    assert backend.command.endswith("legacy")
    assert backend.in_use
    assert "nft cannot be used on this kernel: " in backend.in_use.reason
    assert says.stderr in backend.in_use.reason
    assert not any("could not look for our rules in the other backend" in line for line in log)
    node.legacy |= {"raw", "filter"}
    reconciler = Reconciler(goal, IpRoute(node.run), {node.family: backend.for_cleanup()})
    assert reconciler.cleanup(float("inf")).in_sync
    node.nft_says = None
    node.iptables("nft", "mangle", "-N", "KUBE-IPTABLES-HINT")
    backend.reconsider()  # it rests on a look that failed
    assert backend.command.endswith("nft")


@pytest.mark.parametrize("says", CANNOT_START, ids=["init", "generation"])
def test_a_backend_that_was_asked_for_and_cannot_start_is_what_the_kernel_lacks(node: Node, says: Result) -> None:
    node.nft_says = says
    goal = desired([IPV4 if node.family == 4 else IPV6], interface="lo", port=443, setup_iptables=True)
    report = Reconciler(goal, IpRoute(node.run), {node.family: node.backend("nft")}).reconcile()
    assert report.exit_code == 3
    assert says.stderr in str(report.failures)
    assert len(node.namespace.addresses()) == 1


def test_a_backend_that_lacks_memory_is_still_the_one_in_use(node: Node, instance: Callable[[], Backend]) -> None:
    backend = instance()
    passed(node, backend)
    node.nft_says = Result(1, "", "Failed to initialize nft: Cannot allocate memory")
    backend.reconsider()
    assert backend.command.endswith("nft")
    assert node.legacy == set()


def test_what_is_unknown_in_one_backend_leaves_the_other_to_be_cleaned_up(node: Node) -> None:
    node.add_ours("legacy")
    node.iptables("nft", "filter", "-P", "INPUT", "ACCEPT")
    family, address = ("ip", IPV4) if node.family == 4 else ("ip6", IPV6)
    narrower = f"{family} daddr {address} tcp dport 443 ct state new accept"
    node.namespace.run("nft", f"add rule {family} filter INPUT {narrower}")
    goal = desired([address], interface="lo", port=443, setup_iptables=True)
    backend = node.backend("nft").for_cleanup()
    report = Reconciler(goal, IpRoute(node.run), {node.family: backend}).cleanup(time.monotonic() + 3)
    assert report.exit_code == 1
    assert node.namespace.rules("legacy", node.family) == []
    assert narrower in node.namespace.run("nft", "list", "chain", family, "filter", "INPUT")


def test_a_cleanup_that_cannot_look_into_the_other_backend_is_not_clean(node: Node) -> None:
    goal = desired([IPV4 if node.family == 4 else IPV6], interface="lo", port=443, setup_iptables=True)
    assert Reconciler(goal, IpRoute(node.run), {node.family: node.backend("legacy")}).reconcile().in_sync
    node.legacy |= {"raw", "filter"}
    node.nft_fails_with = PermissionMissing(["CAP_NET_ADMIN"], "it exited with 4")
    backend = node.backend("legacy").for_cleanup()
    report = Reconciler(goal, IpRoute(node.run), {node.family: backend}).cleanup(time.monotonic() + 3)
    assert node.namespace.rules("legacy", node.family) == []
    assert node.namespace.addresses() == []
    assert report.exit_code == 3


def test_a_cleanup_removes_what_it_can_see_if_legacy_cannot_be_seen(node: Node) -> None:
    node.add_ours("nft")
    goal = desired([IPV4 if node.family == 4 else IPV6], interface="lo", port=443, setup_iptables=True)
    with patch("sidecar.node.capabilities.in_initial_user_namespace", return_value=True):
        backend = Backend(node.run, node.family, "auto", 5.0, legacy_tables=lambda _: None).for_cleanup()
        report = Reconciler(goal, IpRoute(node.run), {node.family: backend}).cleanup(time.monotonic() + 3)
    assert node.namespace.rules("nft", node.family) == []
    assert report.exit_code == 3
    assert "cannot tell whether this node uses iptables-legacy" in str(report.failures)


def test_nor_can_legacy(node: Node) -> None:
    """docs/field.md, C4, the reverse: a kernel that lists a table that legacy cannot initialise is made up."""
    node.legacy.add("filter")
    run = node.run

    def without_legacy(*argv: str, stdin: str = "") -> Result:
        if "legacy" in argv[0] and "--version" not in argv:
            return Result(3, "", "can't initialize iptables table `filter': Table does not exist")
        return run(*argv, stdin=stdin)

    backend = Backend(without_legacy, node.family, "auto", 5.0, legacy_tables=lambda _: ["filter"])
    backend.observe(RULES[node.family])
    assert backend.command.endswith("nft")
    assert sum(backend.for_cleanup().observe(RULES[node.family]).copies.values()) == 0


def test_a_program_that_is_broken_says_nothing_about_the_kernel(node: Node) -> None:
    node.iptables("legacy", "filter", "-A", "INPUT", "-j", "ACCEPT")
    node.nft_says = Result(127, "", "error while loading shared libraries: libmnl.so.0")
    with pytest.raises(CommandError, match="libmnl"):
        node.backend().observe(RULES[node.family])


def test_rules_of_other_sidecars_decide_nothing(node: Node) -> None:
    target = "192.0.2.9/32" if node.family == 4 else "fd00::9/128"
    for port in range(5):
        words = ("-d", target, "-p", "tcp", "-m", "tcp", "--dport", str(port + 1), "-j", "ACCEPT")
        node.iptables("nft", "filter", "-A", "INPUT", *words)
    node.iptables("legacy", "filter", "-A", "INPUT", "-j", "ACCEPT")
    assert node.chosen() == "legacy"


def test_a_cleanup_creates_no_table_in_the_other_backend(node: Node) -> None:
    backend = node.backend("nft")
    backend.observe(RULES[node.family])
    list(backend.apply([AddRule(RULES[node.family][0], insert=False)]))
    backend = backend.for_cleanup()
    node.commands.calls.clear()
    assert sum(backend.observe(RULES[node.family]).copies.values()) == 1
    assert not [argv for argv in node.commands.calls if "legacy" in argv[0]]


@pytest.fixture
def instance(node: Node, tmp_path: Path) -> Callable[..., Backend]:
    """Return the backend of one more instance on the same node, which keeps the same rules."""

    def instance(wish: str = "auto") -> Backend:
        mine = claims.Claims(tmp_path)
        mine.take([], is_over=lambda: False)
        ip = IPV4 if node.family == 4 else IPV6
        shown = ShownBackend(node.family, [RuleSet(ip, 443)], mine)
        return Backend(node.run, node.family, wish, 5.0, shown=shown, legacy_tables=lambda _: sorted(node.legacy))

    return instance


def passed(node: Node, backend: Backend) -> Report:
    ip = IPV4 if node.family == 4 else IPV6
    goal = desired([ip], interface="lo", port=443, setup_iptables=True)
    report = Reconciler(goal, IpRoute(node.run), {node.family: backend}).reconcile()
    if backend.is_legacy:
        node.legacy |= {"raw", "filter"}
    assert report.in_sync
    return report


@pytest.mark.parametrize("evidence", ["hint", "rule"])
def test_rules_move_to_where_the_others_are_once_that_shows(
    node: Node, instance: Callable[[], Backend], evidence: str, log: list[str]
) -> None:
    """docs/field.md, C3."""
    backend = instance()
    passed(node, backend)
    assert len(node.namespace.rules("nft", node.family)) == 5
    if evidence == "hint":
        node.iptables("legacy", "mangle", "-N", "KUBE-IPTABLES-HINT")
    else:
        node.iptables("legacy", "nat", "-A", "PREROUTING", "-p", "tcp", "-j", "ACCEPT")
    numbers: list[tuple[int, int]] = []
    run = node.commands.run

    def counted(*argv: str, stdin: str = "") -> Result:
        result = run(*argv, stdin=stdin)
        numbers.append(
            (len(node.namespace.rules("nft", node.family)), len(node.namespace.rules("legacy", node.family)))
        )
        return result

    with patch.object(node.commands, "run", counted):
        passed(node, backend)
    assert numbers[-1] == (0, 5)
    assert all(sum(each) >= 5 for each in numbers)
    assert any(f"IPv{node.family} rules move from ip" in line and "-legacy 1.8.9: " in line for line in log)
    passed(node, backend)
    calls = len(node.commands.calls)
    passed(node, backend)
    assert len([argv for argv in node.commands.calls[calls:] if argv[0] != "ip"]) == 1  # it is settled


def test_what_another_instance_still_uses_stays_until_it_moves_too(node: Node, instance: Callable[[], Backend]) -> None:
    one, two = instance(), instance()
    passed(node, one)
    passed(node, two)
    node.iptables("legacy", "mangle", "-N", "KUBE-IPTABLES-HINT")
    assert any(isinstance(action, AddRule) for action in passed(node, one).changed)
    assert [len(node.namespace.rules(each, node.family)) for each in ("nft", "legacy")] == [5, 5]
    assert not passed(node, one).changed
    assert {type(action) for action in passed(node, two).changed} == {RemoveFormer}
    assert [len(node.namespace.rules(each, node.family)) for each in ("nft", "legacy")] == [0, 5]
    assert not passed(node, one).changed


def test_an_instance_with_whatever_iptables_is_keeps_its_rules(node: Node, instance: Callable[..., Backend]) -> None:
    system, auto = instance("system"), instance()
    passed(node, system)
    passed(node, auto)
    node.iptables("legacy", "mangle", "-N", "KUBE-IPTABLES-HINT")
    passed(node, auto)
    assert [len(node.namespace.rules(each, node.family)) for each in ("nft", "legacy")] == [5, 5]
    assert not passed(node, system).changed


def test_a_look_that_failed_makes_the_choice_be_looked_at_again(node: Node, instance: Callable[[], Backend]) -> None:
    node.iptables("nft", "nat", "-A", "PREROUTING", "-p", "tcp", "-j", "ACCEPT")
    backend = instance()
    passed(node, backend)
    node.nft_says = CANNOT_START[0]
    with pytest.raises(SidecarError):
        backend.observe(RULES[node.family])
    passed(node, backend)
    assert backend.is_legacy


def test_a_repeated_look_that_fails_leaves_the_rules_where_they_are(
    node: Node, instance: Callable[[], Backend]
) -> None:
    backend = instance()
    passed(node, backend)
    node.nft_fails_with = LockHeld(("iptables",), "", "exited with 4")
    backend.reconsider()
    assert backend.command.endswith("nft")


def refusing(node: Node, verb: str, stderr: str, *, table: str = "raw", status: int = 4) -> Backend:
    """Return a backend by nft whose kernel refuses what adds rules to a table, in a command of its own or of many."""
    run = node.run

    def without(*argv: str, stdin: str = "") -> Result:
        alone = verb in argv and table in argv
        if alone or (f"*{table}" in stdin and f"\n{verb} " in stdin):
            return Result(status, "", stderr)
        return run(*argv, stdin=stdin)

    return Backend(without, node.family, "nft", 5.0)


@pytest.mark.parametrize(
    "words",
    [
        "RULE_APPEND failed (No such file or directory): rule in chain PREROUTING",
        "CHAIN_ADD failed (Operation not supported): chain PREROUTING",
    ],
)
def test_a_refusal_of_the_kernel_is_what_it_lacks_and_the_rest_is_added(node: Node, words: str) -> None:
    """docs/field.md, C2; this kernel has it all, so the program's answer stands in for one without."""
    backend = refusing(node, "-A", f"iptables v1.8.9 (nf_tables):  {words}")
    goal = desired([IPV4 if node.family == 4 else IPV6], interface="lo", port=443, setup_iptables=True)
    report = Reconciler(goal, IpRoute(node.run), {node.family: backend}).reconcile()
    assert report.exit_code == 3
    assert len(node.namespace.rules("nft", node.family)) == 2
    assert {type(failure.error) for failure in report.failures} == {NotSupported}
    assert all(words in str(failure) and "lock" not in str(failure) for failure in report.failures)


@pytest.mark.parametrize(
    "words",
    [
        "RULE_DELETE failed (No such file or directory): rule in chain INPUT",
        "RULE_APPEND failed (Device or resource busy)",
        "Resource temporarily unavailable.",
    ],
)
def test_that_the_rules_changed_meanwhile_is_worth_another_try(node: Node, words: str) -> None:
    backend = refusing(node, "-A", words)
    goal = desired([IPV4 if node.family == 4 else IPV6], interface="lo", port=443, setup_iptables=True)
    report = Reconciler(goal, IpRoute(node.run), {node.family: backend}).reconcile()
    assert report.exit_code == 1
    assert {type(failure.error) for failure in report.failures} == {RulesChanged}


@pytest.mark.parametrize("name", ["nft", "legacy"])
def test_a_kernel_without_the_table_raw(node: Node, name: str) -> None:
    """docs/field.md, C2: what iptables says of a table that no kernel has stands in for one without raw."""

    def without(*argv: str, stdin: str = "") -> Result:
        if "raw" in argv or "*raw" in stdin:
            words = ("nosuch" if word == "raw" else word for word in argv)
            return node.run(*words, stdin=stdin.replace("*raw", "*nosuch"))
        return node.run(*argv, stdin=stdin)

    backend = Backend(without, node.family, name, 5.0, legacy_tables=lambda _: ["filter"])
    goal = desired([IPV4 if node.family == 4 else IPV6], interface="lo", port=443, setup_iptables=True)
    report = Reconciler(goal, IpRoute(node.run), {node.family: backend}).reconcile()
    assert report.exit_code == 3
    assert len(node.namespace.rules(name, node.family)) == 2


def test_legacy_without_the_target(node: Node) -> None:
    """docs/field.md, C2, on the other backend; as above, for a kernel without xt_CT."""

    def without(*argv: str, stdin: str = "") -> Result:
        if "-A" in argv and "NOTRACK" in argv:
            return Result(1, "", "iptables: No chain/target/match by that name.")
        if "-A " in stdin and "NOTRACK" in stdin:
            return Result(1, "", "iptables: No chain/target/match by that name.")
        return node.run(*argv, stdin=stdin)

    backend = Backend(without, node.family, "legacy", 5.0)
    goal = desired([IPV4 if node.family == 4 else IPV6], interface="lo", port=443, setup_iptables=True)
    assert Reconciler(goal, IpRoute(node.run), {node.family: backend}).reconcile().exit_code == 3
    assert len(node.namespace.rules("legacy", node.family)) == 2


#: As iptables-nft 1.8.7 (Debian 11) lists a rule that 1.8.9 has set, and one that it has set itself: seen with both.
PORT = re.compile(r" -m tcp --[ds]port \d+")


@pytest.fixture
def old(node: Node) -> Backend:
    """Return a backend by a stand-in for iptables-nft 1.8.7: it lists what it has not added itself without ports."""
    own: set[str] = set()
    run = node.run

    def as_old(*argv: str, stdin: str = "") -> Result:
        if "--version" in argv:
            return Result(0, f"{argv[0].partition('-')[0]} v1.8.7 (nf_tables)", "")
        own.update(line for line in (" ".join(argv[5:]), *stdin.splitlines()) if line.startswith("-A "))
        result = run(*argv, stdin=stdin)
        lines = (line if line in own else PORT.sub("", line) for line in result.stdout.splitlines(keepends=False))
        return (
            replace(result, stdout="".join(f"{line}\n" for line in lines))
            if "-S" in (*argv, *stdin.split())
            else result
        )

    return Backend(as_old, node.family, "nft", 5.0, legacy_tables=lambda _: [])


def test_a_release_that_loses_ports_works_alone(node: Node, old: Backend) -> None:
    """docs/field.md, B4."""
    goal = desired([IPV4 if node.family == 4 else IPV6], interface="lo", port=443, setup_iptables=True)
    report = Reconciler(goal, IpRoute(node.run), {node.family: old}).reconcile()
    assert report.in_sync
    assert len(node.namespace.rules("nft", node.family)) == 5
    assert Reconciler(goal, IpRoute(node.run), {node.family: old.for_cleanup()}).cleanup(float("inf")).in_sync
    assert node.namespace.rules("nft", node.family) == []


def test_rules_that_are_listed_without_their_port_are_unknown(node: Node, old: Backend) -> None:
    """docs/field.md, B4."""
    node.add_ours("nft")
    rules = RULES[node.family]
    seen = old.observe(rules)
    assert seen.copies == {}
    assert set(seen.unknown) == set(rules)
    assert all("install iptables 1.8.9 or newer" in why for why in seen.unknown.values())
    goal = desired([IPV4 if node.family == 4 else IPV6], interface="lo", port=443, setup_iptables=True)
    Reconciler(goal, IpRoute(node.run), {node.family: old}).reconcile()
    assert len(node.namespace.rules("nft", node.family)) == 5
    assert (
        not Reconciler(goal, IpRoute(node.run), {node.family: old.for_cleanup()}).cleanup(time.monotonic() + 3).in_sync
    )


def test_a_drop_that_is_listed_without_its_port_drops_perhaps(node: Node, old: Backend) -> None:
    """docs/field.md, B4."""
    node.iptables("nft", "filter", "-A", "INPUT", "-p", "tcp", "-m", "tcp", "--dport", "22", "-j", "DROP")
    goal = desired([IPV4 if node.family == 4 else IPV6], interface="lo", port=443, setup_iptables=True)
    report = Reconciler(goal, IpRoute(node.run), {node.family: old}).reconcile()
    assert report.in_sync
    assert not any(notice.certain for notice in report.notices)
