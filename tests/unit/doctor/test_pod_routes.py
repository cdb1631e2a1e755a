"""The way from the pods and back, on recorded answers: what the table of broken nodes (tests/e2e) cannot make."""

import json
from ipaddress import ip_address
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from sidecar.doctor.findings import Level
from sidecar.doctor.pod_routes import MOST_PEERS, from_pods
from sidecar.node.command import Result
from support.recorded_node import NO_RULES, RecordedNode, ok

ASK = "ip -json -force -batch -"
THERE = '[{"type":"local","dst":"10.96.0.2","from":"10.244.0.5","dev":"lo","iif":"cali0"}]\n'
BACK = '[{"dst":"10.244.0.5","from":"10.96.0.2","dev":"cali0","flags":[],"uid":0,"cache":[]}]\n'
AWAY = '[{"dst":"10.244.0.5","from":"10.96.0.2","dev":"link0","table":"77","flags":[],"mark":5,"uid":0,"cache":[]}]\n'
RULES = (
    '[{"priority":0,"src":"all","table":"255"},{"priority":50,"src":"all","fwmark":"0x5","table":"77"},'
    '{"priority":32766,"src":"all","table":"254"}]'
)


@pytest.fixture
def node(mocker: MockerFixture, tmp_path: Path) -> RecordedNode:
    node = RecordedNode(mocker, tmp_path).set(desired=NO_RULES)
    pods(node, 1)
    node.answers |= {"ip -4 -json -N rule show": ok(RULES), ASK: ok(THERE + BACK)}
    return node


def pods(node: RecordedNode, number: int) -> None:
    """Let the node have so many pods, each behind a link of its own."""
    routes = [{"dst": "default", "dev": "link0", "table": "77"}, {"type": "2", "dst": "10.96.0.2", "table": "255"}]
    for at in range(number):
        node.kernel.addresses[f"cali{at}"] = []
        node.kernel.links[f"cali{at}"] = {"flags": ["UP"], "linkinfo": {"info_kind": "veth"}}
        routes.append({"dst": f"10.244.{at // 250}.{at % 250 + 5}", "dev": f"cali{at}"})
    node.answers["ip -4 -json -N route show table all"] = ok(json.dumps(routes))


def found(node: RecordedNode) -> list[str]:
    return [f"{each.level.value}: {each.found}" for each in from_pods(node.view(), NO_RULES.addresses)]


def test_the_way_of_marked_packets(node: RecordedNode) -> None:
    assert found(node) == ["ok: pods behind cali0 are routed to 10.96.0.2 and back"]
    node.add("mangle", "-A OUTPUT -s 10.96.0.2/32 -j MARK --set-xmark 0x5/0xffffffff")
    node.answers[ASK] = ok(THERE + AWAY)
    assert found(node) == [
        (
            "fault: replies from 10.96.0.2 to 10.244.0.5 behind cali0 leave by link0; "
            "by the policy rule `50: from all fwmark 0x5 lookup 77`"
        )
    ]


def test_nobody_is_looked_at_from_an_address_of_another_family(node: RecordedNode) -> None:
    view = node.view()
    view.origins = [ip_address("fd00:10:244::5")]
    (told, *_) = from_pods(view, NO_RULES.addresses)
    assert told.level is Level.UNKNOWN
    assert told.found == "not looked at from --from=fd00:10:244::5: none of the addresses is IPv6"


def test_very_many_pods_take_one_process(node: RecordedNode) -> None:
    pods(node, MOST_PEERS + 2)
    node.answers[ASK] = ok((THERE + BACK) * MOST_PEERS)
    assert found(node) == [
        "ok: pods behind cali0, cali1, cali10 and 509 more interfaces are routed to 10.96.0.2 and back",
        "unknown: not checked for lack of time: pods behind 2 more interfaces",
    ]
    assert node.calls.count(ASK) == 1
    asked = [call for call in node.calls if call.startswith("ip ")]
    assert len(asked) == len(set(asked)) == 5  # links, routes, neighbours, rules


@pytest.mark.parametrize("answer", [Result(255, "", 'Error: argument "ipproto" is wrong\n'), ok(THERE), ok("no JSON")])
def test_answers_that_cannot_be_understood_are_no_finding(node: RecordedNode, answer: Result) -> None:
    node.answers[ASK] = answer
    (line,) = found(node)
    assert line.startswith(
        "unknown: cannot tell whether pods reach the address, and replies the pods: `printf 'route get"
    )


def test_a_rule_that_cannot_be_understood_hides_nothing_else(node: RecordedNode) -> None:
    node.answers |= {"ip -4 -json -N rule show": ok('[{"priority":50,"src":"?","table":"254"}]'), ASK: ok(THERE + AWAY)}
    assert found(node) == [
        (
            "unknown: cannot tell whether pods reach the address, and replies the pods: "
            "'?' does not appear to be an IPv4 or IPv6 network"
        )
    ]
