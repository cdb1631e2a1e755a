"""The check of the routes, on recorded answers."""

from ipaddress import ip_address
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from sidecar.doctor.findings import Level
from sidecar.node.command import Result
from sidecar.state.desired import desired
from support.findings import finding
from support.namespace import IPV4
from support.recorded_node import BOTH, NO_RULES, ONLY_IPV6, UNREACHABLE, Change, RecordedNode, ok

CIDR, CIDR6 = "10.96.0.2/32", "fd00:10:96::2/128"
ROUTE = f"ip route replace local {CIDR} dev lo table local proto kernel scope host src 10.96.0.2"
ADD6 = f"ip address add {CIDR6} dev lo nodad preferred_lft 0"
DELETE6 = f"ip address delete {CIDR6} dev lo"


@pytest.fixture
def node(mocker: MockerFixture, tmp_path: Path) -> RecordedNode:
    return RecordedNode(mocker, tmp_path)


def show(node: RecordedNode, *cidrs: str, **details: object) -> RecordedNode:
    """Let these addresses be on lo, and the last be shown with these details."""
    node.kernel.addresses["lo"] = list(cidrs)
    if cidrs:
        node.kernel.states[cidrs[-1]] = details
    return node


MAIN = '{"priority":32766,"src":"all","table":"254"},{"priority":32767,"src":"all","table":"253"}'
LOCAL_FIRST = f'[{{"priority":0,"src":"all","table":"255"}},{MAIN}]'
CATCH_ALL = '{"priority":50,"src":"all","dst":"10.96.0.2","table":"77"}'
LOCAL_LATER = f'[{CATCH_ALL},{{"priority":100,"src":"all","table":"255"}},{MAIN}]'
CILIUM = '{"priority":9,"src":"all","fwmark":"0x200","fwmask":"0xf00","table":"2004"}'
BEHIND_CILIUM = f'[{CILIUM},{CATCH_ALL},{{"priority":100,"src":"all","table":"255"}},{MAIN}]'
IN_FIRST_PLACE = f'[{{"priority":0,"src":"all","dst":"10.96.0.0","dstlen":16,"action":"7"}},{MAIN}]'
TWO_IN_FIRST_PLACE = f'[{{"priority":0,"src":"10.0.0.0","srclen":8,"action":"7"}},{IN_FIRST_PLACE[1:]}'
LOCAL_LAST = f'[{CILIUM},{MAIN},{{"priority":32770,"src":"all","table":"255"}}]'

BY_USER = (
    '[{"priority":50,"src":"all","uid_start":0,"uid_end":0,"table":"77"},'
    f'{{"priority":100,"src":"all","table":"255"}},{MAIN}]'
)

IS_LOCAL = '[{"type":"2","dst":"10.96.0.2","dev":"lo","table":"255","flags":[]}'
TABLE_77 = f'{IS_LOCAL},{{"dst":"default","dev":"link0","table":"77","flags":[]}}]'
TABLE_MAIN = f'{IS_LOCAL},{{"dst":"default","dev":"link0","flags":[]}}]'
LEADS_AWAY = '[{"dst":"10.96.0.2","dev":"link0","table":"77","flags":[],"uid":0,"cache":[]}]'
UNICAST6 = (
    '[{"dst":"fd00:10:96::2","from":"::","dev":"lo","protocol":"kernel","prefsrc":"fd00:10:96::2","metric":256,'
    '"flags":[],"pref":"medium"}]'
)


def routes(family: int, get: Result, rules: str, table: str = "[]") -> Change:
    """Return what lets the kernel have these routes and rules for the address of a family."""
    desired = ONLY_IPV6 if family == 6 else NO_RULES
    answers = {
        f"ip -json route get {desired.addresses[0].ip}": get,
        f"ip -{family} -json -N rule show": ok(rules),
        f"ip -{family} -json -N route show table all": ok(table),
    }
    return lambda node: node.set(desired=desired).answers.update(answers)


