"""The check of our rules, on recorded answers."""

from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from sidecar.doctor.findings import Level
from sidecar.errors import LockHeld
from sidecar.node.backends import Backend
from sidecar.node.command import Result
from sidecar.state.desired import desired
from sidecar.state.model import RuleSet
from support.namespace import IPV4
from support.recorded_node import BOTH, NO_RULES, NOT_PRINTABLE, Change, RecordedNode

OK, NOTE, WARNING, FAULT, UNKNOWN = Level.OK, Level.NOTE, Level.WARNING, Level.FAULT, Level.UNKNOWN

INSERTED = desired([IPV4], interface="lo", port=443, setup_iptables=True, insert=True)


@pytest.fixture
def node(mocker: MockerFixture, tmp_path: Path) -> RecordedNode:
    return RecordedNode(mocker, tmp_path)


RAW_OUT = "OUTPUT -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j NOTRACK"
RAW_IN = "PREROUTING -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j NOTRACK"
LET_IN = "INPUT -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j ACCEPT"
RAW = "iptables-nft -w 5 -t raw"


def restore(table: str, *lines: str) -> tuple[str]:
    """Return the command that runs these lines in one transaction."""
    text = "".join(f"{line}\\n" for line in (f"*{table}", *lines, "COMMIT"))
    return (f"printf '{text}' | iptables-nft-restore --noflush -w 5",)


TO_FRONT = restore("filter", f"-D {LET_IN}", f"-I {LET_IN}")
ONE_OF_THREE = restore("filter", *[f"-D {LET_IN}"] * 3, f"-I {LET_IN.replace('INPUT', 'INPUT 1')}")
NOT_PRINTED = NOT_PRINTABLE.format("INPUT", "filter").strip()
CLAIMED = frozenset([RuleSet(IPV4, 8443)])
GOOD = "5 of 5 IPv4 rules are in place"
FOUR = "4 of 5 IPv4 rules are in place"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda _: None, [(OK, GOOD, ())]),
        (lambda node: node.set(desired=NO_RULES), [(OK, "none are needed: --setup-iptables is not set", ())]),
        (lambda node: node.chain("raw", "OUTPUT").remove(f"-A {RAW_OUT}"),
         [(FAULT, f"missing: -t raw -A {RAW_OUT}", (f"{RAW} -A {RAW_OUT}",)), (OK, FOUR, ())]),
        (lambda node: node.set(desired=INSERTED).chain("raw", "OUTPUT").remove(f"-A {RAW_OUT}"),
         [(FAULT, f"missing: -t raw -A {RAW_OUT}", (f"{RAW} -I {RAW_OUT}",)), (OK, FOUR, ())]),
        (lambda node: node.add("filter", f"-A {LET_IN}", f"-A {LET_IN}"),
         [(WARNING, f"3 copies: -t filter -A {LET_IN}", ONE_OF_THREE), (OK, FOUR, ())]),
        (lambda node: node.chain("filter", "INPUT").insert(1, "-A INPUT -p tcp -j DROP"),
         [(FAULT, f"without effect behind `-A INPUT -p tcp -j DROP`: -t filter -A {LET_IN}", TO_FRONT),
          (OK, FOUR, ())]),
        (lambda node: node.chain("raw", "PREROUTING").insert(1, "-A PREROUTING -j ACCEPT"),
         [(WARNING, f"without effect behind `-A PREROUTING -j ACCEPT`: -t raw -A {RAW_IN}",
           restore("raw", f"-D {RAW_IN}", f"-I {RAW_IN}")), (OK, FOUR, ())]),
        (lambda node: node.chain("filter", "INPUT").insert(1, "-A INPUT -i eth0 -j DROP"),
         [(OK, GOOD, ())]),  # the check of the policies follows it
        (lambda node: node.add("raw", f"-A {RAW_OUT}".replace("443", "8443"), f"-A {RAW_IN}".replace("443", "8443")),
         [(WARNING, "2 rules are left for 10.96.0.2 and port 8443, perhaps from an earlier --port",
           (f"{RAW} -D {RAW_IN}".replace("443", "8443"), f"{RAW} -D {RAW_OUT}".replace("443", "8443"))),
          (OK, GOOD, ())]),
        (lambda node: node.set(claimed=CLAIMED).add("raw", f"-A {RAW_IN}".replace("443", "8443")),
         [(OK, GOOD, ())]),
        (lambda node: node.set(claimed=PermissionError()).add("raw", f"-A {RAW_IN}".replace("443", "8443")),
         [(WARNING, "1 rule is left for 10.96.0.2 and port 8443, perhaps from an earlier --port",
           (f"{RAW} -D {RAW_IN}".replace("443", "8443"),)), (OK, GOOD, ())]),
        (lambda node: node.opaque.add(("filter", "INPUT")),
         [(UNKNOWN, (f"-t filter -A {LET_IN}: `iptables-nft -w 1 -t filter -S INPUT` exited with 1: {NOT_PRINTED}; "
           "`-C` cannot tell either; see `nft list chain ip filter INPUT`"), ()), (OK, FOUR, ())]),
    ],
)  # fmt: skip
def test_rules(node: RecordedNode, change: Change, expected: list[tuple[Level, str, tuple[str, ...]]]) -> None:
    change(node)
    found = [(each.level, each.found, each.commands) for each in node.findings("rules")]
    assert found == expected


