"""doctor's checks of what others do to the traffic, on recorded answers."""

from collections.abc import Collection
from ipaddress import ip_address
from pathlib import Path
from typing import TypeAlias

import pytest
from pytest_mock import MockerFixture

from sidecar.doctor import ruleset
from sidecar.doctor.findings import Finding, Level
from sidecar.doctor.ruleset import MOST_CHAINS, Ruleset
from sidecar.doctor.traffic import MOST_ADDRESSES
from sidecar.doctor.view import View
from sidecar.errors import LockHeld
from sidecar.firewall.packet import Hook, Packet
from sidecar.state.desired import desired
from sidecar.state.model import Family
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
NOT_TAKEN = (OK, "neither a rule nor IPVS takes traffic to 10.96.0.2:443", "", ())
NOT_DROPPED = (OK, "no rule drops traffic between this node, pods and 10.96.0.2", "", ())

#: Level, text, remedy and commands of a finding.
Row: TypeAlias = tuple[Level, str, str, tuple[str, ...]]


@pytest.fixture
def node(mocker: MockerFixture, tmp_path: Path) -> RecordedNode:
    return RecordedNode(mocker, tmp_path)


def without_rules(node: RecordedNode) -> RecordedNode:
    """Let the rules be neither desired nor there."""
    return node.set(desired=NO_RULES, tables={**node.tables, "iptables-nft": {}, "ip6tables-nft": {}})


def rows(findings: list[Finding]) -> list[Row]:
    return [(each.level, each.found, each.remedy, each.commands) for each in findings]


TO = "-d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j ACCEPT"
FROM = "-s 10.96.0.2/32 -p tcp -m tcp --sport 443 -j ACCEPT"
REDIRECT = "-p tcp -m tcp --dport 443 -j REDIRECT --to-ports 8443"
DOCKER = DNAT.replace("-d 10.96.0.2/32", "DOCKER -d 10.96.0.2/32 ! -i docker0")
QUOTED = '-d 10.96.0.0/12 -m comment --comment "a b" -j DNAT --to-destination 192.0.2.1'


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], NOT_TAKEN),
        ([f"-A OUTPUT {DNAT}"],
         (FAULT, f"`-A OUTPUT {DNAT}` in nat takes {TO_US} from this node", OR_RULES, (f"{NAT} -I OUTPUT {TO}",))),
        ([f"-A PREROUTING {REDIRECT}"],
         (FAULT, f"`-A PREROUTING {REDIRECT}` in nat takes {TO_US}", OR_RULES, (f"{NAT} -I PREROUTING {TO}",))),
        ([f"-A PREROUTING ! -i lo {REDIRECT}"],
         (FAULT, f"`-A PREROUTING ! -i lo {REDIRECT}` in nat takes {TO_US} from pods", OR_RULES,
          (f"{NAT} -I PREROUTING {TO}",))),
        ([f"-A PREROUTING -m recent --rcheck {REDIRECT}"],
         (WARNING, f"`-A PREROUTING -m recent --rcheck {REDIRECT}` in nat may take {TO_US}", OR_RULES,
          (f"{NAT} -I PREROUTING {TO}",))),
        (["-A PREROUTING ! -i lo -j MINE", f"-A MINE {QUOTED}"],
         (FAULT, f"`-A MINE {QUOTED}` in nat takes {TO_US} from pods", OR_RULES, (f"{NAT} -I PREROUTING {TO}",))),
        (["-A OUTPUT -j KUBE-SERVICES", f"-A KUBE-SERVICES {DNAT}"],
         (FAULT, f"`-A KUBE-SERVICES {DNAT}` in nat takes {TO_US} from this node",
          f"choose an address and port that a Service does not use; {OR_RULES}", ())),
        (["-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER", f"-A {DOCKER}"],
         (FAULT, f"`-A {DOCKER}` in nat takes {TO_US}",
          f"choose an address and port that a container does not use; {OR_RULES}", ())),
        (["-A PREROUTING -j MINE", f"-A MINE {DNAT.replace('443', '80')}", "-A MINE -p udp -j REDIRECT"], NOT_TAKEN),
        (["-A PREROUTING -p tcp -j RETURN", f"-A PREROUTING {DNAT}"], NOT_TAKEN),
    ],
)  # fmt: skip
def test_who_takes_the_traffic(node: RecordedNode, lines: list[str], expected: Row) -> None:
    without_rules(node).add("nat", *lines)
    assert rows(node.findings("taken")) == [expected]


