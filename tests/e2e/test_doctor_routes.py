"""doctor on nodes whose routes cut off the pods: what it says mends that, and takes nothing else away.

Two pods: one behind a link of its own, as Calico's are, with a host route; one behind a bridge with a network.
"""

import contextlib
import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from support import program, proxy
from support.in_sync import put_in_place
from support.namespace import Namespace
from support.waiting import HANG, until

IPV4, IPV6 = "10.96.0.2", "fd00:10:96::2"
FLAGS: Final = (f"--ip-address={IPV4},{IPV6}",)

#: The node; $cali and $cni are the processes in whose namespaces the pods are.
NODE: Final = """
ip link add up0 type veth peer name up1
ip link set up1 up
ip link set up0 up
ip address add 192.168.7.2/24 dev up0
ip route add default via 192.168.7.1
ip -6 address add fd00:7::2/64 dev up0 nodad
ip -6 route add default via fd00:7::1
echo 1 > /proc/sys/net/ipv4/ip_forward
ip link add cali0 type veth peer name eth0 netns $cali
ip link set cali0 up
ip -6 address add fe80::1/64 dev cali0 nodad
ip route add 10.244.0.5 dev cali0 scope link
ip -6 route add fd00:10:244::5 dev cali0
echo 1 > /proc/sys/net/ipv4/conf/cali0/proxy_arp
ip link add cni0 type bridge
ip address add 10.244.1.1/24 dev cni0
ip link set cni0 up
ip link add veth1 type veth peer name eth0 netns $cni
ip link set veth1 master cni0 up
ip route add blackhole default table 60
ip route add unreachable default table 61
ip route add default via 192.168.7.1 table 64
ip -6 route add blackhole default table 60
ip -6 route add default via fd00:7::1 table 64
"""
CALI: Final = """
ip link set eth0 up
ip address add 10.244.0.5/32 dev eth0
ip route add 169.254.1.1 dev eth0
ip route add default via 169.254.1.1
ip -6 address add fd00:10:244::5/128 dev eth0 nodad
ip -6 route add default via fe80::1 dev eth0
"""
CNI: Final = """
ip link set eth0 up
ip address add 10.244.1.7/24 dev eth0
ip route add default via 10.244.1.1
"""

BEHIND: Final = "ip rule add pref 100 lookup local; ip rule delete pref 0"
BEHIND6: Final = "ip -6 rule add pref 100 lookup local; ip -6 rule delete pref 0"


@dataclass
class Node:
    namespace: Namespace
    pods: dict[str, Namespace]

    def sh(self, script: str) -> None:
        self.namespace.run("sh", "-e", "-c", script)

    def reached(self, patience: float = HANG) -> set[str]:
        """Return which ways to the proxy work: `pod address`."""
        ways = {f"{name} {ip}": (pod, ip) for name, pod in self.pods.items() for ip in (IPV4, IPV6)}
        ways.pop(f"cni {IPV6}")
        asked = {
            way: pod.fork(partial(_connect, ip, patience if way in WAYS else 1.0)) for way, (pod, ip) in ways.items()
        }
        return {way for way, process in asked.items() if process.communicate()[0] == "reached\n"}

    def leads_out(self) -> list[str]:
        """Return by which interface and gateway this node reaches the rest of the world."""
        out = [self.namespace.run("ip", "route", "get", ip, check=False) for ip in ("192.0.2.1", "2001:db8::1")]
        return [" ".join(re.findall("via (\\S+) dev (\\S+)", text)[0]) if "via" in text else text for text in out]

    def doctor(self, *flags: str) -> dict[str, Any]:
        stdout, stderr = program.fork(self.namespace, "doctor", *FLAGS, *flags, "--output=json").communicate(
            timeout=HANG
        )
        assert stderr == ""
        answer: dict[str, Any] = json.loads(stdout)
        return answer


WAYS: Final = {f"cali {IPV4}", f"cali {IPV6}", f"cni {IPV4}"}


def _connect(ip: str, patience: float, source: str = "") -> None:
    try:
        with socket.create_connection((ip, 443), timeout=patience, source_address=(source, 0) if source else None):
            print("reached")
    except OSError as error:
        print(error)


