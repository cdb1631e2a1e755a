"""A real proxy behind the address: clients on the node and in a pod, API servers on another machine, a firewall."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support import cluster as clusters
from support import faults
from support.cluster import APISERVERS, CONTROL, PORT, Cluster, Ip
from support.namespace import IPV4, IPV6, Namespace
from support.sweep import sweep
from support.waiting import HANG

BLUE, GREEN = APISERVERS
BY_BLUE = f"{BLUE} answered, with the certificate of {BLUE}"
BY_GREEN = f"{GREEN} answered, with the certificate of {GREEN}"

pytestmark = pytest.mark.skipif(bool(clusters.missing()), reason=clusters.missing())

needs_envoy = pytest.mark.skipif(not clusters.envoy(), reason="Envoy is not installed: scripts/setup-tools fetches it")


@pytest.fixture
def cluster(_namespaces: None, tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, IPV4, IPV6) as made:
        yield made


@pytest.fixture(params=[IPV4, IPV6], ids=["IPv4", "IPv6"])
def address(request: pytest.FixtureRequest) -> Ip:
    found: Ip = request.param
    return found


@pytest.mark.parametrize("proxy", ["haproxy", pytest.param("envoy", marks=needs_envoy)])
def test_clients_reach_the_api_server_they_name_and_no_other(cluster: Cluster, proxy: str) -> None:
    cluster.start_sidecar("--setup-iptables")
    if proxy == "haproxy":
        cluster.start_haproxy()
    else:
        cluster.start_envoy()
    for where in (cluster.node, cluster.pod):
        for address in (IPV4, IPV6):
            assert cluster.ask(where, address, BLUE) == BY_BLUE
            assert cluster.ask(where, address, GREEN) == BY_GREEN
            refused = cluster.ask(where, address, "other.example")
            assert refused.startswith(("SSLZeroReturnError", "SSLEOFError", "ConnectionResetError")), refused


def test_a_node_that_tracks_connections_tracks_none_of_these(cluster: Cluster, backend: str, address: Ip) -> None:
    cluster.firewall(backend, "ACCEPT")
    without_rules = cluster.start_sidecar()
    cluster.start_haproxy()
    clients = (cluster.node, cluster.pod)
    assert [cluster.ask(client, address, BLUE) for client in clients] == [BY_BLUE, BY_BLUE]
    tracked = cluster.tracked(address)
    assert any(f"src={address}" in line for line in tracked), "the node's own"
    assert any("src=10.244.0.2" in line or "src=fd00:244::2" in line for line in tracked), "the pod's"
    without_rules.stop()

    cluster.start_sidecar("--setup-iptables", f"--iptables-backend={backend}")
    cluster.node.run("conntrack", "-F")
    assert [cluster.ask(client, address, BLUE) for client in clients] == [BY_BLUE, BY_BLUE]
    assert cluster.tracked(address) == []
    assert "dport=6443" in cluster.node.run("conntrack", "-L"), "what the proxy does is tracked all the same"


def test_a_firewall_that_drops_lets_pods_in_by_our_rules_only(cluster: Cluster, backend: str, address: Ip) -> None:
    cluster.firewall(backend, "DROP")
    without_rules = cluster.start_sidecar()
    cluster.start_haproxy()
    assert cluster.ask(cluster.pod, address, BLUE) == "TimeoutError: timed out"
    without_rules.stop()

    cluster.start_sidecar("--setup-iptables", f"--iptables-backend={backend}")
    assert cluster.ask(cluster.pod, address, BLUE) == BY_BLUE
    assert cluster.ask(cluster.node, address, BLUE) == BY_BLUE


def test_a_service_of_the_same_address_does_not_take_the_traffic_away(
    cluster: Cluster, backend: str, address: Ip
) -> None:
    """kube-proxy sends what goes to the address of a Service elsewhere; here straight to the other API server."""
    to = f"[{CONTROL[6]}]" if address.version == 6 else CONTROL[4]
    service = f"-d {address} -p tcp --dport {PORT} -j DNAT --to-destination {to}:{APISERVERS[GREEN]}"
    for chain in ("PREROUTING", "OUTPUT"):
        cluster.node.iptables(backend, address.version, "-t", "nat", "-A", chain, *service.split())
    hide = "-t nat -A POSTROUTING -o uplink -j MASQUERADE"  # the node's own clients have the address as their own
    cluster.node.iptables(backend, address.version, *hide.split())
    clients: tuple[Namespace, ...] = (cluster.node, cluster.pod)
    cluster.start_sidecar()
    cluster.start_haproxy()
    assert [cluster.ask(client, address, BLUE) for client in clients] == [BY_GREEN, BY_GREEN]

    cluster.start_sidecar("--setup-iptables", f"--iptables-backend={backend}")
    assert [cluster.ask(client, address, BLUE) for client in clients] == [BY_BLUE, BY_BLUE]


# Under load: no request fails for good where nothing was away, and all is right in the end. What a fault costs in late
# requests and in milliseconds, scripts/faults measures.

#: While these happen the address, or the way to it, is really gone: new connections fail.
MAY_FAIL = {
    "the address is deleted, and the node has no default route",
    "the firewall is reloaded, without our rules",
    "the only sidecar stops, with --cleanup, and is started again",
}


@pytest.mark.usefixtures("_namespaces")
@pytest.mark.parametrize(("fault", "backend"), sweep(faults.CASES, faults.CASES[1::2]))
def test_under_load_a_fault_costs_no_more_than_it_must(fault: str, backend: str) -> None:
    outcome = faults.measure(fault, backend, rate=20, patience=HANG)
    assert outcome.requests > outcome.failed, outcome
    assert outcome.broken == 0, outcome
    if fault not in MAY_FAIL:
        assert outcome.failed == 0, outcome
