"""nftables' own tables: what the judge says of a rule is what the kernel does with a packet."""

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_address

import pytest

from sidecar.firewall import nft
from sidecar.firewall.nft_conditions import Elements
from sidecar.firewall.packet import CLIENT_PORT, NEW, UNTRACKED, Hook, Packet, from_peer
from sidecar.firewall.verdicts import Effect, Matches
from sidecar.node.nft import NftProgram
from support.namespace import Namespace, NamespaceCommands

pytestmark = pytest.mark.usefixtures("privileged")

PORT = 443
ADDRESSES = {4: "10.96.0.2", 6: "fd00:10:96::2"}
CLIENTS = {4: "10.244.0.5", 6: "fd00:10:244::5"}
NODE = {4: "10.244.0.1", 6: "fd00:10:244::1"}
MANY = 5_000

SETS = f"""
set many {{ type ipv4_addr; elements = {{ {", ".join(f"11.0.{i // 250}.{i % 250}" for i in range(MANY))} }}; }}
set many_networks {{ type ipv4_addr; flags interval; auto-merge;
    elements = {{ {", ".join(f"11.{i // 250}.{i % 250}.0/25" for i in range(MANY))}, 10.244.0.0/24 }}; }}
set others {{ type ipv4_addr; flags interval; elements = {{ 10.244.1.0/24, 10.243.0.0-10.244.0.4 }}; }}
set six {{ type ipv6_addr; flags interval; elements = {{ fd00:10:244::/64 }}; }}
set services {{ type ipv4_addr . inet_proto . inet_service; elements = {{ 10.96.0.2 . tcp . 443 }}; }}
set ranges {{ type ipv4_addr . inet_service; flags interval; elements = {{ 10.96.0.0/16 . 400-500 }}; }}
set pods {{ type ifname; flags interval; elements = {{ "pod*", "eth0" }}; }}
set empty {{ type ipv4_addr; }}
set timed {{ type ipv4_addr; flags timeout; elements = {{ 10.244.0.5 timeout 1h comment "a : b" }}; }}
set marks {{ type mark; elements = {{ 0, 5 }}; }}
set both {{ type nf_proto . mark . pkt_type; elements = {{ ipv4 . 0 . host }}; }}
"""

