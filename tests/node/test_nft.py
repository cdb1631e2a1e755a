"""nftables' own tables: what the judge says of a rule is what the kernel does with a packet."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address

import pytest

from sidecar.errors import CommandError, PermissionMissing, SidecarError
from sidecar.firewall import nft
from sidecar.firewall.nft_conditions import Elements
from sidecar.firewall.packet import CLIENT_PORT, ESTABLISHED, NEW, UNTRACKED, Hook, Packet, from_peer
from sidecar.firewall.verdicts import Effect, Matches
from sidecar.firewall.walk import passage
from sidecar.node import nft_tables
from sidecar.node.command import Result
from sidecar.node.nft import NftProgram
from support.namespace import ENVIRONMENT, Namespace, NamespaceCommands

pytestmark = pytest.mark.usefixtures("privileged")

PORT = 443
ADDRESSES = {4: "10.96.0.2", 6: "fd00:10:96::2"}
CLIENTS = {4: "10.244.0.5", 6: "fd00:10:244::5"}
NODE = {4: "10.244.0.1", 6: "fd00:10:244::1"}
MANY = 5_000 if os.geteuid() == 0 else 500  # an ordinary user's netlink socket does not hold more at once

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
    "ct state vmap { invalid : drop, new : jump HIT }",
    "ct state vmap { invalid : drop, established : jump HIT }",
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


#: What the kernel does not take in a chain for what this node sends; and the direction of a reply, which is not known.
ONLY_INWARD = re.compile("fib saddr .*oif|socket|ct direction")


def ruleset(conditions: Sequence[str], *, untracked: bool, hook: Hook = Hook.INPUT) -> str:
    """Return a table whose rules each jump to a chain of their own; one packet of a connection passes them."""
    hits = "\n".join(f"chain hit{number} {{ counter; }}" for number in range(len(conditions)))
    rules = "\n".join(
        each.replace("HIT", f"hit{number}") if "HIT" in each else f"{each} jump hit{number}"
        for number, each in enumerate(conditions)
    )
    which = "tcp dport 443 tcp flags & (syn|ack) == syn" if hook is Hook.INPUT else "tcp flags & (syn|ack) == syn|ack"
    notrack = "notrack;" if untracked else ""
    return f"""