NOT_REACHED = "10.96.0.2 cannot be reached: RTNETLINK answers: "
AWAY = "10.96.0.2 does not stay on this node: unicast dev link0"
CATCHES = "; by the policy rule `50: from all to 10.96.0.2 lookup 77`"
SEE = "if that does not help, see: ip -4 route show table all 10.96.0.2"
LOCAL_AGAIN = "then the table local comes first, as it does unless somebody moves it"
TO_77 = "from all to 10.96.0.2 lookup 77"
DROPS = "from all to 10.96.0.0/16 unreachable"


@pytest.mark.parametrize(
    ("change", "found", "remedy", "commands"),
    [
        (routes(4, ok(LEADS_AWAY), LOCAL_LATER, TABLE_77), f"{AWAY} table 77{CATCHES}", LOCAL_AGAIN,
         ("ip rule add pref 0 lookup local",)),
        (routes(4, ok(LEADS_AWAY), BEHIND_CILIUM, TABLE_77), f"{AWAY} table 77{CATCHES}",
         f"or have that rule removed where it is set; by hand: ip rule delete pref 50 {TO_77}",
         ("ip rule add pref 49 to 10.96.0.2/32 lookup local",)),
        (routes(4, ok('[{"dst":"10.96.0.2","dev":"link0"}]'), LOCAL_LAST, TABLE_MAIN),
         f"{AWAY}; the table local comes only at 32770", LOCAL_AGAIN, ("ip rule add pref 0 lookup local",)),
        (routes(4, ok('[{"dst":"10.96.0.2","dev":"link0"}]'), f"[{MAIN}]", TABLE_MAIN),
         f"{AWAY}; no policy rule looks up the table local", LOCAL_AGAIN, ("ip rule add pref 0 lookup local",)),
        (routes(4, UNREACHABLE, IN_FIRST_PLACE, TABLE_MAIN),
         f"{NOT_REACHED}Network is unreachable; by the policy rule `0: {DROPS}`", LOCAL_AGAIN,
         ("ip rule add pref 0 lookup local", f"ip rule add pref 1 {DROPS}", f"ip rule delete pref 0 {DROPS}")),
        (routes(4, UNREACHABLE, TWO_IN_FIRST_PLACE, TABLE_MAIN),
         f"{NOT_REACHED}Network is unreachable; by the policy rule `0: {DROPS}`",
         "no rule can be added in front of that one: have it removed, or moved, where it is set", ()),
        (routes(4, UNREACHABLE, LOCAL_FIRST), f"{NOT_REACHED}Network is unreachable", SEE, (ROUTE,)),
        (routes(4, Result(2, "", "RTNETLINK answers: Invalid argument\n"), LOCAL_FIRST,
                '[{"type":"6","dst":"10.96.0.2","table":"255","flags":[]}]'),
         f"{NOT_REACHED}Invalid argument", SEE,
         (f"ip -4 route delete blackhole {CIDR} table local", ROUTE)),
        (routes(4, UNREACHABLE, LOCAL_FIRST, f'{IS_LOCAL},{{"type":"7","dst":"10.96.0.2","table":"255"}}]'),
         f"{NOT_REACHED}Network is unreachable", SEE, (f"ip -4 route delete unreachable {CIDR} table local",)),
        (routes(4, UNREACHABLE, LOCAL_FIRST, TABLE_MAIN), f"{NOT_REACHED}Network is unreachable",
         "see: ip rule show; ip route show table all", ()),
        (routes(4, ok(LEADS_AWAY), BY_USER, TABLE_77),
         f"{AWAY} table 77; by the policy rule `50: from all uidrange 0-0 lookup 77`", LOCAL_AGAIN,
         ("ip rule add pref 0 lookup local",)),
        (routes(6, ok(UNICAST6), LOCAL_FIRST), "fd00:10:96::2 does not stay on this node: unicast dev lo",
         "if that does not help, see: ip -6 route show table all fd00:10:96::2", (DELETE6, ADD6)),
        (routes(4, UNREACHABLE, LOCAL_FIRST, "?"),
         (f"{NOT_REACHED}Network is unreachable; `ip -4 -json -N route show table all` printed output that cannot be "
         "parsed: Expecting value: line 1 column 1 (char 0)"), "see: ip -4 route show table all 10.96.0.2", ()),
    ],
)  # fmt: skip
def test_a_route_that_leads_elsewhere(
    node: RecordedNode, change: Change, found: str, remedy: str, commands: tuple[str, ...]
) -> None:
    change(node)
    (address,) = node.desired.addresses
    assert node.findings("route") == [finding(Level.FAULT, "route", found, remedy, commands, address.facts)]