@pytest.fixture
def node(namespace: Namespace, certificate: Path) -> Iterator[Node]:
    with contextlib.ExitStack() as stack:
        pods = {name: stack.enter_context(Namespace(beside=namespace)) for name in ("cali", "cni")}
        names = "".join(f"{name}={pod.pid}\n" for name, pod in pods.items())
        namespace.run("sh", "-e", "-c", names + NODE)
        pods["cali"].run("sh", "-e", "-c", CALI)
        pods["cni"].run("sh", "-e", "-c", CNI)
        put_in_place(namespace, *FLAGS)
        for ip in (IPV4, IPV6):
            process = namespace.fork(partial(proxy.main, ip, "443", "tls", str(certificate)))
            stack.callback(process.communicate)
            stack.callback(process.kill)
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
        made = Node(namespace, pods)
        until(lambda: made.reached(1.0) == WAYS)
        yield made


@dataclass(frozen=True)
class Broken:
    name: str
    how: str
    says: str
    lost: tuple[str, ...] = (f"cali {IPV4}", f"cni {IPV4}")
    flags: tuple[str, ...] = ()


CALI4: Final = (f"cali {IPV4}",)
CALI6: Final = (f"cali {IPV6}",)
NODES_THAT_ARE_BROKEN: Final = (
    Broken("local behind main", "ip rule add pref 32770 lookup local; ip rule delete pref 0",
           "^10.96.0.2 does not stay on this node: .* dev up0; the table local comes only at 32770$"),
    Broken("iif to another table", f"{BEHIND}; ip rule add pref 50 iif cali0 lookup 64",
           "^packets to 10.96.0.2 from 10.244.0.5 behind cali0 do not .* `50: from all iif cali0 lookup 64`$", CALI4),
    Broken("iif unreachable", f"{BEHIND}; ip rule add pref 50 iif cali0 unreachable",
           "behind cali0 are lost: .*; by the policy rule `50: from all iif cali0 unreachable`$", CALI4),
    Broken("iif in the first place", f"{BEHIND}; ip rule add pref 0 iif cali0 blackhole",
           "; by the policy rule `0: from all iif cali0 blackhole`$", CALI4),
    Broken("iif and Cilium's rule", f"{BEHIND}; ip rule add pref 9 fwmark 0x200/0xf00 lookup 2004; "
           "ip rule add pref 50 from 10.244.0.0/16 prohibit",
           "; by the policy rule `50: from 10.244.0.0/16 prohibit`$"),
    Broken("IPv6 iif prohibit", f"{BEHIND6}; ip -6 rule add pref 50 iif cali0 prohibit",
           "^packets to fd00:10:96::2 .* are lost: Permission denied; by .* `50: from all iif cali0 prohibit`$", CALI6),
    Broken("from the address to a blackhole table", "ip rule add pref 50 from 10.96.0.2 lookup 60",
           r"^replies from 10.96.0.2 to 10.244.0.5 behind cali0 \(and behind 1 more interface\) are lost: .*; "
           "by the policy rule `50: from 10.96.0.2 lookup 60`, and the route `blackhole default table 60`$"),
    Broken("from the address, in the first place", "ip rule add pref 0 from 10.96.0.2 lookup 61",
           "by the policy rule `0: from 10.96.0.2 lookup 61`, and the route `unreachable default table 61`$"),
    Broken("from the address, prohibited", "ip rule add pref 1 from 10.96.0.2 prohibit",
           "are lost: Permission denied; by the policy rule `1: from 10.96.0.2 prohibit`$"),
    Broken("to the pods by the uplink", "ip rule add pref 50 to 10.244.0.0/16 lookup 64",
           "^replies .* leave by up0; by .* `50: from all to 10.244.0.0/16 lookup 64`$"),
    Broken("by port", "ip rule add pref 50 ipproto tcp sport 443 unreachable",
           "by the policy rule `50: from all ipproto tcp sport 443 unreachable`$"),
    Broken("IPv6 from the address", "ip -6 rule add pref 50 from fd00:10:96::2 lookup 60",
           "^replies from fd00:10:96::2 to fd00:10:244::5 behind cali0 are lost: .*`blackhole default table 60`$",
           CALI6),
    Broken("from the address, and rp_filter", "ip rule add pref 50 from 10.96.0.2 lookup 64; "
           "echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter", "^replies from 10.96.0.2 .* leave by up0"),
    Broken("another pod's link first", "ip route delete 10.244.0.5; ip route add 10.244.0.5 dev cali0 metric 200; "
           "ip route add 10.244.0.5 dev cni0 metric 100; echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter",
           "^replies from 10.96.0.2 to 10.244.0.5 behind cali0 leave by cni0; by the route `10.244.0.5/32 dev cni0`$",
           CALI4),
    Broken("both pods' routes gone", "ip route delete 10.244.0.5; ip route delete 10.244.1.0/24; "
           "ip route add 10.244.1.0/24 dev cni0 metric 9; ip route add 10.244.1.0/24 via 192.168.7.1",
           "^replies .* to 10.244.1.7 behind cni0 leave by up0; by the route `10.244.1.0/24 via 192.168.7.1 dev up0`$"),
    Broken("the pod's route unreachable", "ip route replace unreachable 10.244.0.5",
           "^replies from 10.96.0.2 to 10.244.0.5 behind cali0 are lost: .*; by the route `unreachable 10.244.0.5/32`$",
           CALI4),
    Broken("the pod's route gone", "ip route delete 10.244.0.5",
           "^replies from 10.96.0.2 to 10.244.0.5 behind cali0 leave by up0; by the route `default via",
           CALI4),
    Broken("IPv6 pod's route unreachable",
           "ip -6 route delete fd00:10:244::5; ip -6 route add unreachable fd00:10:244::5",
           "^replies from fd00:10:96::2 to fd00:10:244::5 behind cali0 are lost: .*`unreachable fd00:10:244::5/128`$",
           CALI6),
    Broken("the bridge's network unreachable", "ip route replace unreachable 10.244.1.0/24",
           "^replies .* to 10.244.1.7 behind cni0 are lost: .*; by the route `unreachable 10.244.1.0/24`$",
           (f"cni {IPV4}",)),
    Broken("the bridge's network gone", "ip route delete 10.244.1.0/24",
           "^replies .* to 10.244.1.7 behind cni0 leave by up0; by the route `default via 192.168.7.1 dev up0`$",
           (f"cni {IPV4}",)),
    Broken("unreachable within the bridge's network", "ip route add unreachable 10.244.1.7",
           "^replies .* to 10.244.1.7 behind cni0 are lost: .*; by the route `unreachable 10.244.1.7/32`$",
           (f"cni {IPV4}",)),
)  # fmt: skip


