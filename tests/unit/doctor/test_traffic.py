"""doctor's checks of what others do to the traffic, on recorded answers."""

from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import TypeAlias

import pytest
from pytest_mock import MockerFixture

from sidecar.doctor.findings import Finding, Level
from sidecar.errors import LockHeld
from sidecar.node.backends import Backend
from sidecar.state.desired import desired
from sidecar.state.model import Chain
from support.namespace import IPV4, IPV6
from support.recorded_node import BOTH, NO_RULES, Change, RecordedNode

OK, NOTE, WARNING, FAULT, UNKNOWN = Level.OK, Level.NOTE, Level.WARNING, Level.FAULT, Level.UNKNOWN

NODES = Path(__file__).parents[2] / "e2e" / "nodes"

BOTH_NO_RULES = desired([IPV4, IPV6], interface="lo", port=443)

NAT = "iptables-nft -w 5 -t nat"
DNAT = "-d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j DNAT --to-destination 192.0.2.1:6443"
OR_RULES = "or run with --setup-iptables instead: untracked traffic is not rewritten"
WITH_RULES = "let it pass: --setup-iptables --rule-position=insert"
TO_US = "traffic to 10.96.0.2:443"
NOT_TAKEN = (OK, "neither nat rules nor IPVS take traffic to 10.96.0.2:443", "", ())
NOT_DROPPED = (OK, "no rule was found that drops traffic to or from 10.96.0.2", "", ())

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
    node.set(desired=NO_RULES).add("nat", *lines)
    assert rows(node.findings("taken")) == [expected]


def test_a_rule_that_both_ways_come_to_is_told_once(node: RecordedNode) -> None:
    node.set(desired=NO_RULES).add("nat", "-A PREROUTING -j MINE", "-A OUTPUT -j MINE", f"-A MINE {DNAT}")
    (found,) = node.findings("taken")
    assert found.facts == {"rule": f"-A MINE {DNAT}"}


def test_untracked_traffic_is_not_rewritten(node: RecordedNode) -> None:
    node.add("nat", f"-A OUTPUT {DNAT}")
    but = "without our NOTRACK rules: untracked traffic is not rewritten"
    assert rows(node.findings("taken")) == [(NOTE, f"`-A OUTPUT {DNAT}` in nat would take {TO_US} {but}", "", ())]


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
    (found,) = node.findings("taken")
    assert (found.level, found.remedy) == (FAULT, "choose an address that no Service uses; see: ipvsadm -Ln")
    assert (
        found.found == "IPVS takes traffic to 10.96.0.2:443: it is the address of a Service (kube-proxy in mode ipvs)"
    )


def test_each_family_is_asked_by_its_own_program(node: RecordedNode) -> None:
    line = "OUTPUT -d fd00:10:96::2/128 -p tcp -j DNAT --to-destination"
    node.set(desired=BOTH_NO_RULES).add("nat", f"-A {line} [fd00::1]:6443", program="ip6tables-nft")
    first, second = node.findings("taken")
    assert rows([first]) == [NOT_TAKEN]
    assert second.found == f"`-A {line} [fd00::1]:6443` in nat takes traffic to [fd00:10:96::2]:443"
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
    node.desired = desired([ip_address("10.96.0.1")], interface="lo", port=443)
    found = node.findings("taken")[0]
    assert found.level is FAULT
    assert found.found.endswith("-j DNAT --to-destination 192.0.2.10:6443` in nat takes traffic to 10.96.0.1:443")
    assert found.remedy.startswith("choose an address and port that a Service does not use; ")


POLICY = ("-A INPUT -j POLICY", "-A POLICY -p tcp -m tcp --dport 0:1023 -j DROP")
IN = "INPUT -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j ACCEPT"
OUT = "OUTPUT -s 10.96.0.2/32 -p tcp -m tcp --sport 443 -j ACCEPT"
FILTER, MANGLE = (f"iptables-nft -w 5 -t {table}" for table in ("filter", "mangle"))
OR_ALLOW = "or allow the address and port there, if the program that set it puts its rules in front again"
SET_AGAIN = "the program that set it may set it again: allow the address and port there"


def to_front(rule: str) -> tuple[str]:
    """Return the command that moves a rule in filter."""
    return (f"printf '*filter\\n-D {rule}\\n-I {rule}\\nCOMMIT\\n' | iptables-nft-restore --noflush -w 5",)


def front(node: RecordedNode, table: str, *lines: str) -> None:
    """Put rules in front of ours."""
    for line in reversed(lines):
        node.chain(table, line.split()[1]).insert(1, line)


def dropped_and_ours_missing(node: RecordedNode) -> None:
    node.chain("filter", "INPUT").remove(f"-A {IN}")
    node.add("filter", *POLICY)


def dropped_without_ours(node: RecordedNode) -> None:
    node.set(desired=NO_RULES, tables={**node.tables, "iptables-nft": {}}).add("filter", "-A INPUT -j DROP")


