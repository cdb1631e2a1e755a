"""doctor's checks of what should be on the node, on recorded answers."""

from ipaddress import ip_address
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from sidecar.doctor.findings import Finding, Level
from sidecar.node.command import Result
from sidecar.state.desired import desired
from support.namespace import IPV4
from support.recorded_node import BOTH, NO_RULES, NOT_PRINTABLE, ONLY_IPV6, UNREACHABLE, Change, RecordedNode, ok

OK, NOTE, WARNING, FAULT, UNKNOWN = Level.OK, Level.NOTE, Level.WARNING, Level.FAULT, Level.UNKNOWN

CIDR, CIDR6 = "10.96.0.2/32", "fd00:10:96::2/128"

ON_LINK = desired([IPV4], interface="link0", port=443, setup_iptables=True)
ON_EXISTING = desired([IPV4], interface="eth9", port=443, link_kind="")
INSERTED = desired([IPV4], interface="lo", port=443, setup_iptables=True, insert=True)


@pytest.fixture
def node(mocker: MockerFixture, tmp_path: Path) -> RecordedNode:
    return RecordedNode(mocker, tmp_path)


MARK = "apiserver-proxy-sidecar"
CREATE = f"printf 'link add name proxy0 type dummy\\nlink set dev proxy0 alias {MARK} up\\n' | ip -batch -"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda _: None, [(OK, "lo is up", "", ())]),
        (lambda node: node.set(goal=ON_LINK), [(OK, "link0 is up, not ours", "", ())]),
        (lambda node: (node.set(goal=ON_LINK).kernel.links["link0"].update(ifalias=MARK)),
         [(OK, "link0 is up, ours", "", ())]),
        (lambda node: node.set(goal=ON_LINK).kernel.links["link0"].update(flags=[]),
         [(FAULT, "link0 is down: nothing reaches its addresses", "", ("ip link set dev link0 up",))]),
        (lambda node: node.set(goal=desired([IPV4], interface="proxy0", port=443)),
         [(FAULT, "proxy0 does not exist", "", (CREATE,))]),
        (lambda node: node.set(goal=ON_EXISTING),
         [(FAULT, "eth9 does not exist", "create it, or set --interface to another one; see: ip link show", ())]),
        (lambda node: node.set(goal=ON_EXISTING).kernel.links["link0"].update(altnames=["eth9"]),
         [(OK, "link0 is up, not ours", "", ())]),
    ],
)  # fmt: skip
def test_interface(node: RecordedNode, change: Change, expected: list[tuple[Level, str, str, tuple[str, ...]]]) -> None:
    change(node)
    found = node.findings("interface")
    assert [(each.level, each.found, each.remedy, each.commands) for each in found] == expected


@pytest.mark.parametrize(
    ("file", "content", "manager"),
    [
        ("systemd/netif/links/2", "ADMIN_STATE=configured\nOPER_STATE=routable\n", "systemd-networkd"),
        ("systemd/netif/links/2", "ADMIN_STATE=unmanaged\n", ""),
        ("systemd/netif/links/1", "ADMIN_STATE=configured\n", ""),
        ("NetworkManager/devices/2", "[device]\nmanaged=true\n", "NetworkManager"),
        ("NetworkManager/devices/2", "[device]\nmanaged=false\n", ""),
    ],
)
def test_who_manages_the_interface(node: RecordedNode, file: str, content: str, manager: str) -> None:
    node.set(goal=ON_LINK).files[f"/run/{file}"] = content
    found = [each for each in node.findings("interface") if each.level is NOTE]
    assert [(each.found, each.remedy) for each in found] == [
        (
            f"link0 is managed by {manager}, which may remove addresses that it did not add",
            f"keep this program running, which adds them again at once; or tell {manager} to leave them",
        )
    ] * bool(manager)


ADD = f"ip address add {CIDR} dev lo scope host"
DELETE = f"ip address delete {CIDR} dev lo"
ADD6 = f"ip address add {CIDR6} dev lo nodad"
DELETE6 = f"ip address delete {CIDR6} dev lo"
SWITCH = "/proc/sys/net/ipv6/conf/lo/disable_ipv6"