def test_a_transparent_proxy_takes_traffic_that_is_not_tracked_too(node: RecordedNode) -> None:
    line = f"-A PREROUTING ! -i lo {TO.removesuffix('ACCEPT')}TPROXY --on-port 15001 --on-ip 0.0.0.0"
    node.add("mangle", line)
    command = f"iptables-nft -w 5 -t mangle -I PREROUTING {TO}"
    assert rows(node.findings("taken")) == [(FAULT, f"`{line}` in mangle takes {TO_US} from pods", "", (command,))]


def test_a_rule_that_both_ways_come_to_is_told_once(node: RecordedNode) -> None:
    without_rules(node).add("nat", "-A PREROUTING -j MINE", "-A OUTPUT -j MINE", f"-A MINE {DNAT}")
    (found,) = node.findings("taken")
    assert found.facts == {"rule": f"-A MINE {DNAT}", "table": "nat"}


def test_untracked_traffic_is_not_rewritten(node: RecordedNode) -> None:
    node.add("nat", f"-A OUTPUT {DNAT}")
    but = "without our NOTRACK rules: untracked traffic is not rewritten"
    assert rows(node.findings("taken")) == [(NOTE, f"`-A OUTPUT {DNAT}` in nat would take {TO_US} {but}", "", ())]


@pytest.mark.parametrize(
    "change",
    [
        lambda node: node.chain("raw", "OUTPUT").pop(1),
        lambda node: node.chain("raw", "OUTPUT").insert(1, "-A OUTPUT -j ACCEPT"),
    ],
    ids=["missing", "idle"],
)
def test_without_our_rule_it_is_rewritten(node: RecordedNode, change: Change) -> None:
    change(node)
    node.add("nat", f"-A OUTPUT {DNAT}")
    found = f"`-A OUTPUT {DNAT}` in nat takes {TO_US} from this node"
    assert rows(node.findings("taken")) == [(FAULT, found, "", (f"{NAT} -I OUTPUT {TO}",))]


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
    without_rules(node).set(desired=BOTH_NO_RULES)
    node.add("nat", f"-A {line} [fd00::1]:6443", program="ip6tables-nft")
    first, second = node.findings("taken")
    assert rows([first]) == [NOT_TAKEN]
    assert second.found == f"`-A {line} [fd00::1]:6443` in nat takes traffic to [fd00:10:96::2]:443 from this node"
    assert second.commands == (
        f"ip6tables-nft -w 5 -t nat -I OUTPUT {TO.replace('10.96.0.2/32', 'fd00:10:96::2/128')}",
    )


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


def to_front(rule: str, table: str = "filter") -> str:
    """Return the command that moves a rule."""
    return f"printf '*{table}\\n-D {rule}\\n-I {rule}\\nCOMMIT\\n' | iptables-nft-restore --noflush -w 5"


def front(node: RecordedNode, table: str, *lines: str) -> None:
    """Put rules in front of ours."""
    for line in reversed(lines):
        node.chain(table, line.split()[1]).insert(1, line)


def dropped_and_ours_missing(node: RecordedNode) -> None:
    node.chain("filter", "INPUT").remove(f"-A {IN}")
    node.add("filter", *POLICY)


def dropped_without_ours(node: RecordedNode) -> None:
    without_rules(node).add("filter", "-A INPUT -i lo -j ACCEPT", "-A INPUT -j DROP")


def dropped_by_policy(node: RecordedNode) -> None:
    node.chain("raw", "PREROUTING")[0] = "-P PREROUTING DROP"