def dropped_by_policy(node: RecordedNode) -> None:
    node.chain("raw", "PREROUTING")[0] = "-P PREROUTING DROP"


REJECT = ("-A OUTPUT -j POLICY", "-A POLICY -p tcp -j REJECT --reject-with tcp-reset")
UNTRACKED = ("-A INPUT -j POLICY", "-A POLICY -m conntrack ! --ctstate NEW -j DROP")
SPOOF = "POSTROUTING -s 10.96.0.0/12 -j DROP"
BEFORE_IN = "in filter drops traffic to 10.96.0.2, before our rule in INPUT lets it pass"
BEFORE_OUT = "in filter drops traffic from 10.96.0.2, before our rule in OUTPUT lets it pass"
MOVE_IN = to_front(IN)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda _: None, NOT_DROPPED),
        (lambda node: front(node, "filter", *POLICY), (FAULT, f"`{POLICY[1]}` {BEFORE_IN}", OR_ALLOW, MOVE_IN)),
        (dropped_and_ours_missing, (FAULT, f"`{POLICY[1]}` {BEFORE_IN}", OR_ALLOW, (f"{FILTER} -I {IN}",))),
        (lambda node: front(node, "filter", *REJECT),
         (FAULT, f"`{REJECT[1]}` {BEFORE_OUT}", OR_ALLOW, to_front(OUT))),
        (lambda node: front(node, "filter", *UNTRACKED), (FAULT, f"`{UNTRACKED[1]}` {BEFORE_IN}", OR_ALLOW, MOVE_IN)),
        (lambda node: front(node, "filter", "-A INPUT -j POLICY", "-A POLICY -i eth0 -j DROP"), NOT_DROPPED),
        (lambda node: node.add("filter", *POLICY), NOT_DROPPED),  # it is behind our rule
        (dropped_without_ours, (FAULT, "`-A INPUT -j DROP` in filter drops traffic to 10.96.0.2", WITH_RULES, ())),
        (lambda node: node.add("mangle", f"-A {SPOOF}"),
         (FAULT, f"`-A {SPOOF}` in mangle drops traffic from 10.96.0.2", SET_AGAIN, (f"{MANGLE} -D {SPOOF}",))),
        (lambda node: node.add("mangle", "-A FORWARD -j DROP"), NOT_DROPPED),
        (dropped_by_policy, (FAULT, "`-P PREROUTING DROP` in raw drops traffic to 10.96.0.2", SET_AGAIN,
                             ("iptables-nft -t raw -P PREROUTING ACCEPT",))),
    ],
)  # fmt: skip
def test_what_is_dropped(node: RecordedNode, change: Change, expected: Row) -> None:
    change(node)
    assert rows(node.findings("policies")) == [expected]


def test_what_drops_in_the_chain_of_our_rule_is_told_once(node: RecordedNode) -> None:
    front(node, "filter", "-A INPUT -j DROP")
    (alarm,) = node.alarms()
    assert alarm.startswith("rules: without effect behind `-A INPUT -j DROP`")
    assert node.findings("policies") == []  # and it is not said that nothing drops it


def test_what_drops_only_other_hosts_traffic_in_the_chain_of_our_rule_is_told(node: RecordedNode) -> None:
    front(node, "filter", "-A INPUT ! -i lo -j DROP")
    assert node.findings("rules")[0].level is NOTE
    expected = (FAULT, f"`-A INPUT ! -i lo -j DROP` {BEFORE_IN}", OR_ALLOW, MOVE_IN)
    assert rows(node.findings("policies")) == [expected]


@pytest.mark.parametrize(
    ("chains", "engines"),
    [(["cali-INPUT"], "Calico"), (["KUBE-NWPLCY-X", "cali-INPUT", "KUBE-ROUTER-INPUT"], "Calico and kube-router")],
)
def test_policy_engines_are_told(node: RecordedNode, chains: list[str], engines: str) -> None:
    front(node, "filter", *(f"-A INPUT -j {chain}" for chain in chains))
    found = (
        f"policy chains of {engines}: rules that rely on connection tracking do not recognise replies from 10.96.0.2, "
        "as they are untracked"
    )
    for chain in chains:
        node.chain("filter", chain)
    assert rows(node.findings("policies")) == [(NOTE, found, "allow them by address and port", ())]
    node.desired = NO_RULES  # then replies are tracked
    assert rows(node.findings("policies")) == [NOT_DROPPED]


BLIND = "the rules could not be listed, see above"
NAT_UNKNOWN = "unknown: cannot tell whether nat rules take traffic to 10.96.0.2: "