def show(node: RecordedNode, *cidrs: str, link: str = "lo", **details: object) -> RecordedNode:
    """Let these addresses be on a link, and the last be shown with these details."""
    node.kernel.addresses[link] = list(cidrs)
    if cidrs:
        node.kernel.states[cidrs[-1]] = details
    return node


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda _: None, [(OK, f"{CIDR} on lo, scope host", ())]),
        (lambda node: node.set(goal=ONLY_IPV6), [(OK, f"{CIDR6} on lo, scope host", ())]),
        (show, [(FAULT, f"{CIDR} is not on lo", (ADD,))]),
        (lambda node: node.set(goal=desired([IPV4], interface="eth9", port=443, scope="link")),
         [(FAULT, f"{CIDR} is not on eth9; it is on lo", (f"ip address add {CIDR} dev eth9 scope link",))]),
        (lambda node: show(show(node), CIDR, link="link0"),
         [(FAULT, f"{CIDR} is not on lo; it is on link0", (ADD,))]),
        (lambda node: node.kernel.addresses["link0"].append("10.96.0.2/24"),
         [(OK, f"{CIDR} on lo, scope host", ()),
          (WARNING, "10.96.0.2/24 is on link0 as well", ("ip address delete 10.96.0.2/24 dev link0",))]),
        (lambda node: show(node, "10.96.0.2/24"), [(FAULT, f"{CIDR} is not on lo, but as 10.96.0.2/24", (ADD,))]),
        (lambda node: show(node, CIDR, address="192.0.2.1"),
         [(FAULT, f"{CIDR} is not on lo, but as {CIDR} with a peer", (ADD,))]),
        (lambda node: show(node, "10.96.0.2/24", CIDR), [(OK, f"{CIDR} on lo, scope host", ())]),
        (lambda node: show(node, CIDR, scope="global"),
         [(WARNING, f"{CIDR} on lo has the scope global, and not host", (DELETE, ADD))]),
        (lambda node: show(node.set(goal=ONLY_IPV6), "fd00:10:96::2/64", scope="global"),
         [(NOTE, f"fd00:10:96::2/64 on lo, and not as {CIDR6}: it is taken as it is", ())]),
        (lambda node: show(node.set(goal=ONLY_IPV6), CIDR6, scope="global"),
         [(OK, f"{CIDR6} on lo, scope global", ())]),
        (lambda node: show(node.set(goal=ONLY_IPV6), CIDR6, tentative=True),
         [(FAULT, f"{CIDR6} on lo is tentative: the kernel still finds out whether another host on the link has it",
           (DELETE6, ADD6))]),
        (lambda node: show(node.set(goal=ONLY_IPV6), CIDR6, tentative=True, dadfailed=True),
         [(FAULT, f"another host on the link has {CIDR6} on lo (dadfailed): it is not used here", (DELETE6, ADD6))]),
        (lambda node: show(node.set(goal=ONLY_IPV6)).files.update({SWITCH: "0\n"}),
         [(FAULT, f"{CIDR6} is not on lo", (ADD6,))]),
        (lambda node: show(node.set(goal=ONLY_IPV6)).files.update({SWITCH: "1\n"}),
         [(FAULT, f"{CIDR6} is not on lo, as IPv6 is disabled there", (f"echo 0 > {SWITCH}", ADD6))]),
        (lambda node: show(node).files.update({SWITCH: "1\n"}), [(FAULT, f"{CIDR} is not on lo", (ADD,))]),
        (lambda node: show(node.set(goal=BOTH), CIDR),
         [(OK, f"{CIDR} on lo, scope host", ()), (FAULT, f"{CIDR6} is not on lo", (ADD6,))]),
    ],
)  # fmt: skip
def test_address(node: RecordedNode, change: Change, expected: list[tuple[Level, str, tuple[str, ...]]]) -> None:
    change(node)
    assert [(each.level, each.found, each.commands) for each in node.findings("address")] == expected


@pytest.mark.parametrize(("cidrs", "interface"), [([], "lo"), ([CIDR], "lo"), ([CIDR], "link0")])
def test_the_facts_of_an_address(node: RecordedNode, cidrs: list[str], interface: str) -> None:
    show(node.set(goal=desired([IPV4], interface=interface, port=443)), *cidrs, link=interface)
    assert node.findings("address")[0].facts == {"address": CIDR, "interface": interface}


LOCAL_FIRST = '[{"priority":0,"src":"all","table":"local"},{"priority":32766,"src":"all","table":"main"}]'
LOCAL_LATER = (
    '[{"priority":50,"src":"all","dst":"10.96.0.2","table":"77"},{"priority":60,"src":"all","fwmark":"0x1",'
    '"table":"78"},{"priority":100,"src":"all","table":"local"},{"priority":32766,"src":"all","table":"main"}]'
)
LEADS_AWAY = '[{"dst":"10.96.0.2","dev":"link0","table":"77","flags":[],"uid":0,"cache":[]}]'
UNICAST6 = (
    '[{"dst":"fd00:10:96::2","from":"::","dev":"lo","protocol":"kernel","prefsrc":"fd00:10:96::2","metric":256,'
    '"flags":[],"pref":"medium"}]'
)


