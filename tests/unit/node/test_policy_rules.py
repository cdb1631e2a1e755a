"""Which rule and which route decide, on what `ip` prints of both (iproute2 6.1)."""

import json
from ipaddress import ip_address

import pytest

from sidecar.node.policy_rules import Packet, decision, policy_rules
from sidecar.node.routes import routes

LOCAL, MAIN = {"priority": 0, "src": "all", "table": "255"}, {"priority": 32766, "src": "all", "table": "254"}
ROUTES = [
    {"dst": "default", "gateway": "192.168.7.1", "dev": "up0"},
    {"dst": "10.244.0.5", "dev": "cali1", "metric": 200},
    {"dst": "10.244.0.5", "dev": "cali0", "metric": 100},
    {"dst": "10.244.0.0/16", "dev": "cni0"},
    {"type": "2", "dst": "10.96.0.2", "dev": "lo", "table": "255"},
    {"type": "6", "dst": "default", "table": "60"},
    {"type": "9", "dst": "default", "table": "63"},
    {"dst": "default", "dev": "up0", "table": "64"},
]
REPLY = Packet(ip_address("10.244.0.5"), ip_address("10.96.0.2"), source_port=443, port=40000, mark=0x11)
REQUEST = Packet(ip_address("10.96.0.2"), ip_address("10.244.0.5"), "cali0", 40000, 443)


def decides(packet: Packet, *rules: dict[str, object]) -> str:
    rule, route = decision(policy_rules(json.dumps(rules)), routes(json.dumps(ROUTES), 4), packet)
    return f"{rule.priority if rule else None}: {route}"


BY_MAIN = "32766: 10.244.0.5/32 dev cali0"
AWAY = "50: default dev up0 table 64"


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"table": "64"}, AWAY),
        ({"src": "10.96.0.2", "table": "60"}, "50: blackhole default table 60"),
        ({"src": "10.96.0.0", "srclen": 16, "table": "64"}, AWAY),
        ({"src": "10.97.0.0", "srclen": 16, "table": "64"}, BY_MAIN),
        ({"dst": "10.244.0.0", "dstlen": 16, "action": "7"}, "50: None"),
        ({"dst": "10.245.0.0", "dstlen": 16, "action": "7"}, BY_MAIN),
        ({"fwmark": "0x1", "fwmask": "0xf", "table": "64"}, AWAY),
        ({"fwmark": "0x2", "fwmask": "0xf", "table": "64"}, BY_MAIN),
        ({"fwmark": "0x1", "table": "64"}, BY_MAIN),
        ({"iif": "lo", "table": "64"}, AWAY),
        ({"iif": "cali0", "table": "64"}, BY_MAIN),
        ({"ipproto": "ipproto-6", "sport": 443, "table": "64"}, AWAY),
        ({"ipproto": "tcp", "sport": 443, "table": "64"}, AWAY),
        ({"ipproto": "17", "table": "64"}, BY_MAIN),
        ({"dport_start": 30000, "dport_end": 50000, "table": "64"}, AWAY),
        ({"dport": 443, "table": "64"}, BY_MAIN),
        ({"not": None, "src": "10.97.0.0", "srclen": 16, "table": "64"}, AWAY),
        ({"not": None, "oif": "up0", "table": "64"}, BY_MAIN),
        ({"table": "63"}, BY_MAIN),
        ({"table": "64", "suppress_prefixlen": 0}, BY_MAIN),
        ({"table": "99"}, BY_MAIN),
        ({"goto": 40000}, "None: None"),
        ({"goto": 32766}, BY_MAIN),
        ({"uid_start": 0, "uid_end": 9, "table": "64"}, AWAY),
        ({"uid_start": 1, "uid_end": 9, "table": "64"}, BY_MAIN),
        ({"l3mdev": None}, BY_MAIN),
        ({"something_new": 1, "table": "64"}, BY_MAIN),
    ],
)
def test_what_decides_where_a_reply_goes(rule: dict[str, object], expected: str) -> None:
    assert decides(REPLY, LOCAL, {"priority": 50, "src": "all", **rule}, MAIN) == expected


def test_what_decides_where_a_request_goes() -> None:
    by_user = {"priority": 50, "src": "all", "uid_start": 0, "uid_end": 9, "action": "6"}
    assert decides(REQUEST, by_user, {**LOCAL, "priority": 100}, MAIN) == "100: local 10.96.0.2/32 table local"
    by_interface = {"priority": 50, "src": "all", "iif": "cali0", "action": "6"}
    assert decides(REQUEST, LOCAL, by_interface, MAIN) == "0: local 10.96.0.2/32 table local"
    assert decides(REQUEST, by_interface, {**LOCAL, "priority": 100}, MAIN) == "50: None"


def test_a_rule_with_words_that_are_not_known_has_no_text() -> None:
    (rule,) = policy_rules('[{"priority":50,"src":"all","something_new":1,"table":"64"}]')
    assert not rule.text