@pytest.mark.parametrize("broken", NODES_THAT_ARE_BROKEN, ids=lambda broken: broken.name)
def test_what_cuts_off_the_pods_is_named_first_and_the_remedy_mends_it(node: Node, broken: Broken) -> None:
    leads_out = node.leads_out()
    node.sh(broken.how)
    assert node.reached(1.0) == WAYS.difference(broken.lost)
    report = node.doctor(*broken.flags)
    assert report["exit"] == 1
    assert re.search(broken.says, report["summary"].partition("; first: route: ")[2]), report["summary"]
    found = [each for each in report["findings"] if each["topic"] == "route" and each["level"] == "fault"]
    assert all(each["commands"] for each in found)
    for each in found:
        node.sh("\n".join(each["commands"]))
    assert node.reached() == WAYS
    assert node.leads_out() == leads_out
    mended = node.doctor(*broken.flags)
    assert [each["found"] for each in mended["findings"] if each["level"] in ("fault", "warning")] == []
    assert mended["exit"] == 0


def test_rp_filter_drops_what_would_come_back_another_way(node: Node) -> None:
    """The pod behind cali0 has a second link, and sends from that one's address by the first."""
    pod = node.pods["cali"]
    node.sh(f"ip link add veth2 type veth peer name eth1 netns {pod.pid}; ip link set veth2 master cni0 up")
    pod.run("sh", "-e", "-c", "ip link set eth1 up; ip address add 10.244.1.9/32 dev eth1")

    def reaches(patience: float = HANG) -> bool:
        pod.run("ip", "neighbour", "flush", "dev", "eth0")
        return pod.fork(partial(_connect, IPV4, patience, "10.244.1.9")).communicate()[0] == "reached\n"

    assert reaches()
    assert node.doctor()["exit"] == 0
    for flags, all_, own, address, commands in (
        ((), 1, 0, "", ["sysctl -w net.ipv4.conf.all.rp_filter=0"]),
        (
            ("--from=10.244.1.9",),
            1,
            2,
            "",
            [f"sysctl -w net.ipv4.conf.{name}.rp_filter=0" for name in ("all", "cali0")],
        ),
        ((), 1, 1, "ip address add 169.254.9.1/32 dev cali0", ["sysctl -w net.ipv4.conf.cali0.rp_filter=2"]),
    ):
        node.sh(f"cd /proc/sys/net/ipv4/conf; echo {all_} > all/rp_filter; echo {own} > cali0/rp_filter; {address}")
        assert not reaches(1.0)
        (found,) = [each for each in node.doctor(*flags)["findings"] if each["level"] == "fault"]
        assert found["found"] == (
            "packets to 10.96.0.2 from 10.244.1.9 behind cali0 are lost: Invalid argument; "
            f"by net.ipv4.conf.{'cali0' if own == 2 else 'all'}.rp_filter={max(all_, own)}, "
            "as the route to 10.244.1.9 leads elsewhere"
        )
        assert found["commands"] == commands
        node.sh("\n".join(commands))
        assert reaches()
        assert node.doctor()["exit"] == 0