def routes(family: int, get: Result, rules: str, table: str = "[]") -> Change:
    """Return what lets the kernel have these routes and rules for the address of a family."""
    goal, cidr = (ONLY_IPV6, CIDR6) if family == 6 else (NO_RULES, CIDR)
    answers = {
        f"ip -json route get {goal.addresses[0].ip}": get,
        f"ip -{family} -json rule show": ok(rules),
        f"ip -{family} -json route show table local exact {cidr}": ok(table),
    }
    return lambda node: node.set(goal=goal).answers.update(answers)


NOT_REACHED = "10.96.0.2 cannot be reached: RTNETLINK answers: "


@pytest.mark.parametrize(
    ("change", "found", "commands"),
    [
        (routes(4, ok(LEADS_AWAY), LOCAL_LATER), "10.96.0.2 does not stay on this node: unicast dev link0 table 77",
         ("ip -4 rule delete priority 50 from all to 10.96.0.2/32 lookup 77",)),
        (routes(4, UNREACHABLE, LOCAL_FIRST), f"{NOT_REACHED}Network is unreachable", (DELETE, ADD)),
        (routes(4, Result(2, "", "RTNETLINK answers: Invalid argument\n"), LOCAL_FIRST,
                '[{"type":"blackhole","dst":"10.96.0.2","flags":[]}]'),
         f"{NOT_REACHED}Invalid argument", (f"ip -4 route delete blackhole {CIDR} table local", DELETE, ADD)),
        (routes(6, ok(UNICAST6), LOCAL_FIRST), "fd00:10:96::2 does not stay on this node: unicast dev lo",
         (DELETE6, ADD6)),
        (routes(4, UNREACHABLE, "", ""), f"{NOT_REACHED}Network is unreachable", (DELETE, ADD)),
    ],
)  # fmt: skip
def test_a_route_that_leads_elsewhere(
    node: RecordedNode, change: Change, found: str, commands: tuple[str, ...]
) -> None:
    change(node)
    (address,) = node.goal.addresses
    remedy = f"if that does not help, see: ip -{address.ip.version} route show table all {address.ip}"
    assert node.findings("route") == [Finding(FAULT, "route", found, remedy, commands, address.facts)]


def test_a_route_that_stays_on_this_node(node: RecordedNode) -> None:
    node.goal = BOTH
    assert node.told("route") == ["ok: 10.96.0.2 is local", "ok: fd00:10:96::2 is local"]


@pytest.mark.parametrize("change", [show, lambda node: show(node.set(goal=ONLY_IPV6), CIDR6, tentative=True)])
def test_there_is_no_route_to_an_address_that_cannot_be_used(node: RecordedNode, change: Change) -> None:
    change(node)
    assert node.told("route") == []  # what is wrong is told of the address


def test_of_very_many_addresses_some_routes_are_left_out(node: RecordedNode) -> None:
    ips = [ip_address(f"10.96.1.{number}") for number in range(18)]
    node.goal = desired(ips, interface="lo", port=443)
    show(node, *(f"{ip}/32" for ip in ips))
    node.answers |= {f"ip -json route get {ip}": ok('[{"type":"local","dev":"lo"}]') for ip in ips}
    told = node.told("route")
    assert told[15:] == ["ok: 10.96.1.15 is local", "unknown: not looked at, to be done in time: 2 more addresses"]


