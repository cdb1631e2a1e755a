"""doctor's checks of what others do to the traffic, on recorded answers."""

from ipaddress import ip_address
from pathlib import Path
from typing import TypeAlias

import pytest
from pytest_mock import MockerFixture

from sidecar.doctor.findings import Finding, Level
from sidecar.state.desired import desired
from support.namespace import IPV4, IPV6
from support.recorded_node import BOTH, NO_RULES, Change, RecordedNode

OK, NOTE, WARNING, FAULT, UNKNOWN = Level.OK, Level.NOTE, Level.WARNING, Level.FAULT, Level.UNKNOWN

NODES = Path(__file__).parents[2] / "e2e" / "nodes"

BOTH_NO_RULES = desired([IPV4, IPV6], interface="lo", port=443)

NAT = "iptables-nft -w 5 -t nat"
DNAT = "-d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j DNAT --to-destination 192.0.2.1:6443"
OR_RULES = "or run with --setup-iptables instead: untracked traffic is not rewritten"
WITH_RULES = "let it pass: --setup-iptables --rule-position=insert"
TO_US = "what goes to 10.96.0.2:443"
NOT_TAKEN = (OK, "no rule of iptables in nat, and no IPVS, takes 10.96.0.2:443", "", ())
NOT_DROPPED = (OK, "no rule is known to drop what goes to or comes from 10.96.0.2", "", ())

#: Level, text, remedy and commands of a finding.
Row: TypeAlias = tuple[Level, str, str, tuple[str, ...]]


@pytest.fixture
def node(mocker: MockerFixture, tmp_path: Path) -> RecordedNode:
    return RecordedNode(mocker, tmp_path)


def rows(findings: list[Finding]) -> list[Row]:
    return [(each.level, each.found, each.remedy, each.commands) for each in findings]


REDIRECT = "-p tcp -m tcp --dport 443 -j REDIRECT --to-ports 8443"
DOCKER = DNAT.replace("-d 10.96.0.2/32", "DOCKER -d 10.96.0.2/32 ! -i docker0")
QUOTED = '-d 10.96.0.0/12 -m comment --comment "a b" -j DNAT --to-destination 192.0.2.1'


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], NOT_TAKEN),
        ([f"-A OUTPUT {DNAT}"],
         (FAULT, f"`-A OUTPUT {DNAT}` in nat takes {TO_US}", OR_RULES, (f"{NAT} -D OUTPUT {DNAT}",))),
        ([f"-A PREROUTING {REDIRECT}"],
         (FAULT, f"`-A PREROUTING {REDIRECT}` in nat takes {TO_US}", OR_RULES, (f"{NAT} -D PREROUTING {REDIRECT}",))),
        ([f"-A PREROUTING ! -i docker0 {REDIRECT}"],
         (WARNING, f"`-A PREROUTING ! -i docker0 {REDIRECT}` in nat may take {TO_US}", OR_RULES,
          (f"{NAT} -D PREROUTING '!' -i docker0 {REDIRECT}",))),
        (["-A PREROUTING -j MINE", f"-A MINE {QUOTED}"],
         (FAULT, f"`-A MINE {QUOTED}` in nat takes {TO_US}", OR_RULES,
          (f"{NAT} -D MINE {QUOTED}".replace('"', "'"),))),
        (["-A OUTPUT -j KUBE-SERVICES", f"-A KUBE-SERVICES {DNAT}"],
         (FAULT, f"`-A KUBE-SERVICES {DNAT}` in nat takes {TO_US}",
          f"choose an address and port that a Service does not use; {OR_RULES}", ())),
        (["-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER", f"-A {DOCKER}"],
         (WARNING, f"`-A {DOCKER}` in nat may take {TO_US}",
          f"choose an address and port that a container does not use; {OR_RULES}", ())),
        (["-A PREROUTING -j MINE", f"-A MINE {DNAT.replace('443', '80')}", "-A MINE -p udp -j REDIRECT"], NOT_TAKEN),
        (["-A PREROUTING -p tcp -j RETURN", f"-A PREROUTING {DNAT}"], NOT_TAKEN),
    ],
)  # fmt: skip
def test_who_takes_the_traffic(node: RecordedNode, lines: list[str], expected: Row) -> None:
    node.set(goal=NO_RULES).add("nat", *lines)
    assert rows(node.findings("taken")) == [expected]


