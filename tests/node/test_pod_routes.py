"""The way from a pod and back, as the kernel of a real node says."""

from pytest_mock import MockerFixture

from sidecar.doctor.pod_routes import from_pods
from sidecar.doctor.view import View
from sidecar.node.backends import Backend
from sidecar.state.desired import desired
from support.namespace import IPV4, Namespace, NamespaceCommands

NODE = """
ip link add up0 type veth peer name up1
ip link add cali0 type veth peer name pod0
for link in up0 up1 cali0 pod0; do ip link set $link up; done
ip address add 192.168.7.2/24 dev up0
ip route add default via 192.168.7.1
ip route add 10.244.0.5 dev cali0
ip address add 10.96.0.2/32 dev lo scope host
ip route add default via 192.168.7.1 table 64
"""


def found(namespace: Namespace) -> list[tuple[str, tuple[str, ...]]]:
    state = desired([IPV4], interface="lo", port=443)
    run = NamespaceCommands(namespace).run
    backend = Backend(run, 4, "nft", 5.0, creates=False)
    return [(each.found, each.commands) for each in from_pods(View(state, 443, run, {4: backend}), state.addresses)]


def test_a_detour_of_marked_packets(namespace: Namespace, mocker: MockerFixture) -> None:
    mocker.patch(
        "sidecar.node.nft_tables.names", return_value=frozenset(("mangle",))
    )  # asked in this process's network
    namespace.run("sh", "-e", "-c", NODE + "ip rule add pref 50 fwmark 0x5/0xf lookup 64")
    healthy = [("pods behind cali0 are routed to 10.96.0.2 and back", ())]
    assert found(namespace) == healthy
    namespace.run(
        *["iptables-nft", "-t", "mangle", "-A", "OUTPUT", "-s", "10.96.0.2", "-j", "MARK", "--set-mark", "0x15"]
    )
    ((text, commands),) = found(namespace)
    assert text == (
        "replies from 10.96.0.2 to 10.244.0.5 behind cali0 leave by up0; "
        "by the policy rule `50: from all fwmark 0x5/0xf lookup 64`"
    )
    namespace.run("sh", "-e", "-c", "\n".join(commands))
    assert found(namespace) == healthy