RAW_OUT = "OUTPUT -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j NOTRACK"
RAW_IN = "PREROUTING -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j NOTRACK"
LET_IN = "INPUT -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j ACCEPT"
RAW, FILTER = "iptables-nft -w 5 -t raw", "iptables-nft -w 5 -t filter"
TO_FRONT = (f"{FILTER} -D {LET_IN}", f"{FILTER} -I {LET_IN}")
NOT_PRINTED = NOT_PRINTABLE.format("INPUT", "filter").strip()
GOOD = "5 of 5 IPv4 rules are as they should be"
FOUR = "4 of 5 IPv4 rules are as they should be"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda _: None, [(OK, GOOD, ())]),
        (lambda node: node.set(goal=NO_RULES), [(OK, "none are wanted: --setup-iptables is not set", ())]),
        (lambda node: node.chain("raw", "OUTPUT").remove(f"-A {RAW_OUT}"),
         [(FAULT, f"missing: -t raw -A {RAW_OUT}", (f"{RAW} -A {RAW_OUT}",)), (OK, FOUR, ())]),
        (lambda node: node.set(goal=INSERTED).chain("raw", "OUTPUT").remove(f"-A {RAW_OUT}"),
         [(FAULT, f"missing: -t raw -A {RAW_OUT}", (f"{RAW} -I {RAW_OUT}",)), (OK, FOUR, ())]),
        (lambda node: node.add("filter", f"-A {LET_IN}", f"-A {LET_IN}"),
         [(WARNING, f"3 copies: -t filter -A {LET_IN}", (f"{FILTER} -D {LET_IN}",) * 2), (OK, FOUR, ())]),
        (lambda node: node.chain("filter", "INPUT").insert(1, "-A INPUT -p tcp -j DROP"),
         [(FAULT, f"without effect behind `-A INPUT -p tcp -j DROP`: -t filter -A {LET_IN}", TO_FRONT),
          (OK, FOUR, ())]),
        (lambda node: node.chain("raw", "PREROUTING").insert(1, "-A PREROUTING -j ACCEPT"),
         [(WARNING, f"without effect behind `-A PREROUTING -j ACCEPT`: -t raw -A {RAW_IN}",
           (f"{RAW} -D {RAW_IN}", f"{RAW} -I {RAW_IN}")), (OK, FOUR, ())]),
        (lambda node: node.chain("filter", "INPUT").insert(1, "-A INPUT -i eth0 -j DROP"),
         [(NOTE, f"perhaps without effect behind `-A INPUT -i eth0 -j DROP`: -t filter -A {LET_IN}", ()),
          (OK, FOUR, ())]),
        (lambda node: node.add("raw", f"-A {RAW_OUT}".replace("443", "8443"), f"-A {RAW_IN}".replace("443", "8443")),
         [(WARNING, "2 rules for 10.96.0.2 and port 8443 are there: of an earlier --port?",
           (f"{RAW} -D {RAW_IN}".replace("443", "8443"), f"{RAW} -D {RAW_OUT}".replace("443", "8443"))),
          (OK, GOOD, ())]),
        (lambda node: node.set(claimed=frozenset(["10.96.0.2:8443"])).add("raw", f"-A {RAW_IN}".replace("443", "8443")),
         [(OK, GOOD, ())]),
        (lambda node: node.set(claimed=PermissionError()).add("raw", f"-A {RAW_IN}".replace("443", "8443")),
         [(WARNING, "1 rules for 10.96.0.2 and port 8443 are there: of an earlier --port?",
           (f"{RAW} -D {RAW_IN}".replace("443", "8443"),)), (OK, GOOD, ())]),
        (lambda node: node.opaque.add(("filter", "INPUT")),
         [(UNKNOWN, f"`iptables-nft -w 1 -t filter -S INPUT` exited with 1: {NOT_PRINTED}", ()), (OK, FOUR, ())]),
    ],
)  # fmt: skip
def test_rules(node: RecordedNode, change: Change, expected: list[tuple[Level, str, tuple[str, ...]]]) -> None:
    change(node)
    found = [(each.level, each.found, each.commands) for each in node.findings("rules")]
    assert found == expected


@pytest.mark.parametrize(
    ("goal", "remedy"),
    [(INSERTED, ""), (BOTH, "to keep it there, run with --rule-position=insert")],
)
def test_how_a_rule_stays_in_front(node: RecordedNode, goal: object, remedy: str) -> None:
    node.set(goal=goal).chain("filter", "INPUT").insert(1, "-A INPUT -p tcp -j DROP")
    found = node.findings("rules")[0]
    assert found.remedy == remedy
    rule = f"-t filter -A {LET_IN}"
    assert found.facts == {"rule": rule, "family": 4, "copies": 1, "behind": "-A INPUT -p tcp -j DROP"}


def test_tables_of_legacy_that_are_missing_are_not_made_by_a_look(node: RecordedNode) -> None:
    node.use_legacy().set(goal=BOTH).tables["ip6tables-legacy"].clear()
    told = node.told("rules")
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
    assert found.found.startswith(f"the IPv4 rules could not be looked at: {reason}")
    assert found.found.endswith(": Another app is holding the lock.")
    assert found.node_lacks == bool(lacking)