def test_a_rule_that_both_ways_come_to_is_told_once(node: RecordedNode) -> None:
    node.set(goal=NO_RULES).add("nat", "-A PREROUTING -j MINE", "-A OUTPUT -j MINE", f"-A MINE {DNAT}")
    (found,) = node.findings("taken")
    assert found.facts == {"rule": f"-A MINE {DNAT}"}


def test_untracked_traffic_is_not_rewritten(node: RecordedNode) -> None:
    node.add("nat", f"-A OUTPUT {DNAT}")
    but = "but for our NOTRACK rules: untracked traffic is not rewritten"
    assert rows(node.findings("taken")) == [(NOTE, f"`-A OUTPUT {DNAT}` in nat takes {TO_US}, {but}", "", ())]


@pytest.mark.parametrize(
    "change",
    [
        lambda node: node.chain("raw", "OUTPUT").pop(),
        lambda node: node.chain("raw", "PREROUTING").insert(1, "-A PREROUTING -j ACCEPT"),
    ],
    ids=["missing", "idle"],
)
def test_without_each_of_our_rules_it_is_rewritten(node: RecordedNode, change: Change) -> None:
    change(node)
    node.add("nat", f"-A OUTPUT {DNAT}")
    deletion = f"{NAT} -D OUTPUT {DNAT}"
    assert rows(node.findings("taken")) == [(FAULT, f"`-A OUTPUT {DNAT}` in nat takes {TO_US}", "", (deletion,))]


def test_ipvs(node: RecordedNode) -> None:
    node.files["/proc/net/ip_vs"] = "TCP  0A600001:01BB rr\n"
    assert rows(node.findings("taken")) == [NOT_TAKEN]
    node.files["/proc/net/ip_vs"] = "TCP  0A600001:01BB rr\nTCP  0A600002:01BB rr\n"
    found = node.findings("taken")[0]
    assert (found.level, found.remedy) == (FAULT, "choose an address that is no Service's; see: ipvsadm -Ln")
    assert found.found == "IPVS takes 10.96.0.2 port 443: it is the address of a Service (kube-proxy in mode ipvs)"


def test_each_family_is_asked_by_its_own_program(node: RecordedNode) -> None:
    line = "OUTPUT -d fd00:10:96::2/128 -p tcp -j DNAT --to-destination"
    node.set(goal=BOTH_NO_RULES).add("nat", f"-A {line} [fd00::1]:6443", program="ip6tables-nft")
    first, second = node.findings("taken")
    assert rows([first]) == [NOT_TAKEN]
    assert second.found == f"`-A {line} [fd00::1]:6443` in nat takes what goes to [fd00:10:96::2]:443"
    assert second.commands == (f"ip6tables-nft -w 5 -t nat -D {line} '[fd00::1]:6443'",)


def restore(node: RecordedNode, path: Path) -> None:
    """Add rules in the format of iptables-save."""
    table = ""
    for line in path.read_text().splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":"):
            node.chain(table, line.split()[0][1:])
        elif line.startswith("-A"):
            node.add(table, line)


def test_a_service_has_the_address(node: RecordedNode) -> None:
    restore(node, NODES / "kube-proxy.rules")
    assert node.findings("taken")[0].level is OK
    node.goal = desired([ip_address("10.96.0.1")], interface="lo", port=443)
    found = node.findings("taken")[0]
    assert found.level is FAULT
    assert found.found.endswith("-j DNAT --to-destination 192.0.2.10:6443` in nat takes what goes to 10.96.0.1:443")
    assert found.remedy.startswith("choose an address and port that a Service does not use; ")