#: Conditions of which the kernel and the judge know the same.
CONDITIONS = (
    "ip saddr 10.244.0.0/24",
    "ip saddr 10.244.0.0/30",
    "ip saddr != 10.244.0.5",
    "ip saddr & 255.0.0.255 == 10.0.0.5",
    "ip saddr 10.244.0.4-10.244.0.6",
    "ip saddr { 10.244.0.0/31, 10.244.0.5 }",
    "ip saddr != { 10.244.0.0/31, 10.244.0.4 }",
    "ip daddr . tcp dport { 10.96.0.2 . 22, 10.96.0.0/16 . 440-450 }",
    "ip daddr . tcp dport { 10.96.0.2 . 22 }",
    "ip6 saddr fd00:10:244::/64",
    "ip6 daddr fd00:10:96::2",
    "ip6 saddr != fe80::/10",
    "ip protocol tcp",
    "ip protocol != tcp",
    "ip6 nexthdr tcp",
    "tcp dport 443",
    "tcp dport != 443",
    "tcp dport > 442",
    "tcp dport < 443",
    "tcp dport >= 443",
    "tcp dport <= 442",
    "tcp dport 400-500",
    "tcp dport { 22, 80, 443 }",
    "tcp dport { 22, 8000-9000 }",
    "tcp dport != { 22, 80 }",
    f"tcp sport {CLIENT_PORT}",
    "th dport 443",
    "meta l4proto { tcp, udp } th dport { 53, 443 }",
    "udp dport 443",
    "icmp type echo-request",
    "icmpv6 type nd-neighbor-solicit",
    "sctp dport 443",
    "tcp flags syn",
    "tcp flags & (fin|syn|rst|ack) == syn",
    "tcp flags & (fin|syn) == fin|syn",
    "tcp flags & syn != syn",
    "tcp flags { syn, syn | ack }",
    "tcp flags ! ack",
    "meta l4proto tcp",
    "meta l4proto { udp, icmp }",
    "meta nfproto ipv4",
    "meta nfproto ipv6",
    "meta protocol ip",
    "meta protocol { ip, ip6 }",
    "meta pkttype host",
    "meta pkttype { broadcast, multicast }",
    "meta mark 0",
    "meta mark 0x4000",
    "meta mark & 0x4000 == 0",
    "meta mark & 0x4000 != 0",
    "meta mark | 0x1 == 0x1",
    "iifname pod0",
    'iifname "pod*"',
    'iifname { "lo", "po*" }',
    'iifname != { "lo", "eth*" }',
    "iifname != pod0",
    "iif pod0",
    "iif != lo",
    "iif lo",
    "oifname lo",
    "oif 0",
    "ct state new",
    "ct state new,untracked",
    "ct state established,related",
    "ct state { new, untracked }",
    "ct state != new",
    "ct state ! invalid",
    "ct state vmap { established : drop, new : jump HIT }",
    "ct status dnat",
    "ct direction original",
    "ct direction reply",
    "fib daddr type local",
    "fib daddr type != local",
    "fib saddr type local",
    "fib saddr type { unicast, broadcast }",
    "fib saddr . iif oif exists",
    "fib saddr . iif oif missing",
    "fib saddr oif exists",
    "socket transparent 1",
    "ip saddr @many",
    "ip saddr != @many",
    "ip saddr @many_networks",
    "ip saddr @others",
    "ip6 saddr @six",
    "ip daddr . meta l4proto . tcp dport @services",
    "ip daddr . tcp dport @ranges",
    "ip saddr . tcp dport @ranges",
    "iifname @pods",
    "ip saddr @empty",
    "ip saddr @timed",
    "meta mark @marks",
    "meta nfproto . meta mark . meta pkttype @both",
    "ip daddr . meta l4proto . th dport vmap { 10.96.0.2 . tcp . 443 : jump HIT }",
    "ip daddr . meta l4proto . th dport vmap { 10.96.0.2 . udp . 443 : jump HIT }",
    "ip saddr vmap { 1.2.3.0/24 : accept, * : jump HIT }",
    "ip saddr vmap { 10.244.0.0/24 : continue, * : jump HIT }",
    'iifname vmap { "lo" : accept, "pod*" : jump HIT }',
    'iifname vmap { "lo" : accept, "pod1" : jump HIT }',
    "meta mark set 0x5 meta mark 0x5",
    "meta mark set meta mark | 0x10 meta mark & 0x10 == 0x10",
    "meta mark set meta mark & 0xffffff00 ^ 0x3 meta mark 0x3",
    "meta mark set meta mark & 0x0",
    "ct mark set 0x1",
    "notrack ct state untracked",
    "counter log prefix x",
    "add @seen { ip saddr }",
    "numgen random mod 1 vmap { 0 : jump HIT }",
)

#: What cannot be known from a packet.
UNKNOWABLE = (
    "limit rate 10/second",
    "limit rate over 10/second",
    "quota over 10 mbytes",
    "meta skuid 0",
    "meta iifkind veth",
    "meta cpu 0",
    "meta hour 00:00-12:00",
    "ip length > 40",
    "ip ttl 64",
    "tcp option maxseg size 1-100",
    "numgen random mod 2 0",
    "jhash ip saddr mod 2 0",
    "ct mark 0",
    "fib daddr . iif type local",
    "@th,0,8 1",
    "update @seen { ip saddr limit rate 10/second }",
)

LISTENER = """
import socket, sys
listener = socket.create_server((sys.argv[1], 443), family=socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
print("ready", flush=True)
while True:
    listener.accept()[0].close()
"""

CLIENT = """
import socket, sys
client = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
client.bind((sys.argv[1], 32768))
client.settimeout(float(sys.argv[3]))
try:
    client.connect((sys.argv[2], 443))
    print("connected")
except OSError:
    print("failed")
"""


def ruleset(conditions: tuple[str, ...], *, untracked: bool) -> str:
    """Return a table whose rules each jump to a chain of their own, as the SYN of a connection passes them."""
    hits = "\n".join(f"chain hit{number} {{ counter; }}" for number in range(len(conditions)))
    rules = "\n".join(
        each.replace("HIT", f"hit{number}") if "HIT" in each else f"{each} jump hit{number}"
        for number, each in enumerate(conditions)
    )
    return f"""
table inet probes {{
    {SETS}
    set seen {{ type ipv4_addr; size 100; flags dynamic; }}
    {hits}
    chain rules {{
        {rules}
    }}
    chain before {{ type filter hook prerouting priority raw; {"notrack;" if untracked else ""} }}
    chain start {{
        type filter hook input priority 0;
        tcp dport 443 tcp flags & (syn|ack) == syn jump rules
        ct state new
    }}
}}
"""