def test_what_mends_several_addresses_is_to_be_done_once(node: RecordedNode) -> None:
    node.desired = desired([IPV4, ip_address("10.96.0.3")], interface="lo", port=443)
    show(node, CIDR, "10.96.0.3/32")
    also_local = '{"type":"2","dst":"10.96.0.3","dev":"lo","table":"255"}'
    node.answers |= {
        "ip -json route get 10.96.0.2": ok('[{"dst":"10.96.0.2","dev":"link0"}]'),
        "ip -json route get 10.96.0.3": ok('[{"dst":"10.96.0.3","dev":"link0"}]'),
        "ip -4 -json -N rule show": ok(LOCAL_LAST),
        "ip -4 -json -N route show table all": ok(f"{TABLE_MAIN[:-1]},{also_local}]"),
    }
    assert [(each.level, each.remedy, each.commands) for each in node.findings("route")] == [
        (Level.FAULT, LOCAL_AGAIN, ("ip rule add pref 0 lookup local",)),
        (Level.FAULT, "what is to be done above mends this, too", ()),
    ]


def test_a_route_that_stays_on_this_node(node: RecordedNode) -> None:
    node.desired = BOTH
    assert node.texts("route") == ["ok: 10.96.0.2 is local", "ok: fd00:10:96::2 is local"]


@pytest.mark.parametrize("change", [show, lambda node: show(node.set(desired=ONLY_IPV6), CIDR6, tentative=True)])
def test_there_is_no_route_to_an_address_that_cannot_be_used(node: RecordedNode, change: Change) -> None:
    change(node)
    assert node.texts("route") == []  # what is wrong is told of the address


def test_of_very_many_addresses_some_routes_are_left_out(node: RecordedNode) -> None:
    ips = [ip_address(f"10.96.1.{number}") for number in range(18)]
    node.desired = desired(ips, interface="lo", port=443)
    show(node, *(f"{ip}/32" for ip in ips))
    node.answers |= {f"ip -json route get {ip}": ok('[{"type":"local","dev":"lo"}]') for ip in ips}
    told = node.texts("route")
    assert told[15:] == ["ok: 10.96.1.15 is local", "unknown: not checked for lack of time: 2 more addresses"]


ROUTES = (
    '[{"dst":"default","gateway":"192.168.7.1","dev":"up0","flags":[]},'
    '{"dst":"192.168.7.0/24","dev":"up0","protocol":"kernel","scope":"link","prefsrc":"192.168.7.2","flags":[]},'
    '{"dst":"10.244.0.5","dev":"cali0","scope":"link","flags":[]},'
    '{"dst":"10.244.0.6","dev":"cali0","scope":"link","flags":[]},'
    '{"type":"blackhole","dst":"10.9.0.0/16","flags":[]}]'
)


def test_destinations_that_are_reached_from_one_of_the_addresses(node: RecordedNode) -> None:
    node.desired = desired([IPV4], interface="lo", port=443, scope="global")
    show(node, CIDR, scope="global")
    node.answers |= {
        "ip -4 -json route show": ok(ROUTES),
        "ip -json route get 192.0.2.1": ok('[{"dst":"192.0.2.1","gateway":"192.168.7.1","prefsrc":"192.168.7.2"}]'),
        "ip -json route get 10.244.0.5": ok('[{"dst":"10.244.0.5","dev":"cali0","prefsrc":"10.96.0.2"}]'),
    }
    assert node.texts("route") == [
        "ok: 10.96.0.2 is local",
        "warning: the source address for 10.244.0.5 is 10.96.0.2 (ip route get 10.244.0.5)",
    ]
    show(node, CIDR, scope="host")
    assert node.texts("route") == ["ok: 10.96.0.2 is local"]
