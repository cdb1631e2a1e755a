"""The pods' side of a node, found from its routes, as `ip` of iproute2 6.1 prints them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from pytest_mock import MockerFixture

from sidecar.doctor.peers import Peer, networks, peers
from sidecar.errors import OutputUnreadable
from sidecar.state.model import Family
from support.recorded_node import RecordedNode, ok

LINKS = {
    "eth0": "", "cali0": "veth", "cali1": "veth", "cni0": "bridge", "docker0": "bridge", "cilium_host": "veth",
    "flannel.1": "vxlan", "tunl0": "ipip", "wg0": "wireguard", "br-uplink": "bridge",
}  # fmt: skip


@pytest.fixture
def node(mocker: MockerFixture, tmp_path: Path) -> RecordedNode:
    node = RecordedNode(mocker, tmp_path)
    for name, kind in LINKS.items():
        node.kernel.addresses[name] = []
        node.kernel.links[name] = {"flags": ["UP"], "linkinfo": {"info_kind": kind}}
    return node


def show(
    node: RecordedNode, family: int, routes: Sequence[Mapping[str, Any]], neighbours: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Let the node have these routes and neighbours."""
    every = [{"flags": [], **route} for route in routes]
    node.answers[f"ip -{family} -json -N route show table all"] = ok(json.dumps(every))
    node.answers[f"ip -{family} -json neighbour show"] = ok(json.dumps(neighbours))


def found(node: RecordedNode, family: Family) -> list[str]:
    return [f"{each.ip} {each.interface}" for each in peers(node.view(), family)]


def test_an_address_behind_each_interface_that_may_have_pods(node: RecordedNode) -> None:
    node.kernel.addresses |= {"cni0": ["10.244.1.1/24"], "docker0": ["172.17.0.1/16"], "cilium_host": ["10.0.1.5/32"]}
    cilium = {"gateway": "10.0.1.5", "dev": "cilium_host", "prefsrc": "10.0.1.5"}
    show(
        node,
        4,
        [
            {"dst": "default", "gateway": "192.168.7.1", "dev": "eth0"},
            {"dst": "192.168.7.0/24", "dev": "eth0", "protocol": "2", "scope": "253", "prefsrc": "192.168.7.2"},
            {"type": "6", "dst": "10.244.0.0/26", "protocol": "80"},
            {"dst": "10.244.0.5", "dev": "cali0", "scope": "253"},
            {"dst": "10.244.0.6", "dev": "cali1", "scope": "253", "flags": ["linkdown"]},
            {"dst": "10.244.1.0/24", "dev": "cni0", "protocol": "2", "scope": "253", "prefsrc": "10.244.1.1"},
            {"dst": "10.244.2.0/24", "gateway": "10.244.2.0", "dev": "flannel.1", "flags": ["onlink"]},
            {"dst": "10.244.3.0/24", "gateway": "192.168.7.3", "dev": "tunl0", "flags": ["onlink"]},
            {"dst": "10.9.0.0/24", "dev": "wg0", "scope": "253"},
            {"dst": "172.17.0.0/16", "dev": "docker0", "protocol": "2", "scope": "253", "prefsrc": "172.17.0.1"},
            {"dst": "10.0.1.0/24", **cilium},
            {"dst": "10.0.2.0/24", **cilium},  # another node's
            {"dst": "192.168.8.0/24", "dev": "br-uplink", "protocol": "2", "scope": "253"},
            {"dst": "default", "gateway": "192.168.8.1", "dev": "br-uplink", "table": "77"},
            {"type": "2", "dst": "10.244.1.1", "dev": "cni0", "table": "255", "protocol": "2", "scope": "254"},
            {"type": "3", "dst": "10.244.1.255", "dev": "cni0", "table": "255", "protocol": "2", "scope": "253"},
        ],
    )
    assert found(node, 4) == ["10.244.0.5 cali0", "10.244.1.2 cni0", "172.17.0.2 docker0", "10.0.1.1 cilium_host"]
    behind = {name: [str(each) for each in some] for name, some in networks(node.view(), 4).items()}
    assert behind == {
        "cali0": ["10.244.0.5/32"],
        "cni0": ["10.244.1.0/24"],
        "docker0": ["172.17.0.0/16"],
        "cilium_host": ["10.0.1.0/24"],
    }