POLICY = ("-A INPUT -j POLICY", "-A POLICY -p tcp -m tcp --dport 0:1023 -j DROP")
IN = "INPUT -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j ACCEPT"
OUT = "OUTPUT -s 10.96.0.2/32 -p tcp -m tcp --sport 443 -j ACCEPT"
FILTER, RAW, MANGLE = (f"iptables-nft -w 5 -t {table}" for table in ("filter", "raw", "mangle"))
OR_ALLOW = "or allow the address and port there, where whoever set it puts itself in front again"
SET_AGAIN = "whoever set it may set it again: allow the address and port there"


def front(node: RecordedNode, table: str, *lines: str) -> None:
    """Put rules in front of ours."""
    for line in reversed(lines):
        node.chain(table, line.split()[1]).insert(1, line)


def dropped_and_ours_missing(node: RecordedNode) -> None:
    node.chain("filter", "INPUT").remove(f"-A {IN}")
    node.add("filter", *POLICY)


def dropped_without_ours(node: RecordedNode) -> None:
    node.set(goal=NO_RULES, tables={**node.tables, "iptables-nft": {}}).add("filter", "-A INPUT -j DROP")


def dropped_by_policy(node: RecordedNode) -> None:
    node.chain("raw", "PREROUTING")[0] = "-P PREROUTING DROP"


REJECT = ("-A OUTPUT -j POLICY", "-A POLICY -p tcp -j REJECT --reject-with tcp-reset")
UNTRACKED = ("-A INPUT -j POLICY", "-A POLICY -m conntrack ! --ctstate NEW -j DROP")
SPOOF = "POSTROUTING -s 10.96.0.0/12 -j DROP"
BEFORE_IN = "in filter drops traffic to 10.96.0.2, before our rule in INPUT lets it pass"
BEFORE_OUT = "in filter drops traffic from 10.96.0.2, before our rule in OUTPUT lets it pass"
MOVE_IN = (f"{FILTER} -D {IN}", f"{FILTER} -I {IN}")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda _: None, NOT_DROPPED),
        (lambda node: front(node, "filter", *POLICY), (FAULT, f"`{POLICY[1]}` {BEFORE_IN}", OR_ALLOW, MOVE_IN)),
        (dropped_and_ours_missing, (FAULT, f"`{POLICY[1]}` {BEFORE_IN}", OR_ALLOW, MOVE_IN[1:])),
        (lambda node: front(node, "filter", *REJECT),
         (FAULT, f"`{REJECT[1]}` {BEFORE_OUT}", OR_ALLOW, (f"{FILTER} -D {OUT}", f"{FILTER} -I {OUT}"))),
        (lambda node: front(node, "filter", *UNTRACKED), (FAULT, f"`{UNTRACKED[1]}` {BEFORE_IN}", OR_ALLOW, MOVE_IN)),
        (lambda node: front(node, "filter", "-A INPUT -j POLICY", "-A POLICY -i eth0 -j DROP"), NOT_DROPPED),
        (lambda node: node.add("filter", *POLICY), NOT_DROPPED),  # it is behind our rule
        (dropped_without_ours, (FAULT, "`-A INPUT -j DROP` in filter drops traffic to 10.96.0.2", WITH_RULES, ())),
        (lambda node: node.add("mangle", f"-A {SPOOF}"),
         (FAULT, f"`-A {SPOOF}` in mangle drops traffic from 10.96.0.2", SET_AGAIN, (f"{MANGLE} -D {SPOOF}",))),
        (lambda node: node.add("mangle", "-A FORWARD -j DROP"), NOT_DROPPED),
        (dropped_by_policy, (FAULT, "`-P PREROUTING DROP` in raw drops traffic to 10.96.0.2", SET_AGAIN,
                             (f"{RAW} -P PREROUTING ACCEPT",))),
    ],
)  # fmt: skip
def test_what_is_dropped(node: RecordedNode, change: Change, expected: Row) -> None:
    change(node)
    assert rows(node.findings("policies")) == [expected]


def test_what_drops_in_the_chain_of_our_rule_is_told_once(node: RecordedNode) -> None:
    front(node, "filter", "-A INPUT -j DROP")
    (alarm,) = node.alarms()
    assert alarm.startswith("rules: without effect behind `-A INPUT -j DROP`")