REJECT = ("-A OUTPUT -j POLICY", "-A POLICY -p tcp -j REJECT --reject-with tcp-reset")
UNTRACKED = ("-A INPUT -j POLICY", "-A POLICY -m conntrack ! --ctstate NEW -j DROP")
SPOOF = "POSTROUTING -s 10.96.0.0/12 -j DROP"
BEFORE_IN = "in filter drops traffic to 10.96.0.2, before our rule in INPUT lets it pass"
BOTH_IN = "in filter drops traffic to and from 10.96.0.2, before our rule in INPUT lets it pass"
BOTH_OUT = "in filter drops traffic to and from 10.96.0.2, before our rule in OUTPUT lets it pass"
MOVE_IN = to_front(IN)
NOTRACK = f"PREROUTING {TO.replace('ACCEPT', 'NOTRACK')}"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda _: None, NOT_DROPPED),
        (lambda node: front(node, "filter", *POLICY), (FAULT, f"`{POLICY[1]}` {BEFORE_IN}", OR_ALLOW, (MOVE_IN,))),
        (dropped_and_ours_missing, (FAULT, f"`{POLICY[1]}` {BEFORE_IN}", OR_ALLOW, (f"{FILTER} -I {IN}",))),
        (lambda node: front(node, "filter", *REJECT),
         (FAULT, f"`{REJECT[1]}` {BOTH_OUT}", OR_ALLOW, (f"{FILTER} -I OUTPUT {TO}", to_front(OUT)))),
        (lambda node: front(node, "filter", *UNTRACKED),
         (FAULT, f"`{UNTRACKED[1]}` {BOTH_IN}", OR_ALLOW, (MOVE_IN, f"{FILTER} -I INPUT {FROM}"))),
        (lambda node: front(node, "filter", "-A INPUT -j POLICY", "-A POLICY -i eth0 -j DROP"), NOT_DROPPED),
        (lambda node: node.add("filter", *POLICY), NOT_DROPPED),  # it is behind our rule
        (dropped_without_ours,
         (FAULT, "`-A INPUT -j DROP` in filter drops traffic to 10.96.0.2 from pods", WITH_RULES, ())),
        (lambda node: node.add("mangle", f"-A {SPOOF}"),
         (FAULT, f"`-A {SPOOF}` in mangle drops traffic to and from 10.96.0.2", OR_ALLOW,
          (f"{MANGLE} -I POSTROUTING {TO}", f"{MANGLE} -I POSTROUTING {FROM}"))),
        (lambda node: node.add("mangle", "-A FORWARD -j DROP"), NOT_DROPPED),
        (dropped_by_policy,
         (FAULT, "`-P PREROUTING DROP` in raw drops traffic to and from 10.96.0.2", OR_ALLOW,
          (to_front(NOTRACK, "raw"), f"iptables-nft -w 5 -t raw -I PREROUTING 2 {TO}",
           f"iptables-nft -w 5 -t raw -I PREROUTING {FROM}"))),
    ],
)  # fmt: skip
def test_what_is_dropped(node: RecordedNode, change: Change, expected: Row) -> None:
    change(node)
    assert rows(node.findings("policies")) == [expected]


def test_what_drops_in_the_chain_of_our_rule_is_told_once(node: RecordedNode) -> None:
    front(node, "filter", "-A INPUT -i lo -j ACCEPT", "-A INPUT -j DROP")
    node.chain("filter", "INPUT").remove(f"-A {IN}")
    (alarm,) = node.alarms()
    assert alarm.startswith("rules: missing: -t filter -A INPUT")
    assert node.findings("policies") == []  # and it is not said that nothing drops it


def test_what_drops_only_pods_traffic_in_the_chain_of_our_rule_is_told(node: RecordedNode) -> None:
    front(node, "filter", "-A INPUT ! -i lo -j DROP")
    assert [each.level for each in node.findings("rules")] == [OK]
    expected = (
        FAULT,
        (
            "`-A INPUT ! -i lo -j DROP` in filter drops traffic to 10.96.0.2 from pods, before our rule in INPUT lets "
            "it pass"
        ),
        OR_ALLOW,
        (MOVE_IN,),
    )
    assert rows(node.findings("policies")) == [expected]


def test_what_depends_on_more_is_one_note(node: RecordedNode) -> None:
    lines = [f"-A INPUT -m hashlimit --hashlimit-above {number}/sec --hashlimit-name x -j DROP" for number in (1, 2, 3)]
    front(node, "filter", *lines)
    found = f"`{lines[0]}` in filter, and 2 other rules may drop traffic of 10.96.0.2: that depends on more than can "
    assert rows(node.findings("policies")) == [(NOTE, f"{found}be seen here", "", ())]
    assert node.alarms() == []


def test_users_of_this_node_can_be_cut_off(node: RecordedNode) -> None:
    line = f"-A OUTPUT {TO.removesuffix('-j ACCEPT')}-m owner --uid-owner 4321 -j REJECT"
    front(node, "filter", line)
    (found, _) = node.findings("policies")
    assert found.level is WARNING
    assert found.found == f"`{line}` in filter drops traffic to 10.96.0.2 of some users of this node"


BLIND = "the rules could not be listed, see above"
UNREAD = "unknown: cannot tell whether other rules stop traffic of 10.96.0.2: "


def test_chains_that_are_not_listed_in_time(node: RecordedNode) -> None:
    without_rules(node).set(seconds=1.5).add("nat", "-A OUTPUT -j A", "-A A -j B", "-A B -j C", f"-A C {DNAT}")
    assert node.texts("taken") == []
    (unread,) = (each for each in node.texts("policies") if each.startswith("unknown"))
    assert unread == f"{UNREAD}at least 1 chain of iptables-nft was not read for lack of time"