def test_the_same_with_ipv6(node: RecordedNode) -> None:
    node.kernel.addresses |= {"cni0": ["fd00:244::1/64", "fd00:9::9/128"]}
    show(
        node,
        6,
        [
            {"dst": "fd00:9::9", "dev": "cni0", "protocol": "2", "metric": 256},
            {"dst": "fd00:10:244::5", "dev": "cali0", "metric": 1024},
            {"dst": "fd00:244::/64", "dev": "cni0", "protocol": "2", "metric": 256},
            {"dst": "fe80::/64", "dev": "cali0", "protocol": "2", "metric": 256},
            {"dst": "fe80::/64", "dev": "cali1", "protocol": "2", "metric": 256},
            {"dst": "default", "metric": 1024, "nexthops": [
                {"gateway": "fe80::1", "dev": "eth0", "weight": 1, "flags": []},
                {"gateway": "fe80::2", "dev": "br-uplink", "weight": 1, "flags": []},
            ]},
            {"dst": "fd00:8::/64", "dev": "br-uplink", "metric": 256},
            {"type": "5", "dst": "ff00::/8", "dev": "cali0", "table": "255", "protocol": "2", "metric": 256},
        ],
    )  # fmt: skip
    assert found(node, 6) == ["fd00:10:244::5 cali0", "fd00:244::2 cni0"]


NETWORK = {"dst": "10.244.1.0/24", "dev": "cni0"}


@pytest.mark.parametrize(
    ("routes", "neighbours", "expected"),
    [
        ([NETWORK], [{"dst": "10.244.1.9", "dev": "cni0", "state": ["STALE"]}], "10.244.1.9"),
        ([NETWORK], [{"dst": "10.244.1.9", "dev": "cni0", "state": ["FAILED"]}], "10.244.1.2"),
        ([NETWORK], [{"dst": "10.244.1.9", "dev": "docker0", "state": ["REACHABLE"]}], "10.244.1.2"),
        ([NETWORK], [{"dst": "10.1.1.9", "dev": "cni0", "state": ["REACHABLE"]}], "10.244.1.2"),
        ([NETWORK, {"dst": "10.244.1.2", "dev": "eth0"}], [], "10.244.1.3"),
        ([{"dst": "10.244.1.0/31", "dev": "cni0"}], [], "10.244.1.0"),
        ([{"dst": "10.244.1.1", "dev": "cni0"}], [], ""),
        ([{"dst": "10.244.1.4", "dev": "cni0", "table": "77"}], [], "10.244.1.4"),
        ([{"dst": "10.244.1.4", "dev": "cni0", "table": "78"}], [], ""),  # as of a VRF, which no rule looks up
        ([{"dst": "10.244.1.4", "via": {"family": "inet6", "host": "fe80::1"}, "dev": "cni0"}], [], "10.244.1.4"),
    ],
)
def test_which_address_of_a_network(
    node: RecordedNode,
    routes: Sequence[Mapping[str, Any]],
    neighbours: Sequence[Mapping[str, Any]],
    expected: str,
) -> None:
    node.kernel.addresses["cni0"] = ["10.244.1.1/24"]
    node.answers["ip -4 -json -N rule show"] = ok('[{"priority":50,"src":"10.0.0.0","srclen":8,"table":"77"}]')
    show(node, 4, routes, neighbours)
    assert found(node, 4) == ([f"{expected} cni0"] if expected else [])


def test_an_interface_that_is_down_has_nobody_behind_it(node: RecordedNode) -> None:
    node.kernel.links["cali0"]["flags"] = []
    show(node, 4, [{"dst": "10.244.0.5", "dev": "cali0"}])
    assert found(node, 4) == []


def test_each_command_runs_once(node: RecordedNode) -> None:
    show(node, 4, [{"dst": "10.244.0.5", "dev": "cali0"}])
    view = node.view()
    for _ in range(2):
        assert [type(each) for each in peers(view, 4)] == [Peer]
    assert len(node.calls) == len(set(node.calls))


def test_output_that_cannot_be_understood_is_no_knowledge(node: RecordedNode) -> None:
    node.answers["ip -4 -json -N route show table all"] = ok("default via 192.168.7.1 dev eth0\n")
    with pytest.raises(OutputUnreadable, match="cannot be parsed"):
        peers(node.view(), 4)