@pytest.mark.parametrize(
    ("chains", "engines"),
    [(["cali-INPUT"], "Calico"), (["KUBE-NWPLCY-X", "cali-INPUT", "KUBE-ROUTER-INPUT"], "Calico and kube-router")],
)
def test_policy_engines_are_told(node: RecordedNode, chains: list[str], engines: str) -> None:
    front(node, "filter", *(f"-A INPUT -j {chain}" for chain in chains))
    found = (
        f"{engines} has policy chains: where they rely on connection tracking, replies from 10.96.0.2 are no replies "
        "to them, as they are untracked"
    )
    for chain in chains:
        node.chain("filter", chain)
    assert rows(node.findings("policies")) == [(NOTE, found, "allow it by address and port", ())]
    node.goal = NO_RULES  # then replies are tracked
    assert rows(node.findings("policies")) == [NOT_DROPPED]


BLIND = "rules cannot be looked at, as told above"
NAT_UNKNOWN = "unknown: whether rules in nat take 10.96.0.2: "


def test_chains_that_are_not_listed_in_time(node: RecordedNode) -> None:
    node.set(goal=NO_RULES, seconds=0.5).add("nat", "-A OUTPUT -j A", "-A A -j B", "-A B -j C", f"-A C {DNAT}")
    left_out = "{} or more chains of the table {} were left out, to be done in time"
    assert node.told("taken") == [NAT_UNKNOWN + left_out.format(1, "nat")]
    assert node.told("policies") == [
        f"unknown: whether other chains drop it: {left_out.format(number, table)}"
        for number, table in ((2, "raw"), (4, "mangle"), (2, "filter"))
    ]


def test_very_many_chains_are_not_all_listed(node: RecordedNode) -> None:
    node.set(goal=NO_RULES).add("nat", *(f"-A OUTPUT -j C{number}" for number in range(250)))
    (told,) = node.told("taken")
    assert told == f"{NAT_UNKNOWN}250 or more chains of the table nat were left out, to be done in time"


def test_addresses_for_which_there_is_no_time(node: RecordedNode) -> None:
    ips = [ip_address(f"10.96.1.{number}") for number in range(3)]
    node.set(goal=desired(ips, interface="lo", port=443), seconds=1.0)
    assert node.told("taken")[1:] == ["unknown: not looked at, to be done in time: 10.96.1.1 and 1 more"]
    assert node.told("policies")[-1] == "unknown: not looked at, to be done in time: 10.96.1.1 and 1 more"


def test_a_chain_that_only_nft_can_print(node: RecordedNode) -> None:
    for table in ("nat", "filter"):
        node.add(table, "-A OUTPUT -j ODD", "-A ODD -j RETURN", "-A OUTPUT -j EVEN", "-A EVEN -j RETURN")
        node.opaque.add((table, "ODD"))
    node.goal = NO_RULES
    assert node.told("taken", "policies") == [
        f"{NAT_UNKNOWN}ODD of the table nat cannot be listed by iptables",
        "unknown: whether other chains drop it: ODD of the table filter cannot be listed by iptables",
    ]


def test_legacy_is_not_asked_for_tables_that_may_not_be_there(node: RecordedNode) -> None:
    node.use_legacy()
    assert rows(node.findings("taken", "policies")) == [NOT_TAKEN, NOT_DROPPED]
    node.files["/proc/net/ip_tables_names"] = PermissionError(13, "Permission denied")
    unreadable = "whether there is a table {} in legacy cannot be read"
    assert node.told("taken", "policies") == [
        NAT_UNKNOWN + unreadable.format("nat"),
        f"unknown: whether other chains drop it: {unreadable.format('mangle')}",
    ]


def test_without_a_look_at_rules_nothing_is_known(node: RecordedNode) -> None:
    node.goal = BOTH
    node.programs.remove("ip6tables-nft-restore")
    node.wish = "nft"
    told = f"unknown: what rules of others do to fd00:10:96::2: {BLIND}"
    assert node.told("taken")[1] == told
    assert node.told("policies")[1] == told