def test_very_many_chains_are_not_all_listed(node: RecordedNode) -> None:
    node.set(desired=NO_RULES).add("filter", *(f"-A OUTPUT -j C{number}" for number in range(MOST_CHAINS + 1)))
    (unread,) = (each for each in node.texts("policies") if each.startswith("unknown"))
    assert unread == f"{UNREAD}at least {MOST_CHAINS + 1} chains of iptables-nft were not read for lack of time"


def test_addresses_for_which_there_is_no_time(node: RecordedNode) -> None:
    ips = [ip_address(f"10.96.1.{number}") for number in range(3)]
    node.set(desired=desired(ips, interface="lo", port=443), seconds=4.5)
    assert node.texts("taken")[1:] == ["unknown: not checked for lack of time: 10.96.1.1 and 1 more"]
    assert node.texts("policies")[-1] == "unknown: not checked for lack of time: 10.96.1.1 and 1 more"


def test_very_many_addresses_are_not_all_followed(node: RecordedNode) -> None:
    ips = [ip_address(f"10.96.1.{number}") for number in range(MOST_ADDRESSES + 3)]
    without_rules(node).set(desired=desired(ips, interface="lo", port=443))
    assert node.texts("taken")[-2:] == [
        f"ok: neither a rule nor IPVS takes traffic to 10.96.1.{MOST_ADDRESSES - 1}:443",
        f"unknown: not checked for lack of time: 10.96.1.{MOST_ADDRESSES} and 2 more",
    ]


def test_a_chain_that_only_nft_can_print(node: RecordedNode) -> None:
    without_rules(node)
    for table in ("nat", "filter"):
        node.add(table, "-A ODD -j RETURN", "-A EVEN -j RETURN")
        front(node, table, "-A OUTPUT -j ODD", "-A OUTPUT -j EVEN")
        node.opaque.add((table, "ODD"))
    assert node.texts("taken", "policies") == [
        (
            "note: `-A OUTPUT -j ODD` in nat, and 1 other rule may drop traffic of 10.96.0.2: that depends on more "
            "than can be seen here"
        ),
        f"{UNREAD}iptables-nft cannot list ODD of table filter",
        f"{UNREAD}iptables-nft cannot list ODD of table nat",
    ]


def test_chains_that_none_can_print_do_not_hide_the_other_address(node: RecordedNode) -> None:
    node.desired = BOTH
    front(node, "mangle", "-A OUTPUT -j ODD")
    node.add("mangle", "-A ODD -j RETURN")
    node.opaque.add(("mangle", "ODD"))
    ipv6 = "fd00:10:96::2"
    assert node.texts("taken", "policies")[-3:] == [
        "note: `-A OUTPUT -j ODD` in mangle may drop traffic of 10.96.0.2: that depends on more than can be seen here",
        f"{UNREAD}iptables-nft cannot list ODD of table mangle",
        f"ok: {NOT_DROPPED[1].replace('10.96.0.2', ipv6)}",
    ]


def test_a_look_that_fails_for_one_address_does_not_hide_the_other(node: RecordedNode, mocker: MockerFixture) -> None:
    node.desired = BOTH
    held = LockHeld(("iptables-nft-restore",), "", "exited with 4")
    really_read = ruleset.read

    def read(view: View, family: Family, packets: Collection[tuple[Hook, Packet]]) -> Ruleset:
        if family == IPV4.version:
            raise held
        return really_read(view, family, packets)

    mocker.patch("sidecar.doctor.ruleset.read", read)
    failed = f"unknown: cannot tell what other programs' rules do to 10.96.0.2: {held}"
    assert node.texts("taken") == [failed, f"ok: {NOT_TAKEN[1].replace('10.96.0.2', '[fd00:10:96::2]')}"]
    assert node.texts("policies") == [failed, f"ok: {NOT_DROPPED[1].replace('10.96.0.2', 'fd00:10:96::2')}"]


def test_legacy_is_not_asked_for_tables_that_may_not_be_there(node: RecordedNode) -> None:
    node.use_legacy()
    assert rows(node.findings("taken", "policies")) == [NOT_TAKEN, NOT_DROPPED]
    node.files["/proc/net/ip_tables_names"] = PermissionError(13, "Permission denied")
    for text in node.texts("taken", "policies"):
        assert text.startswith("unknown: cannot tell what other programs' rules do to 10.96.0.2: cannot tell whether ")
        assert "as /proc/net/" in text


def test_without_a_look_at_rules_nothing_is_known(node: RecordedNode) -> None:
    node.desired = BOTH
    node.programs.remove("ip6tables-nft-restore")
    node.backend = "nft"
    told = f"unknown: cannot tell what other programs' rules do to fd00:10:96::2: {BLIND}"
    assert node.texts("taken")[1] == told
    assert node.texts("policies")[1] == told