def routes(report: dict[str, Any]) -> list[str]:
    return [f"{each['level']}: {each['found']}" for each in report["findings"] if each["topic"] == "route"]


def test_from_named_pods(node: Node) -> None:
    local = [f"ok: {ip} is local" for ip in (IPV4, IPV6)]
    assert routes(node.doctor("--from=10.244.1.7,fd00:10:244::5")) == [
        *local,
        "ok: pods behind cni0 are routed to 10.96.0.2 and back",
        "ok: pods behind cali0 are routed to fd00:10:96::2 and back",
    ]
    assert routes(node.doctor("--from=192.168.7.2", "--from=192.168.7.9")) == [
        *local,
        "note: --from=192.168.7.2 is an address of this node, not of a pod",
        "note: --from=192.168.7.9 is not a pod of this node: up0 leads to it",
        "ok: pods behind up0 are routed to 10.96.0.2 and back",
    ]
    node.sh("ip route add unreachable 10.244.9.9; ip rule add pref 50 from all to 10.244.0.5 prohibit")
    report = node.doctor("--from=10.244.9.9,10.244.0.5,10.244.1.7")
    assert report["exit"] == 1
    assert routes(report)[2:] == [
        "fault: --from=10.244.9.9: no route leads to it; by the route `unreachable 10.244.9.9/32`",
        (
            "fault: replies from 10.96.0.2 to 10.244.0.5 behind cali0 are lost: Permission denied; "
            "by the policy rule `50: from all to 10.244.0.5 prohibit`"
        ),
    ]


#: What network plugins, VPNs and VRFs do to the routes of a node that is as it should be.
HEALTHY: Final = {
    "Calico": "ip route add blackhole 10.244.0.0/26 proto 80; echo 1 > /proc/sys/net/ipv4/conf/cali0/rp_filter; "
    "ip link add tunl0 type veth peer name tunl1",
    "AWS": "ip rule add pref 512 to 10.244.0.5 lookup main; ip rule add pref 1536 from 10.244.0.5 lookup 2; "
    "ip rule add pref 1024 fwmark 0x80/0x80 lookup main; ip route add default via 192.168.7.1 table 2; "
    "echo 2 > /proc/sys/net/ipv4/conf/all/rp_filter",
    "Cilium": f"{BEHIND}; {BEHIND6}; ip rule add pref 9 fwmark 0x200/0xf00 lookup 2004; "
    "ip route add local default dev lo table 2004; ip rule add pref 10 fwmark 0xa00/0xf00 lookup 2005; "
    "ip link add cilium_net type veth peer name cilium_host; ip link set cilium_net up; ip link set cilium_host up; "
    "ip address add 10.0.1.5/32 dev cilium_host; ip route add 10.0.1.0/24 via 10.0.1.5 dev cilium_host src 10.0.1.5; "
    "ip route add 10.0.2.0/24 via 10.0.1.5 dev cilium_host src 10.0.1.5 mtu 1450; ip route delete 10.244.0.5; "
    "ip route add 10.244.0.0/24 via 10.0.1.5 dev cilium_host; ip route add 10.244.0.5 dev cali0 table 77",
    "Tailscale": "ip rule add pref 5210 fwmark 0x80000/0xff0000 lookup main; ip rule add pref 5230 fwmark "
    "0x80000/0xff0000 lookup default; ip rule add pref 5250 fwmark 0x80000/0xff0000 unreachable; "
    "ip rule add pref 5270 lookup 52; ip route add 100.100.100.100 dev up0 table 52",
    "WireGuard": "ip rule add pref 32765 not fwmark 0xca6c lookup 51820; "
    "ip rule add pref 32764 lookup main suppress_prefixlength 0; ip route add default dev up0 table 51820",
    "Docker": "ip link add docker0 type bridge; ip address add 172.17.0.1/16 dev docker0; ip link set docker0 up; "
    "ip link add br-7 type bridge; ip address add 172.18.0.1/16 dev br-7; ip link set br-7 up; "
    "ip link add vethd type veth peer name vethc; ip link set vethd master br-7 up; ip link set vethc up",
}


@pytest.mark.parametrize("plugin", HEALTHY)
def test_healthy_nodes_raise_no_alarm(node: Node, plugin: str) -> None:
    node.sh(HEALTHY[plugin])
    report = node.doctor()
    assert [each for each in routes(report) if not each.startswith("ok: ")] == []
    assert report["exit"] == 0