@pytest.fixture(scope="module")
def node() -> Iterator[tuple[Namespace, Namespace]]:
    """A node with both addresses and a pod behind pod0, and the pod."""
    with Namespace() as here, Namespace(here) as pod:
        here.run("ip", "link", "add", "pod0", "type", "veth", "peer", "name", "eth0", "netns", str(pod.pid))
        for family, length in ((4, 24), (6, 64)):
            here.run("ip", "address", "add", ADDRESSES[family], "dev", "lo")
            nodad = ["nodad"] if family == 6 else []
            here.run("ip", "address", "add", f"{NODE[family]}/{length}", "dev", "pod0", *nodad)
            pod.run("ip", "address", "add", f"{CLIENTS[family]}/{length}", "dev", "eth0", *nodad)
        here.run("ip", "link", "set", "pod0", "up")
        pod.run("ip", "link", "set", "eth0", "up")
        for family in (4, 6):
            pod.run("ip", "route", "add", "default", "via", NODE[family])
        listeners = [here.start(sys.executable, "-c", LISTENER, ADDRESSES[family]) for family in (4, 6)]
        try:
            for each in listeners:
                assert each.stdout
                assert each.stdout.readline() == "ready\n"
            yield here, pod
        finally:
            for each in listeners:
                each.kill()
                each.communicate()


@pytest.fixture
def here(node: tuple[Namespace, Namespace]) -> Iterator[Namespace]:
    yield node[0]
    node[0].run("nft", "flush", "ruleset")


@pytest.fixture
def pod(node: tuple[Namespace, Namespace]) -> Namespace:
    return node[1]


def connects(pod: Namespace, family: int, patience: float = 10) -> bool:
    return pod.run(sys.executable, "-c", CLIENT, CLIENTS[family], ADDRESSES[family], str(patience)) == "connected\n"


def program(namespace: Namespace) -> NftProgram:
    return NftProgram(NamespaceCommands(namespace).run, known=lambda: None)


def tables(namespace: Namespace) -> list[nft.NftTable]:
    found, failures = program(namespace).tables(time.monotonic() + 60)
    assert not failures
    return found


def judged(here: Namespace, packet: Packet) -> Mapping[str, Matches]:
    """Return for each chain whether the packet comes there from `rules`."""
    (table,) = tables(here)
    elements = Elements()
    rules = nft.NftRules(table, elements)
    for _ in range(2):
        found = {}
        for number, rule in enumerate(rules.of("rules") or ()):
            judgements = rules.judge(rule, packet) or ()
            matches = {each.matches for each in judgements if each.effect in (Effect.JUMP, Effect.UNKNOWN)}
            found[f"hit{number}"] = matches.pop() if matches else Matches.NOTHING
            for each in judgements:
                packet = each.change(packet) if each.change else packet
        assert not program(here).answer(elements, time.monotonic() + 60)
    return found


@pytest.mark.parametrize("untracked", [False, True], ids=["tracked", "untracked"])
@pytest.mark.parametrize("family", [4, 6])
def test_the_judge_decides_as_the_kernel(here: Namespace, pod: Namespace, family: int, untracked: bool) -> None:  # noqa: FBT001 - a parameter of the test
    here.run("nft", "-f", "-", stdin=ruleset(CONDITIONS, untracked=untracked))
    assert connects(pod, family)
    (table,) = tables(here)
    counted = {
        name: rules[0].expressions[0]["counter"]["packets"] > 0
        for name, rules in table.chains.items()
        if name.startswith("hit")
    }
    request, _ = from_peer(ip_address(ADDRESSES[family]), PORT, "pod0", ip_address(CLIENTS[family]))
    packet = replace(dict(request.steps)[Hook.INPUT], state=UNTRACKED if untracked else NEW, returns=True)
    found = judged(here, packet)
    wrong = {
        CONDITIONS[int(name.removeprefix("hit"))]: (matches, counted[name])
        for name, matches in found.items()
        if matches is not (Matches.ALL if counted[name] else Matches.NOTHING)
    }
    assert not wrong
    assert len(found) == len(CONDITIONS)


def test_what_cannot_be_known_matches_perhaps(here: Namespace) -> None:
    here.run("nft", "-f", "-", stdin=ruleset(UNKNOWABLE, untracked=False))
    request, _ = from_peer(ip_address(ADDRESSES[4]), PORT, "pod0", ip_address(CLIENTS[4]))
    packet = replace(dict(request.steps)[Hook.INPUT], state=NEW)
    found = {UNKNOWABLE[int(name.removeprefix("hit"))]: matches for name, matches in judged(here, packet).items()}
    assert found == dict.fromkeys(UNKNOWABLE, Matches.PERHAPS)