table inet probes {{
    {SETS}
    set seen {{ type ipv4_addr; size 100; flags dynamic; }}
    {hits}
    chain rules {{
        {rules}
    }}
    chain before {{ type filter hook prerouting priority raw; {notrack} }}
    chain before_output {{ type filter hook output priority raw; {notrack} }}
    chain start {{
        type filter hook {hook.value} priority 0;
        {which} jump rules
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
    node[0].run("conntrack", "-F")  # connections of the test before, which had the same ports
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
    found: dict[str, Matches] = {}
    for _ in range(2):
        found.clear()
        for number, rule in enumerate(rules.of("rules") or ()):
            judgements = rules.judge(rule, packet) or ()
            matches = {each.matches for each in judgements if each.effect in (Effect.JUMP, Effect.UNKNOWN)}
            found[f"hit{number}"] = matches.pop() if matches else Matches.NOTHING
            for each in judgements:
                packet = each.change(packet) if each.change else packet
        assert not program(here).answer(elements, time.monotonic() + 60)
    return found


@pytest.mark.parametrize("hook", [Hook.INPUT, Hook.OUTPUT])
@pytest.mark.parametrize("untracked", [False, True], ids=["tracked", "untracked"])
@pytest.mark.parametrize("family", [4, 6])
def test_the_judge_decides_as_the_kernel(
    here: Namespace,
    pod: Namespace,
    family: int,
    untracked: bool,  # noqa: FBT001 - a parameter of the test
    hook: Hook,
) -> None:
    conditions = [each for each in CONDITIONS if hook is Hook.INPUT or not ONLY_INWARD.match(each)]
    here.run("nft", "-f", "-", stdin=ruleset(conditions, untracked=untracked, hook=hook))
    assert connects(pod, family)
    (table,) = tables(here)
    counted = {
        name: rules[0].expressions[0]["counter"]["packets"] > 0
        for name, rules in table.chains.items()
        if name.startswith("hit")
    }
    request, reply = from_peer(ip_address(ADDRESSES[family]), PORT, "pod0", ip_address(CLIENTS[family]))
    steps, tracked = (request.steps, NEW) if hook is Hook.INPUT else (reply.steps, ESTABLISHED)
    packet = replace(dict(steps)[hook], state=UNTRACKED if untracked else tracked, returns=True)
    found = judged(here, packet)
    wrong = {
        conditions[int(name.removeprefix("hit"))]: (matches, counted[name])
        for name, matches in found.items()
        if matches is not (Matches.ALL if counted[name] else Matches.NOTHING)
    }
    assert not wrong
    assert len(found) == len(conditions)


def test_what_cannot_be_known_matches_perhaps(here: Namespace) -> None:
    here.run("nft", "-f", "-", stdin=ruleset(UNKNOWABLE, untracked=False))
    request, _ = from_peer(ip_address(ADDRESSES[4]), PORT, "pod0", ip_address(CLIENTS[4]))
    packet = replace(dict(request.steps)[Hook.INPUT], state=NEW)
    found = {UNKNOWABLE[int(name.removeprefix("hit"))]: matches for name, matches in judged(here, packet).items()}
    assert found == dict.fromkeys(UNKNOWABLE, Matches.PERHAPS)


#: Rule sets for a real connection, which passes or not; and the rule that stops it, as it is shown.
VERDICTS = {
    "chain c { type filter hook input priority 0; ip saddr 10.244.0.5 drop; }": "ip saddr 10.244.0.5 drop",
    "chain c { type filter hook input priority 0; policy drop; iifname lo accept; }": "policy drop",
    "chain c { type filter hook input priority 0; policy drop; tcp dport 443 accept; }": None,
    "chain c { type filter hook input priority 0; ip saddr @many_networks drop; }": "ip saddr @many_networks drop",
    "chain c { type filter hook input priority 0; ip saddr @many drop; }": None,
    "chain c { type filter hook input priority 0; iifname @pods reject; }": "iifname @pods reject",
    "chain c { type filter hook prerouting priority raw; fib saddr . iif oif missing drop; }": None,
    "chain d { drop; }; chain c { type filter hook input priority 0; goto d; accept; }": "drop",
    "chain d { tcp dport 443 return; drop; }; chain c { type filter hook input priority 0; jump d; }": None,
    "chain d { drop; }; chain c { type filter hook input priority 0; tcp dport vmap { 443 : jump d }; }": "drop",
    "chain c { type filter hook input priority 0; accept; };"
    "chain d { type filter hook input priority 1; tcp dport 443 drop; }": "tcp dport 443 drop",
    "chain c { type filter hook prerouting priority mangle; meta mark set 0x7; };"
    "chain d { type filter hook input priority 1; meta mark 0x7 drop; }": "meta mark 0x00000007 drop",
    "chain c { type filter hook prerouting priority raw; notrack; };"
    "chain d { type filter hook input priority 0; policy drop; ct state new,established accept; }": "policy drop",
    "chain c { type nat hook prerouting priority dstnat; meta l4proto tcp redirect to :444; }": "meta l4proto tcp "
    "redirect to :444",
    "chain c { type filter hook output priority 0; tcp sport 443 drop; }": "tcp sport 443 drop",
    "chain c { type filter hook postrouting priority 0; oifname pod0 drop; }": 'oifname "pod0" drop',
    "chain c { type filter hook ingress device pod0 priority 0; tcp sport 32768 drop; }": "tcp sport 32768 drop",
    "chain c { type filter hook ingress device lo priority 0; drop; }": None,
}
NETDEV = {
    "chain c { type filter hook ingress device pod0 priority 0; tcp dport 443 drop; }": "tcp dport 443 drop",
    "chain c { type filter hook egress devices = { lo, pod0 } priority 0; tcp sport 443 drop; }": "tcp sport 443 drop",
    "chain c { type filter hook egress device lo priority 0; drop; }": None,
}


@pytest.mark.parametrize(
    ("family", "chains", "rule"),
    [*(("inet", *each) for each in VERDICTS.items()), *(("netdev", *each) for each in NETDEV.items())],
)
def test_a_connection_ends_where_the_walk_says(
    here: Namespace, pod: Namespace, family: str, chains: str, rule: str | None
) -> None:
    sets = SETS if "@" in chains else ""
    here.run("nft", "-f", "-", stdin=f"table {family} own {{ {sets}\n{chains}; }}\n")
    assert connects(pod, 4, 10 if rule is None else 0.5) is (rule is None)
    request, reply = from_peer(ip_address(ADDRESSES[4]), PORT, "pod0", ip_address(CLIENTS[4]))
    request = replace(request, steps=tuple((hook, replace(each, returns=True)) for hook, each in request.steps))
    elements = Elements()
    asked = program(here)
    bases = nft.base_chains(tables(here), 4, elements)
    there = passage(bases, request)
    assert not asked.answer(elements, time.monotonic() + 60)
    there = passage(bases, request)
    back = passage(bases, reply, there)
    stopped = there.stopped or back.stopped
    assert not there.doubts
    assert not back.doubts
    assert (stopped and stopped.line.partition(" # handle")[0]) == rule


def test_only_tables_are_read_that_packets_pass_and_iptables_does_not_list(here: Namespace) -> None:
    here.run("iptables-nft", "-A", "INPUT", "-p", "tcp", "-j", "ACCEPT")
    here.run("nft", "add table inet empty; add table ip other { chain c { type filter hook forward priority 0; }; }")
    here.run("nft", "add table bridge br { chain c { type filter hook input priority 0; }; }")
    here.run("nft", "add table ip own { chain c { type filter hook input priority 0; }; }")
    commands = NamespaceCommands(here)
    found, failures = NftProgram(commands.run, known=lambda: None).tables(time.monotonic() + 60)
    assert ([each.name for each in found], failures) == (["own"], {})
    assert len(commands.calls) == 2
    here.run("nft", "add chain ip filter mine { type filter hook input priority 0; policy drop; }")
    found, _ = NftProgram(commands.run, known=lambda: None).tables(time.monotonic() + 60)
    assert sorted((each.name, *each.bases) for each in found) == [("filter", "mine"), ("own", "c")]


def test_rules_that_iptables_cannot_list_can_be_asked_for(here: Namespace) -> None:
    here.run("iptables-nft", "-A", "INPUT", "-p", "tcp", "-j", "ACCEPT")
    here.run("nft", "insert rule ip filter INPUT ct mark 5 drop")
    (table,) = program(here).table("ip", "filter")
    rules = nft.NftRules(table, Elements())
    assert [rules.text(each).partition(" # ")[0] for each in rules.of("INPUT") or ()] == [
        "ct mark 0x00000005 drop",
        "meta l4proto tcp counter accept",
    ]
    assert program(here).table("ip", "absent") == []


def test_a_listing_is_terse(here: Namespace) -> None:
    here.run("nft", "-f", "-", stdin=ruleset((), untracked=False))
    (table,) = tables(here)
    assert not any("elem" in each for each in table.sets.values())


def test_dormant_tables_are_known_by_the_kernel(namespace: Namespace) -> None:
    namespace.run("nft", "add table inet asleep { flags dormant; chain c { type filter hook input priority 0; }; }")
    namespace.run("nft", "add table netdev awake")
    child = namespace.fork(lambda: print(nft_tables.everywhere()))
    assert child.communicate()[0] == "[('inet', 'asleep', True), ('netdev', 'awake', False)]\n"
    found, _ = NftProgram(NamespaceCommands(namespace).run, known=lambda: [("inet", "asleep", True)]).tables(
        time.monotonic() + 60
    )
    assert nft.base_chains(found, 4, Elements()) == []


def test_a_name_cannot_be_a_command(here: Namespace) -> None:
    with pytest.raises(CommandError, match="nft cannot be given such a name"):
        program(here).table("inet", "x; flush ruleset")


def test_one_table_that_cannot_be_read_does_not_hide_the_others(here: Namespace) -> None:
    for name in ("first", "second"):
        here.run("nft", f"add table inet {name} {{ chain c {{ type filter hook input priority 0; }}; }}")
    commands = NamespaceCommands(here)

    def run(*argv: str, stdin: str = "") -> Result:
        return Result(0, '{"nftables": [', "") if "first" in argv else commands.run(*argv, stdin=stdin)

    found, failures = NftProgram(run, known=lambda: None).tables(time.monotonic() + 60)
    assert [each.name for each in found] == ["second"]
    assert list(failures) == ["table inet first"]
    assert "`nft --json --terse list table inet first` printed output that cannot be parsed" in str(
        failures["table inet first"]
    )


def test_no_command_is_started_after_the_deadline(here: Namespace) -> None:
    here.run("nft", "-f", "-", stdin=ruleset(CONDITIONS, untracked=False))
    elements = Elements()
    request, _ = from_peer(ip_address(ADDRESSES[4]), PORT, "pod0", ip_address(CLIENTS[4]))
    bases = nft.base_chains(tables(here), 4, elements)
    passage(bases, request)
    asked = len(elements.questions)
    assert asked
    failures = program(here).answer(elements, deadline=0)
    assert len(failures) == asked
    passage(bases, request)
    assert not elements.questions
    assert "no time left to run `nft --json list set inet probes many`" in map(str, failures.values())
    assert program(here).tables(deadline=0)[1].keys() == {"table inet probes"}


@pytest.mark.parametrize(
    ("stderr", "error"),
    [
        ("Error: JSON support not compiled-in", "install nftables 0.9.3 or newer"),
        ("nft: unrecognized option '--json'", "install nftables 0.9.3 or newer"),
        ("netlink: Error: cache initialization failed: Operation not permitted", "missing CAP_NET_ADMIN: run as root"),
        ("Error: cache initialization failed: No buffer space available", "exited with 1: Error: cache"),
    ],
)
def test_a_failure_says_what_to_do(stderr: str, error: str) -> None:
    with pytest.raises(SidecarError, match=re.escape(error)):
        NftProgram(lambda *_, **__: Result(1, "", stderr)).tables(deadline=0)


def test_a_kernel_without_nf_tables_has_no_tables() -> None:
    # nfnetlink's answer for a subsystem that it does not have (net/netfilter/nfnetlink.c)
    stderr = "netlink: Error: cache initialization failed: Invalid argument"
    assert NftProgram(lambda *_, **__: Result(1, "", stderr)).tables(deadline=0) == ([], {})


def test_an_ordinary_user_is_told_what_is_missing() -> None:
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]
    if os.geteuid():
        command = []

    def run(*argv: str, stdin: str = "") -> Result:
        done = subprocess.run(
            [*command, *argv], input=stdin, capture_output=True, text=True, check=False, env=ENVIRONMENT
        )
        return Result(done.returncode, done.stdout, done.stderr)

    with pytest.raises(PermissionMissing, match="CAP_NET_ADMIN"):
        NftProgram(run).tables(deadline=0)