def test_chains_of_a_table_that_none_can_print_do_not_hide_the_other_rules(node: RecordedNode) -> None:
    node.opaque |= {("filter", "INPUT"), ("filter", "OUTPUT")}
    *unreadable, last = node.findings("rules")
    assert [each.level for each in unreadable] == [UNKNOWN, UNKNOWN]
    assert (last.level, last.found) == (OK, "3 of 5 IPv4 rules are in place")


def test_what_a_look_is_needed_for_is_told_without_commands_if_that_fails(
    node: RecordedNode, mocker: MockerFixture
) -> None:
    node.add("filter", f"-A {LET_IN}")
    mocker.patch.object(Backend, "commands", side_effect=LockHeld(("iptables-nft",), "", "exited with 4"))
    assert [(each.found, each.commands) for each in node.findings("rules")] == [
        (f"2 copies: -t filter -A {LET_IN}", ()),
        (FOUR, ()),
    ]


@pytest.mark.parametrize(
    ("desired", "remedy"),
    [(INSERTED, ""), (BOTH, "to keep it there, run with --rule-position=insert")],
)
def test_how_a_rule_stays_in_front(node: RecordedNode, desired: object, remedy: str) -> None:
    node.set(desired=desired).chain("filter", "INPUT").insert(1, "-A INPUT -p tcp -j DROP")
    found = node.findings("rules")[0]
    assert found.remedy == remedy
    rule = f"-t filter -A {LET_IN}"
    assert found.facts == {"rule": rule, "family": 4, "copies": 1, "behind": "-A INPUT -p tcp -j DROP"}


def test_tables_of_legacy_that_are_missing_are_not_made_by_a_look(node: RecordedNode) -> None:
    node.use_legacy().set(desired=BOTH).tables["ip6tables-legacy"].clear()
    told = node.texts("rules")
    assert told[0] == f"ok: {GOOD}"
    missing = ["fault: missing: -t raw"] * 3 + ["fault: missing: -t filter"] * 2
    assert [line.partition(" -A ")[0] for line in told[1:]] == missing


@pytest.mark.parametrize(
    ("lacking", "reason"),
    [
        ("CAP_NET_ADMIN", "missing CAP_NET_ADMIN: run as root, or add it to the container's capabilities; `printf "),
        ("", "`printf "),
    ],
)
def test_rules_that_cannot_be_looked_at(node: RecordedNode, lacking: str, reason: str) -> None:
    node.set(lacking={lacking}).answers["iptables-nft-restore"] = Result(4, "", "Another app is holding the lock.\n")
    (found,) = node.findings("rules")
    assert found.level is UNKNOWN
    assert found.found.startswith(f"the IPv4 rules could not be listed: {reason}")
    assert found.found.endswith(": Another app is holding the lock.")
    assert found.node_lacks == bool(lacking)