def test_chains_that_are_not_listed_in_time(node: RecordedNode) -> None:
    node.set(desired=NO_RULES, seconds=0.5).add("nat", "-A OUTPUT -j A", "-A A -j B", "-A B -j C", f"-A C {DNAT}")
    left_out = "at least {} of table {} {} not read for lack of time"
    assert node.texts("taken") == [NAT_UNKNOWN + left_out.format("1 chain", "nat", "was")]
    assert node.texts("policies") == [
        "unknown: cannot tell whether other chains drop traffic of 10.96.0.2: "
        + left_out.format(f"{number} chains", table, "were")
        for number, table in ((2, "raw"), (4, "mangle"), (2, "filter"))
    ]


def test_very_many_chains_are_not_all_listed(node: RecordedNode) -> None:
    node.set(desired=NO_RULES).add("nat", *(f"-A OUTPUT -j C{number}" for number in range(250)))
    (told,) = node.texts("taken")
    assert told == f"{NAT_UNKNOWN}at least 250 chains of table nat were not read for lack of time"


def test_addresses_for_which_there_is_no_time(node: RecordedNode) -> None:
    ips = [ip_address(f"10.96.1.{number}") for number in range(3)]
    node.set(desired=desired(ips, interface="lo", port=443), seconds=1.0)
    assert node.texts("taken")[1:] == ["unknown: not checked for lack of time: 10.96.1.1 and 1 more"]
    assert node.texts("policies")[-1] == "unknown: not checked for lack of time: 10.96.1.1 and 1 more"


def test_a_chain_that_only_nft_can_print(node: RecordedNode) -> None:
    for table in ("nat", "filter"):
        node.add(table, "-A ODD -j RETURN", "-A EVEN -j RETURN")
        front(node, table, "-A OUTPUT -j ODD", "-A OUTPUT -j EVEN")
        node.opaque.add((table, "ODD"))
    node.desired = NO_RULES
    assert node.texts("taken", "policies") == [
        f"{NAT_UNKNOWN}iptables cannot list ODD of table nat",
        "unknown: cannot tell whether other chains drop traffic of 10.96.0.2: iptables cannot list ODD of table filter",
    ]


def test_chains_that_none_can_print_do_not_hide_the_other_address(node: RecordedNode) -> None:
    node.desired = BOTH
    for table in ("nat", "mangle"):
        front(node, table, "-A OUTPUT -j ODD")
        node.add(table, "-A ODD -j RETURN")
        node.opaque.add((table, "ODD"))
    assert node.texts("taken", "policies") == [
        f"{NAT_UNKNOWN}iptables cannot list ODD of table nat",
        f"ok: {NOT_TAKEN[1].replace('10.96.0.2', '[fd00:10:96::2]')}",
        "unknown: cannot tell whether other chains drop traffic of 10.96.0.2: iptables cannot list ODD of table mangle",
        f"ok: {NOT_DROPPED[1].replace('10.96.0.2', 'fd00:10:96::2')}",
    ]


def test_a_look_that_fails_for_one_address_does_not_hide_the_other(node: RecordedNode, mocker: MockerFixture) -> None:
    node.desired = BOTH
    held = LockHeld(("iptables-nft-restore",), "", "exited with 4")
    really_listed = Backend.listed

    def listed(backend: Backend, chains: Sequence[Chain]) -> dict[Chain, tuple[str, ...]]:
        if backend.command == "iptables-nft":
            raise held
        return really_listed(backend, chains)

    mocker.patch.object(Backend, "listed", listed)
    failed = f"unknown: cannot tell what other programs' rules do to 10.96.0.2: {held}"
    assert node.texts("taken") == [failed, f"ok: {NOT_TAKEN[1].replace('10.96.0.2', '[fd00:10:96::2]')}"]
    assert node.texts("policies") == [failed, f"ok: {NOT_DROPPED[1].replace('10.96.0.2', 'fd00:10:96::2')}"]
    assert node.texts("rules") == [
        f"unknown: cannot tell whether IPv4 rules for another port are left: {held}",
        "ok: 5 of 5 IPv4 rules are in place",
        "ok: 5 of 5 IPv6 rules are in place",
    ]


def test_legacy_is_not_asked_for_tables_that_may_not_be_there(node: RecordedNode) -> None:
    node.use_legacy()
    assert rows(node.findings("taken", "policies")) == [NOT_TAKEN, NOT_DROPPED]
    node.files["/proc/net/ip_tables_names"] = PermissionError(13, "Permission denied")
    unreadable = "the list of iptables-legacy's tables cannot be read"
    assert node.texts("taken", "policies") == [
        NAT_UNKNOWN + unreadable,
        f"unknown: cannot tell whether other chains drop traffic of 10.96.0.2: {unreadable}",
    ]


def test_without_a_look_at_rules_nothing_is_known(node: RecordedNode) -> None:
    node.desired = BOTH
    node.programs.remove("ip6tables-nft-restore")
    node.backend = "nft"
    told = f"unknown: cannot tell what other programs' rules do to fd00:10:96::2: {BLIND}"
    assert node.texts("taken")[1] == told
    assert node.texts("policies")[1] == told
