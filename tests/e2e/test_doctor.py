"""doctor, as the installed program on real nodes: broken ones, each in one way, and healthy ones."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, product
from pathlib import Path
from typing import Any, Final

import pytest

from support import program, proxy
from support.in_sync import put_in_place
from support.namespace import Namespace
from support.program import PROGRAM, Fake, Start
from support.sweep import sweep
from support.waiting import FOREVER, HANG, until

NODES: Final = Path(__file__).parent / "nodes"

WANTED: Final = ("--ip-address=10.96.0.2", "--setup-iptables")
WITHOUT_RULES: Final = ("--ip-address=10.96.0.2",)
ON_LINK: Final = (*WANTED, "--interface=link0")

LINKS: Final = "ip link add link0 type veth peer name link1; ip link set link1 up; ip link set link0 up"

IS_ROOT: Final = os.geteuid() == 0


@dataclass
class Node:
    """A node in sync, with a proxy behind the address."""

    namespace: Namespace
    backend: str
    certificate: Path
    processes: list["subprocess.Popen[str]"] = field(default_factory=list)

    def sh(self, script: str, *flags: str) -> None:
        """Run a script; $ipt is the backend's iptables, $other that of the other one, $run the program with flags."""
        other = "legacy" if self.backend == "nft" else "nft"
        names = f"ipt=iptables-{self.backend}; ipt6=ip6tables-{self.backend}; other=iptables-{other}; "
        names += f"run='{PROGRAM} {' '.join(flags)}'; set -e\n"
        self.namespace.run("sh", "-c", names + script)

    def listen_for(self, flags: Sequence[str]) -> None:
        """Listen on each of the addresses that are asked for."""
        for address in flags[0].partition("=")[2].split(","):
            self.listen(address)

    def answer(self, way: str) -> None:
        """Listen in one of the ways of support/proxy.py, or with a certificate that is not valid; empty: not at all."""
        match way.split():
            case []:
                pass
            case ["expired" | "future"]:
                valid = self.certificate
                self.certificate = proxy.make_certificate(
                    valid.with_suffix(f".{way}"), years=-3 if way == "expired" else 3
                )
                self.listen()
                self.certificate = valid
            case [address, port, how]:
                self.listen(address, int(port), how)
            case [how]:
                self.listen(way=how)

    def follow(self, found: Sequence[dict[str, Any]], broken: "Broken", flags: Sequence[str]) -> None:
        """Do what the findings say: their commands, or what they say in words."""
        for each in found:
            self.sh("\n".join(each["commands"]))
        match broken.by_hand:
            case "proxy":
                self.stop_listening()
                self.listen_for(flags)
            case "kill":
                pid = found[0]["facts"]["pid"]
                os.kill(pid, signal.SIGTERM)
                until(lambda: not Path(f"/proc/{pid}").exists())
            case command:
                self.sh(command)
        if broken.then:
            self.sh("$run --daemon=false", *flags, *broken.then)

    def listen(self, address: str = "10.96.0.2", port: int = 443, way: str = "tls") -> None:
        arguments = [address, str(port), way, *([str(self.certificate)] if way in ("tls", "strict") else [])]
        process = self.namespace.fork(partial(proxy.main, *arguments))
        self.processes.append(process)
        assert process.stdout
        assert process.stdout.readline() == "ready\n"

    def stop_listening(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()
        self.processes.clear()


@dataclass
class Report:
    exit: int
    summary: str
    findings: list[dict[str, Any]]

    def having(self, level: str, topic: str, text: str = "") -> list[dict[str, Any]]:
        """Return the findings of this level and topic that have the pattern in them."""
        return [
            each
            for each in self.findings
            if (each["level"], each["topic"]) == (level, topic) and re.search(text, each["found"])
        ]

    def alarms(self) -> list[str]:
        return [f"{each['topic']}: {each['found']}" for each in self.findings if each["level"] in ("fault", "warning")]


def run(
    namespace: Namespace, *flags: str, prefix: tuple[str, ...] = (), env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    if prefix:
        process = program.execute(namespace, "doctor", *flags, prefix=prefix, env=env)
    else:
        process = program.fork(namespace, "doctor", *flags, env=env)
    stdout, stderr = process.communicate(timeout=HANG)
    assert stderr == ""
    return subprocess.CompletedProcess(flags, process.returncode, stdout, stderr)


def doctor(
    namespace: Namespace, *flags: str, prefix: tuple[str, ...] = (), env: Mapping[str, str] | None = None
) -> Report:
    done = run(namespace, *flags, "--output=json", prefix=prefix, env=env)
    shown = json.loads(done.stdout)
    assert shown["exit"] == done.returncode
    return Report(done.returncode, shown["summary"], shown["findings"])


@pytest.fixture
def node_with(namespace: Namespace, certificate: Path) -> Iterator[Callable[..., Node]]:
    """Return what makes a node in sync; the first argument is run before it."""
    with contextlib.ExitStack() as stack:

        def made(before: str, backend: str, *flags: str) -> Node:
            node = Node(namespace, backend, certificate)
            stack.callback(node.stop_listening)
            node.sh(before)
            put_in_place(namespace, *flags, backend=backend)
            node.listen_for(flags)
            return node

        yield made


# Broken nodes


@dataclass(frozen=True)
class Broken:
    """A node in sync is broken by `how`; then doctor says first `says`, and what to do about it mends it."""

    name: str
    how: str
    level: str
    topic: str
    says: str
    exit: int = 1
    flags: tuple[str, ...] = WANTED
    before: str = ""
    proxy: str = "tls"
    """In which way the proxy answers once the node is broken; a text with spaces: its arguments."""

    then: tuple[str, ...] = ()
    """The flags that are the remedy."""

    by_hand: str = ""
    """What is the remedy that is told in words."""

    still: str = ""
    """What is told once that is done."""

    both: bool = False
    root: str = ""
    """Why it is for root only."""


OURS: Final = {
    "NOTRACK": "-t raw {} OUTPUT -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j NOTRACK",
    "INPUT": "-t filter {} INPUT -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j ACCEPT",
}
DNAT: Final = "-d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j DNAT --to-destination 192.0.2.1:6443"
CATCH: Final = (
    "ip rule add priority 100 lookup local; ip rule delete priority 0; "
    "ip rule add priority 50 to 10.96.0.2 lookup 77; ip route add 10.96.0.2/32 dev link0 table 77"
)
IPV6: Final = ("--ip-address=fd00:10:96::2", "--setup-iptables")
IPV6_ON_LINK: Final = (*IPV6, "--interface=link0")
TWO: Final = ("--ip-address=10.96.0.2,10.96.0.3", "--setup-iptables")
LOCAL_LATER: Final = "ip rule add priority 100 lookup local; ip rule delete priority 0"
HOLD: Final = "import fcntl, time; file = open('/run/xtables.lock', 'a'); fcntl.flock(file, 2); time.sleep(300)"
LO: Final = "$ipt -I INPUT -i lo -j ACCEPT"
SEES_LEGACY: Final = "which legacy tables there are, only root of the node can read"

NODES_THAT_ARE_BROKEN: Final = (
    Broken("interface down", "ip link set link0 down", "fault", "interface", "^link0 is down", flags=ON_LINK,
           before=LINKS),
    Broken("lo down", "ip link set lo down", "fault", "interface", "^lo is down"),
    Broken("address missing", "ip address delete 10.96.0.2/32 dev lo", "fault", "address", "is not on lo$"),
    Broken("address elsewhere", "ip address delete 10.96.0.2/32 dev lo; ip address add 10.96.0.2/32 dev link0",
           "fault", "address", "is not on lo; it is on link0$", before=LINKS,
           still="10.96.0.2/32 is on link0 as well"),
    Broken("address twice", "ip address add 10.96.0.2/32 dev link0", "warning", "address", "is on link0 as well", 0,
           before=LINKS),
    Broken("scope", "ip address delete 10.96.0.2/32 dev lo; ip address add 10.96.0.2/32 dev lo scope global",
           "warning", "address", "has scope global instead of host", 0),
    Broken("route", CATCH, "fault", "route", "does not stay on this node: unicast dev link0 table 77", before=LINKS),
    Broken("unreachable", "ip rule add priority 100 lookup local; ip rule delete priority 0; "
           "ip rule add priority 50 lookup 77; ip route add unreachable 10.96.0.0/16 table 77",
           "fault", "route", "^10.96.0.2 cannot be reached: .*No route to host"),
    Broken("rule missing", f"$ipt {OURS['NOTRACK'].format('-D')}", "fault", "rules", "^missing: -t raw -A OUTPUT -d",
           both=True),
    Broken("table flushed", "$ipt -t filter -F", "fault", "rules", "^missing: -t filter", both=True),
    Broken("copies", f"for i in 1 2; do $ipt {OURS['INPUT'].format('-A')}; done", "warning", "rules",
           "^3 copies: -t filter -A INPUT", both=True),
    Broken("dropped", "$ipt -I INPUT -p tcp -m multiport --dports 80,443 -j DROP", "fault", "rules",
           "^without effect behind `-A INPUT -p tcp -m multiport --dports 80,443 -j DROP`: -t filter", both=True),
    Broken("replies dropped", "$ipt -I OUTPUT -s 10.96.0.0/16 -p tcp --sport 443 -j REJECT", "fault", "rules",
           "^without effect behind `-A OUTPUT -s 10.96.0.0/16 -p tcp -m tcp --sport 443 -j REJECT", both=True),
    Broken("tracked all the same", "$ipt -t raw -I PREROUTING -j ACCEPT", "warning", "rules",
           "^without effect behind `-A PREROUTING -j ACCEPT`", 0, both=True),
    Broken("dropped in a chain of others", "$ipt -N POLICY; $ipt -I INPUT -j POLICY; "
           f"$ipt -A POLICY -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP; {LO}",
           "fault", "policies", "^`-A POLICY .* in filter drops traffic to 10.96.0.2 from pods, before our rule",
           both=True),
    Broken("rejected in a chain of others", "$ipt -N POLICY; $ipt -I OUTPUT -j POLICY; $ipt -A POLICY -j REJECT; "
           "$ipt -I OUTPUT -o lo -j ACCEPT",
           "fault", "policies", "^`-A POLICY -j REJECT.* in filter drops traffic from 10.96.0.2 to pods, before our"),
    Broken("dropped without rules of ours", f"$ipt -N HARD; $ipt -A INPUT -j HARD; $ipt -A HARD -j DROP; {LO}",
           "fault", "policies", "^`-A HARD -j DROP` in filter drops traffic to 10.96.0.2", flags=WITHOUT_RULES,
           then=("--setup-iptables", "--rule-position=insert")),
    Broken("replies over lo dropped", "$ipt -P INPUT DROP", "fault", "policies",
           "^`-P INPUT DROP` in filter drops traffic from 10.96.0.2 to this node$", both=True),
    Broken("policy DROP without rules of ours", f"$ipt -P INPUT DROP; {LO}",
           "fault", "policies", "^`-P INPUT DROP` in filter drops traffic to 10.96.0.2 from pods$", flags=WITHOUT_RULES,
           then=("--setup-iptables", "--rule-position=insert"), both=True, root=SEES_LEGACY),
    Broken("policy DROP in raw", "$ipt -t raw -P OUTPUT DROP",
           "fault", "policies", "^`-P OUTPUT DROP` in raw drops traffic to and from 10.96.0.2$", both=True),
    Broken("dropped in raw, behind our rules", "$ipt -t raw -A PREROUTING -d 10.96.0.0/12 -j DROP",
           "fault", "policies", "^`-A PREROUTING -d 10.96.0.0/12 -j DROP` in raw drops traffic to and from 10.96.0.2$",
           both=True),
    Broken("dropped in mangle", "$ipt -t mangle -N SPOOF; $ipt -t mangle -A PREROUTING -j SPOOF; "
           "$ipt -t mangle -A SPOOF -p tcp --dport 0:1023 -j DROP",
           "fault", "policies", "^`-A SPOOF -p tcp -m tcp --dport 0:1023 -j DROP` in mangle drops traffic to"),
    Broken("refused by a rule", "$ipt -I INPUT -i lo -p tcp --dport 443 -j REJECT --reject-with tcp-reset",
           "fault", "policies", "^`-A INPUT -i lo .* -j REJECT .* drops traffic to 10.96.0.2 from this node, before"),
    Broken("dropped by what only nft shows", "nft add table inet guard; nft add chain inet guard input "
           "'{ type filter hook input priority 0; policy drop; }'",
           "fault", "policies", "^`policy drop` in chain input of table inet guard drops traffic to and from 10.96"),
    Broken("rules in nft as well", f"$other {OURS['INPUT'].format('-A')}", "warning", "backend",
           "has our rules, too", 0, both=True, root=SEES_LEGACY),
    Broken("copies in both backends", f"for i in 1 2; do $other {OURS['INPUT'].format('-A')}; done; "
           f"$ipt {OURS['INPUT'].format('-A')}", "warning", "backend|rules",
           r"has our rules, too: 2|^2 copies: -t filter -A INPUT", root=SEES_LEGACY),
    Broken("rules for another port", "for t in raw filter; do $ipt-save -t $t | sed s/443/9443/ | "
           "$ipt-restore --noflush; done", "warning", "rules", "^5 rules are left for 10.96.0.2 and port 9443", 0,
           both=True),
    Broken("DNAT", f"$ipt -t nat -A OUTPUT {DNAT}", "fault", "taken", "^`-A OUTPUT .* in nat takes traffic to",
           flags=WITHOUT_RULES, both=True, root=SEES_LEGACY),
    Broken("DNAT in a chain",
           f"$ipt -t nat -N SERVICES; $ipt -t nat -A PREROUTING -j SERVICES; $ipt -t nat -A SERVICES {DNAT}",
           "fault", "taken", "^`-A SERVICES .* in nat takes traffic to", flags=WITHOUT_RULES),
    Broken("a Service has the address",
           f"iptables-nft-restore --noflush < {NODES / 'kube-proxy.rules'}; $ipt -t nat -I KUBE-SERVICES -p tcp "
           "-d 10.96.0.2/32 -m comment --comment 'x/y:https cluster IP' --dport 443 -j KUBE-SVC-NPX46M4PTMTKRN6Y",
           "fault", "taken", "^`-A KUBE-SEP-ZQ5AX2CXSKPRG3QW .* in nat takes traffic to 10.96.0.2:443",
           flags=WITHOUT_RULES, then=("--setup-iptables",)),
    Broken("REDIRECT perhaps",
           "$ipt -t nat -A PREROUTING -m limit -p tcp --dport 443 -j REDIRECT --to-ports 8443",
           "warning", "taken", "^`-A PREROUTING .* in nat may take traffic to", 0, flags=WITHOUT_RULES),
    Broken("one of two addresses missing", "ip address delete 10.96.0.3/32 dev lo", "fault", "address",
           "^10.96.0.3/32 is not on lo$", flags=TWO),
    Broken("one of two without its rules", "$ipt -S INPUT | sed -n 's/-A \\(.*0.3.*\\)/-D \\1/p' | xargs $ipt",
           "fault", "rules", "^missing: -t filter -A INPUT -d 10.96.0.3/32", flags=TWO, both=True),
    Broken("another prefix length", "ip address delete 10.96.0.2/32 dev lo; ip address add 10.96.0.2/24 dev lo",
           "fault", "address", "^10.96.0.2/32 is not on lo, but 10.96.0.2/24 is$"),
    Broken("with a peer", "ip address delete 10.96.0.2/32 dev lo; ip address add 10.96.0.2 peer 192.0.2.1 dev lo",
           "fault", "address", "^10.96.0.2/32 is not on lo, but 10.96.0.2/32 with a peer is$"),
    Broken("renamed", "ip link set link0 down; ip link set link0 name link9; ip link set link9 up", "fault",
           "interface", "^link0 does not exist$", flags=(*ON_LINK, "--create-interface=false"), before=LINKS,
           by_hand="ip link set link9 down; ip link set link9 name link0; ip link set link0 up"),
    Broken("local route lost", "ip route delete local 10.96.0.2 table local", "fault", "route",
           "^10.96.0.2 cannot be reached: .*unreachable"),
    Broken("blackhole", "ip route replace blackhole 10.96.0.2 table local", "fault", "route",
           "^10.96.0.2 cannot be reached: .*Invalid argument"),
    Broken("IPv6 disabled", "echo 1 > /proc/sys/net/ipv6/conf/lo/disable_ipv6", "fault", "address",
           "^fd00:10:96::2/128 is not on lo, as IPv6 is disabled there$", flags=IPV6),
    Broken("IPv6 address missing", "ip address delete fd00:10:96::2/128 dev lo", "fault", "address",
           "^fd00:10:96::2/128 is not on lo$", flags=IPV6),
    Broken("IPv6 address tentative", "ip link set link1 down; ip address delete fd00:10:96::2/128 dev link0; "
           "echo 1 > /proc/sys/net/ipv6/conf/link0/accept_dad; ip address add fd00:10:96::2/128 dev link0",
           "fault", "address", "^fd00:10:96::2/128 on link0 is tentative", flags=IPV6_ON_LINK, before=LINKS),
    Broken("IPv6 rules flushed", "$ipt6 -t raw -F", "fault", "rules", "^missing: -t raw -A PREROUTING -d fd00:10:96",
           flags=IPV6, both=True),
    Broken("IPv6 dropped", "$ipt6 -I INPUT -d fd00:10::/32 -j DROP; $ipt6 -I INPUT -i lo -j ACCEPT", "fault", "rules",
           "^without effect behind `-A INPUT -d fd00:10::/32 -j DROP`", flags=IPV6),
    Broken("IPv6 local route lost", "ip -6 route delete local fd00:10:96::2 table local", "fault", "route",
           "^fd00:10:96::2 cannot be reached: .*unreachable|does not stay on this node: unicast dev lo", flags=IPV6),
    Broken("nothing listens", "true", "fault", "listener", "^nothing listens on 10.96.0.2:443$", proxy="",
           by_hand="proxy"),
    Broken("another address is listened on", "true", "fault", "listener",
           "^nothing listens on 10.96.0.2:443, only on 127.0.0.1:443$", proxy="127.0.0.1 443 plain",
           by_hand="proxy"),
    Broken("another port is listened on", "true", "fault", "listener",
           "^nothing listens on 10.96.0.2:443, only on 10.96.0.2:8443$", proxy="10.96.0.2 8443 plain",
           by_hand="proxy"),
    Broken("plain HTTP", "true", "fault", "tls",
           r"^10.96.0.2:443 answers in plain HTTP \(`HTTP/1.0 400 Bad Request`\): is this the right port",
           proxy="plain", by_hand="proxy"),
    Broken("another protocol", "true", "fault", "tls",
           r"^10.96.0.2:443 answers, but not in TLS \(`220 mail.example.org ESMTP`\): is this the right",
           proxy="mail", by_hand="proxy"),
    Broken("the proxy hangs", "true", "fault", "tls",
           "^10.96.0.2:443 accepts connections, but no TLS answer came within 1 s: is its upstream reach",
           proxy="silent", by_hand="proxy"),
    Broken("the proxy closes", "true", "fault", "tls",
           "^10.96.0.2:443 accepts connections, but closes them at once: is its upstream reachable",
           proxy="close", by_hand="proxy"),
    Broken("the proxy resets", "true", "fault", "tls",
           "^10.96.0.2:443 accepts connections, but resets them: is its upstream reachable",
           proxy="reset", by_hand="proxy"),
    Broken("the proxy closes after a hello", "true", "fault", "tls",
           "^10.96.0.2:443 accepts connections, but closes them after a TLS hello: is its",
           proxy="hello", by_hand="proxy"),
    Broken("a TLS alert", "true", "fault", "tls",
           "^10.96.0.2:443 answers a TLS hello with the alert `unrecognized name`",
           proxy="strict", by_hand="proxy"),
    Broken("certificate expired", "true", "fault", "tls", "^the certificate on 10.96.0.2:443 has expired",
           proxy="expired", by_hand="proxy"),
    Broken("certificate of the future", "true", "fault", "tls", "^the certificate on 10.96.0.2:443 is not valid before",
           proxy="future", by_hand="proxy"),
    Broken("lock held", f'({sys.executable} -c "{HOLD}" > /run/log 2>&1 &); until ! flock -n /run/xtables.lock true; '
           "do sleep 0.05; done",
           "warning", "lock", r"^/run/xtables.lock is held by pid \d+ \(python",
           by_hand="kill"),
    Broken("lock a directory", "rm -f /run/xtables.lock; mkdir /run/xtables.lock", "fault", "lock",
           "^/run/xtables.lock is a directory", 3, by_hand="rmdir /run/xtables.lock"),
    Broken("two that contradict each other", "($run --port=8443 --setup-iptables=false > /run/log 2>&1 &); "
           "until grep -q 'in sync' /run/log; do sleep 0.05; done",
           "warning", "instances", "holds 10.96.0.2 with --port=8443; this check is for --interface=lo --port=443", 0,
           by_hand="kill"),
)  # fmt: skip

BACKENDS: Final = ("nft", "legacy")

#: Those on both backends by turns, on each with --thorough.
CASES: Final = [
    pytest.param(
        each,
        backend,
        id=f"{each.name}-{backend}",
        marks=[
            pytest.mark.skipif(bool(each.root) and not IS_ROOT, reason=each.root),
            *([pytest.mark.thorough] if each.both and backend == BACKENDS[number % 2] else []),
        ],
    )
    for number, each in enumerate(NODES_THAT_ARE_BROKEN)
    for backend in BACKENDS
    if each.both or backend == ("legacy" if each.name.startswith("lock") else "nft")
]


@pytest.mark.parametrize(("broken", "backend"), CASES)
def test_a_broken_node_is_named_first_and_the_remedy_mends_it(
    node_with: Callable[..., Node], broken: Broken, backend: str
) -> None:
    flags = (*broken.flags, f"--iptables-backend={backend}")
    node = node_with(broken.before, backend, *flags)
    if broken.proxy != "tls":
        node.stop_listening()
        node.answer(broken.proxy)
    node.sh(broken.how, *flags)
    report = doctor(node.namespace, *flags)
    topic, _, text = report.summary.partition("; first: ")[2].partition(": ")
    assert re.fullmatch(broken.topic, topic), report.summary
    assert re.search(broken.says, text), report.summary
    assert report.exit == broken.exit
    found = [
        each for each in report.findings if each["level"] == broken.level and re.fullmatch(broken.topic, each["topic"])
    ]
    assert all(each["commands"] or each["remedy"] for each in found)
    node.follow(found, broken, flags)
    mended = doctor(node.namespace, *flags, *broken.then)
    assert (mended.alarms(), mended.exit) == ([f"{broken.topic}: {broken.still}"] if broken.still else [], 0)


def test_an_ipv6_address_that_another_host_has(namespace: Namespace) -> None:
    """The other end of the link stands in for the other host."""
    namespace.run("sh", "-c", f"{LINKS}; echo 1 > /proc/sys/net/ipv6/conf/link0/accept_dad")
    until(lambda: "tentative" not in namespace.run("ip", "address"))  # their own ones
    namespace.run("ip", "address", "add", "fd00:10:96::2/128", "dev", "link1", "nodad")
    namespace.run("ip", "address", "add", "fd00:10:96::2/128", "dev", "link0")
    until(lambda: "dadfailed" in namespace.run("ip", "address", "show", "dev", "link0"))
    report = doctor(namespace, "--ip-address=fd00:10:96::2", "--interface=link0")
    (found,) = report.having("fault", "address", "another host on the link has fd00:10:96::2/128 on link0")
    assert found["remedy"] == "remove it on the other host first"
    assert report.having("warning", "address", "is on link1 as well")


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_a_listener_on_all_addresses_counts(node_with: Callable[..., Node], address: str) -> None:
    node = node_with("", "nft", *WANTED)
    node.stop_listening()
    node.listen(address)
    assert doctor(node.namespace, *WANTED).alarms() == []


@pytest.mark.parametrize(
    ("names", "level", "told"),
    [
        ("DNS:api.example.org", "warning", "is neither for 10.96.0.2 nor for `kubernetes`: is this the API server"),
        ("DNS:*.default.svc", "note", "is not for 10.96.0.2: clients have to use one of its names"),
        ("DNS:api.example.org,IP:10.96.0.2", "ok", "^certificate for api.example.org, 10.96.0.2, until"),
    ],
)
def test_the_names_of_the_certificate_are_told(
    node_with: Callable[..., Node], tmp_path: Path, names: str, level: str, told: str
) -> None:
    node = node_with("", "nft", *WANTED)
    node.stop_listening()
    node.certificate = proxy.make_certificate(tmp_path / "pem", names=names)
    node.listen()
    report = doctor(node.namespace, *WANTED)
    assert report.having("ok", "tls", "its chain of trust was not verified")
    assert report.having(level, "tls", told)
    assert report.exit == 0
    assert len(report.alarms()) == (level == "warning")


HAPROXY: Final = "defaults\n mode tcp\n timeout connect 1s\n timeout client 9s\n timeout server 9s\n"
BY_NAME: Final = (
    " tcp-request inspect-delay 2s\n tcp-request content accept if { req.ssl_sni -m found }\n"
    " tcp-request content reject\n use_backend %[req.ssl_sni]\n"
)


@pytest.mark.parametrize(
    ("listens", "upstream", "told"),
    [
        ("", "127.0.0.1:6443", ""),
        ("", "127.0.0.1:6444", "accepts connections, but no TLS answer came within 1 s: is its upstream reachable"),
        (BY_NAME, "127.0.0.1:6443",
         "accepts connections, but closes them after a TLS hello: .* that ask for `kubernetes.default.svc` or for no"),
    ],
    ids=["its upstream answers", "its upstream is down", "it knows other names"],
)  # fmt: skip
def test_haproxy(node_with: Callable[..., Node], tmp_path: Path, listens: str, upstream: str, told: str) -> None:
    if not shutil.which("haproxy"):
        pytest.skip("HAProxy is not installed")
    node = node_with("", "nft", *WANTED)
    node.stop_listening()
    node.listen("127.0.0.1", 6443)
    bind = f"bind 10.96.0.2:443\n{listens}"
    backend = f"backend blue.example\n server it {upstream}\n"
    default = "" if listens else " default_backend blue.example\n"
    (tmp_path / "cfg").write_text(f"{HAPROXY}frontend it\n {bind}{default}{backend}")
    haproxy = node.namespace.start("haproxy", "-db", "-q", "-f", str(tmp_path / "cfg"))
    try:
        until(lambda: node.namespace.run("ss", "--no-header", "--listening", "--tcp", "src 10.96.0.2"))
        report = doctor(node.namespace, *WANTED)
    finally:
        haproxy.kill()
        haproxy.communicate()
    assert report.exit == bool(told)
    if told:
        (found,) = report.having("fault", "tls", told)
        assert f"see the log of pid {haproxy.pid} (haproxy)" in found["remedy"]
        assert f"ss -tnp | grep pid={haproxy.pid}," in found["remedy"]
        assert report.summary == f"1 fault; first: tls: {found['found']}"


def test_a_proxy_that_is_stopped(node_with: Callable[..., Node]) -> None:
    node = node_with("", "nft", *WANTED)
    (listens,) = node.processes
    os.kill(listens.pid, signal.SIGSTOP)
    report = doctor(node.namespace, *WANTED)
    assert re.search(rf"; first: tls: pid {listens.pid} .* is stopped \(SIGSTOP\)", report.summary)
    (found,) = report.having("fault", "tls")
    node.sh(*found["commands"])
    assert doctor(node.namespace, *WANTED).alarms() == []


def test_who_holds_the_lock(node_with: Callable[..., Node]) -> None:
    node = node_with("", "legacy", *WANTED)
    with node.namespace.lock_held():
        report = doctor(node.namespace, *WANTED, "--iptables-backend=legacy")
    (found,) = report.having("warning", "lock", r"/run/xtables.lock is held by pid \d+ \((flock|cat|sh)\)")
    assert found["remedy"].endswith(f"kill {found['facts']['pid']}")
    assert report.having("unknown", "rules", "could not be listed")
    assert report.having("unknown", "taken", "see above")
    assert report.exit == 1


def test_a_lock_that_is_a_directory_is_no_fault_where_nft_is_in_use(node_with: Callable[..., Node]) -> None:
    node = node_with("", "nft", *WANTED)
    node.sh("mkdir /run/xtables.lock")
    report = doctor(node.namespace, *WANTED, "--iptables-backend=nft")
    assert report.having("warning", "lock", "is a directory")
    assert report.exit == 0


CHATTY: Final = "import socket, time; s = socket.create_connection(('10.96.0.2', 443)); print('ready', flush=True)"
TRACK: Final = "$ipt -A INPUT -m conntrack --ctstate INVALID -j LOG; ip address add 10.96.0.2/32 dev lo scope host"


def test_connections_that_were_tracked_before_the_rules_came(
    namespace: Namespace, start: Start, certificate: Path
) -> None:
    """Their entries stay for five days, but nothing is wrong."""
    if not IS_ROOT:
        pytest.skip("the tracked connections are for root of the node only")
    node = Node(namespace, "nft", certificate)
    node.sh(TRACK)
    node.listen(way="silent")
    chat = f"{CHATTY}\nwhile True: s.send(b'x'); time.sleep(0.1)"
    client = namespace.start(sys.executable, "-c", chat)
    assert client.stdout
    assert client.stdout.readline() == "ready\n"
    report = doctor(namespace, *WITHOUT_RULES)
    assert report.having("note", "conntrack", "to 10.96.0.2:443 (is|are) tracked, as expected without --setup-iptables")
    assert start(*WANTED, "--daemon=false").end() == 0
    report = doctor(namespace, *WANTED)
    (found,) = report.having("note", "conntrack", "still listed from before our rules, but not tracked any more")
    assert found["commands"] == []
    node.sh("$ipt -t raw -I OUTPUT -j ACCEPT; $ipt -t raw -I PREROUTING -j ACCEPT")  # now our rules have no effect
    report = doctor(namespace, *WANTED)
    (found,) = report.having("warning", "conntrack", "(is|are) tracked, though our rules should prevent that")
    assert found["commands"] == ["conntrack -D -p tcp -d 10.96.0.2 --dport 443"]
    client.kill()
    client.communicate()
    node.stop_listening()


def test_an_interface_that_is_missing(node_with: Callable[..., Node]) -> None:
    node = node_with("", "nft", *WANTED)
    report = doctor(node.namespace, *ON_LINK, "--create-interface=false")
    assert report.having("fault", "interface", "^link0 does not exist$")
    assert report.exit == 1
    report = doctor(node.namespace, *ON_LINK)
    (found,) = report.having("fault", "interface", "^link0 does not exist$")
    assert "ip -batch -" in found["commands"][0]
    has_dummy = not report.having("fault", "kernel", "does not have dummy interfaces")
    assert report.exit == (1 if has_dummy else 3)


@pytest.mark.parametrize(
    ("file", "content", "manager"),
    [
        ("systemd/netif/links", "ADMIN_STATE=configured\nOPER_STATE=routable\n", "systemd-networkd"),
        ("NetworkManager/devices", "[device]\nmanaged=true\nnm-owned=false\n", "NetworkManager"),
    ],
)
def test_an_interface_that_somebody_manages(
    node_with: Callable[..., Node], file: str, content: str, manager: str
) -> None:
    node = node_with(LINKS, "nft", *ON_LINK)
    index = node.namespace.run("ip", "-oneline", "link", "show", "dev", "link0").split(":")[0]
    node.sh(f"mkdir -p /run/{file}; printf '{content}' > /run/{file}/{index}")
    report = doctor(node.namespace, *ON_LINK)
    assert report.having("note", "interface", f"link0 is managed by {manager}")
    assert report.alarms() == []


def sees_others(report: Report) -> bool:
    """Whether an ordinary user cannot tell, as other users run this program on this machine."""
    return not IS_ROOT and bool(report.having("unknown", "instances", "only root can see its network"))


@pytest.mark.any_user
def test_instances_that_agree_and_that_contradict(node_with: Callable[..., Node], execute: Start) -> None:
    node = node_with("", "nft", *WANTED)
    report = doctor(node.namespace, *WANTED)
    assert report.having("note", "instances", "no instance is running for 10.96.0.2") or sees_others(report)
    daemon = execute(*WANTED)
    daemon.wait_for("in sync: ")
    report = doctor(node.namespace, *WANTED)
    (found,) = report.having("ok", "instances", r"pid \d+ \(this program\) holds 10.96.0.2")
    assert found["facts"]["pid"] == daemon.process.pid
    assert report.alarms() == []
    report = doctor(node.namespace, *WANTED, "--port=8443")
    assert report.having("warning", "instances", "with --port=443; this check is for --interface=lo --port=8443")
    assert daemon.stop() == 0


def test_an_instance_that_is_configured_by_variables(node_with: Callable[..., Node], execute: Start) -> None:
    node = node_with("", "nft", *WANTED)
    daemon = execute(SIDECAR_IP_ADDRESS="10.96.0.9, 10.96.0.2", SIDECAR_INTERFACE="lo", SIDECAR_PORT="9443")
    daemon.wait_for("in sync: ")
    report = doctor(node.namespace, *WANTED)
    assert report.having("warning", "instances", "holds 10.96.0.2 with --port=9443")
    assert daemon.stop() == 0


def test_the_go_sidecar(node_with: Callable[..., Node], tmp_path: Path) -> None:
    node = node_with("", "nft", *WANTED)
    binary = tmp_path / "apiserver-proxy-sidecar"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", binary)  # its name is what tells
    process = node.namespace.start(str(binary), "60")
    report = doctor(node.namespace, *WANTED)
    process.kill()
    process.communicate()
    (found,) = report.having("note", "instances", r"not Python: the Go sidecar\?")
    assert found["facts"]["pid"] == process.pid


@pytest.mark.any_user
def test_from_within_a_container(node_with: Callable[..., Node], execute: Start) -> None:
    """With the node's network, but processes of its own."""
    in_container = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    node = node_with("", "nft", *WANTED)
    node.sh("rm -rf /run/apiserver-proxy-sidecar")
    report = doctor(node.namespace, *WANTED, prefix=in_container)
    assert report.having("ok", "listener", "^a process that cannot be seen from here .* listens on 10.96.0.2:443$")
    assert report.having("unknown", "instances", "only the processes of this container can be seen")
    assert report.alarms() == []
    daemon = execute(*WANTED)
    daemon.wait_for("in sync: ")
    report = doctor(node.namespace, *WANTED, prefix=in_container)
    assert report.having("ok", "instances", "an instance that cannot be seen from here holds 10.96.0.2")
    assert daemon.stop() == 0


def test_nobody_repairs_a_node_that_is_broken(node_with: Callable[..., Node]) -> None:
    node = node_with("", "nft", *WANTED)
    node.sh("ip address delete 10.96.0.2/32 dev lo")
    report = doctor(node.namespace, *WANTED)
    assert report.having("warning", "instances", "no instance is running") or sees_others(report)


@pytest.mark.parametrize(
    ("how", "flags", "code"),
    [
        (f"$ipt {OURS['INPUT'].format('-A')}", (), 1),
        ("ip address add 10.96.0.2/32 dev link0", (), 0),
        ("ip address add 10.96.0.2/32 dev link0", ("--remove-duplicates",), 1),
        ("$ipt -t raw -I PREROUTING -j ACCEPT", (), 0),
        ("$ipt -t raw -I PREROUTING -j ACCEPT", ("--rule-position=insert",), 1),
        ("ip address delete 10.96.0.2/32 dev lo; ip address add 10.96.0.2/32 dev lo scope global", (), 0),
        (f"$other {OURS['INPUT'].format('-A')}", (), 0),
        ("ip -6 address change fd00:10:96::2/128 dev lo preferred_lft forever", ("--ip-address=fd00:10:96::2",), 1),
        ("ip address delete 10.96.0.2/32 dev lo", (), 1),
    ],
)
def test_what_run_would_repair_has_the_exit_code_of_status(
    node_with: Callable[..., Node], how: str, flags: tuple[str, ...], code: int
) -> None:
    wanted = (*(flags if "--ip" in str(flags) else (*WANTED, *flags)), "--iptables-backend=nft")
    node = node_with(LINKS, "nft", *wanted)
    node.sh(how)
    status = program.fork(node.namespace, "status", *wanted)
    first = status.communicate(timeout=HANG)[0].splitlines()[0]
    report = doctor(node.namespace, *wanted)
    assert (status.returncode, report.exit) == (code, code), (first, report.summary)


# What the node lacks, and what cannot be seen


def test_without_the_capability(node_with: Callable[..., Node]) -> None:
    node = node_with("", "nft", *WANTED)
    without = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
    report = doctor(node.namespace, *WANTED, prefix=without)
    (found,) = report.having("fault", "privileges", "CAP_NET_ADMIN is missing")
    assert "add NET_ADMIN to the container's capabilities" in found["remedy"]
    assert report.having("unknown", "rules", "could not be listed")
    assert report.having("ok", "address", "10.96.0.2/32 on lo")
    assert report.exit == 3


def test_without_what_legacy_needs_besides(node_with: Callable[..., Node]) -> None:
    node = node_with("", "legacy", *WANTED)
    without = ("setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw")
    report = doctor(node.namespace, *WANTED, "--iptables-backend=legacy", prefix=without)
    assert report.having("fault", "privileges", "CAP_NET_RAW is missing: rules of the legacy backend need it")
    assert report.exit == 3


@pytest.mark.any_user
def test_as_an_ordinary_user(node_with: Callable[..., Node]) -> None:
    node = node_with("", "nft", *WANTED)
    user = ("--reuid=65534", "--regid=65534", "--clear-groups") if IS_ROOT else ()
    nobody = ("setpriv", *user, "--inh-caps=-all", "--bounding-set=-all")
    if subprocess.run(
        [*node.namespace.prefix, *nobody, PROGRAM, "version"], capture_output=True, check=False
    ).returncode:
        pytest.skip("another user cannot read this program")
    done = run(node.namespace, *WANTED, prefix=nobody)
    assert "Traceback" not in done.stdout
    assert done.returncode == 3
    lines = done.stdout.splitlines()
    assert re.match(r"1 fault, .*unknown; first: privileges: CAP_NET_ADMIN is missing", lines[0])
    unseen = {line.split()[1] for line in lines if line.startswith("?")}
    assert unseen >= {"backend", "rules", "taken", "policies"}
    assert ("conntrack" in unseen) or not Path("/proc/net/nf_conntrack").exists()


@pytest.mark.parametrize("missing", ["ip", "iptables-nft", "iptables-nft-restore"])
def test_a_command_that_is_missing(namespace: Namespace, tmp_path: Path, missing: str) -> None:
    namespace.run("sh", "-c", "cp $(readlink -f $(command -v ip)) /run/ip && cp -dR /usr/sbin /run/")
    namespace.run("mount", "--bind", "/dev/null", namespace.run("readlink", "-f", "/usr/bin/ip").strip())
    namespace.run("mount", "-t", "tmpfs", "tmpfs", "/usr/sbin")
    for name in ("iptables-nft", "iptables-nft-restore"):
        if name != missing:
            (tmp_path / name).symlink_to("/run/sbin/xtables-nft-multi")
    if missing != "ip":
        (tmp_path / "ip").symlink_to("/run/ip")
    prefix = ("/usr/bin/env", f"PATH={tmp_path}")
    report = doctor(namespace, *WANTED, "--iptables-backend=nft", prefix=prefix)
    (found,) = report.having("fault", "commands", f"^{missing} is not installed$")
    assert found["remedy"].startswith("apt-get install")
    assert report.exit == 3


def test_a_release_that_is_known_to_be_bad(node_with: Callable[..., Node], fake: Fake) -> None:
    node = node_with("", "nft", *WANTED)
    env = fake(
        "iptables-nft", 'case "$*" in *--version*) echo "iptables v1.8.10 (nf_tables)";; *) exec $real "$@";; esac'
    )
    report = doctor(node.namespace, *WANTED, "--iptables-backend=nft", env=env)
    assert report.having("warning", "backend", r"iptables-nft 1\.8\.10: its -C does not find rules")
    assert report.exit == 0


def test_what_hangs_or_talks_nonsense_is_unknown_and_the_rest_goes_on(
    node_with: Callable[..., Node], fake: Fake
) -> None:
    node = node_with("", "nft", *WANTED)
    flags = (*WANTED, "--iptables-backend=nft")
    report = doctor(node.namespace, *flags, env=fake("ip", f"sleep {FOREVER}"))
    assert report.having("unknown", "address", "ip does not answer within 1 s: `ip -V`")
    assert report.having("ok", "rules", "5 of 5")
    assert report.having("ok", "tls", "certificate for")
    assert report.exit == 1
    report = doctor(node.namespace, *flags, env=fake("ip", "echo nonsense"))
    assert report.having("unknown", "interface", "cannot be parsed")
    assert report.exit == 1


# Healthy nodes

OTHERS: Final = sorted(path.stem for path in NODES.glob("*.rules"))


@pytest.mark.parametrize(
    ("rules", "backend"), sweep(product(OTHERS, BACKENDS), list(zip(OTHERS, cycle(BACKENDS), strict=False)))
)
def test_no_false_alarm_with_rules_of_others(node_with: Callable[..., Node], rules: str, backend: str) -> None:
    flags = (*WANTED, *(["--rule-position=insert"] if rules == "firewalld" else []), f"--iptables-backend={backend}")
    restore = f"iptables-{backend}-restore --noflush < {NODES / f'{rules}.rules'}"
    for before, after in ((restore, "true"), ("true", restore)):
        node = node_with(before, backend, *flags)
        node.sh(after)
        for each in (flags, WITHOUT_RULES if rules != "firewalld" else flags):
            report = doctor(node.namespace, *each, f"--iptables-backend={backend}")
            assert (report.alarms(), report.exit) == ([], 0)
        node.stop_listening()
        node.sh("for t in raw nat filter; do $ipt -t $t -F; $ipt -t $t -X; done; ip address delete 10.96.0.2/32 dev lo")


def test_untracked_traffic_is_not_taken_by_nat(node_with: Callable[..., Node]) -> None:
    node = node_with("", "nft", *WANTED)
    node.sh(f"$ipt -t nat -A OUTPUT {DNAT}")
    report = doctor(node.namespace, *WANTED)
    assert report.having("note", "taken", "without our NOTRACK rules")
    assert report.alarms() == []


@pytest.mark.any_user
def test_both_families(node_with: Callable[..., Node], backend: str) -> None:
    flags = ("--ip-address=10.96.0.2,fd00:10:96::2", "--setup-iptables", f"--iptables-backend={backend}")
    node = node_with("", backend, *flags)
    report = doctor(node.namespace, *flags)
    assert (report.alarms(), report.exit) == ([], 0)
    assert report.having("ok", "rules", "5 of 5 IPv6 rules")
    assert report.having("ok", "connect", r"^\[fd00:10:96::2\]:443 answers")


@pytest.mark.any_user
def test_it_changes_nothing(namespace: Namespace) -> None:
    def state() -> tuple[str, ...]:
        looks = ("ip -details address", "nft list ruleset", "ls -lR /run", "ip rule", "ip route show table all")
        tables = "cat /proc/net/ip_tables_names || true"  # for root of the node only
        return tuple(namespace.run("sh", "-c", look) for look in (*looks, tables))

    before = state()
    for backend in ("auto", "nft", "legacy") if IS_ROOT else ("auto", "nft"):
        doctor(namespace, *WANTED, f"--iptables-backend={backend}")
        assert state() == before


# The edge


def test_text_for_a_person(node_with: Callable[..., Node]) -> None:
    node = node_with("", "nft", *WANTED)
    done = run(node.namespace, *WANTED)
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"nothing wrong found( in what could be looked at; \d unknown)?", lines[0])
    assert {line[0] for line in lines[1:]} <= {"✓", "·", " ", "?"}
    assert "\x1b" not in done.stdout
    assert max(map(len, lines)) <= 100
    node.sh(f"$ipt {OURS['NOTRACK'].format('-D')}")
    done = run(node.namespace, *WANTED, prefix=("env", "PYTHONIOENCODING=ascii"))
    assert "\nX rules       missing: -t raw -A OUTPUT" in done.stdout
    assert done.stdout.startswith("1 fault")


def test_what_is_wrong_with_its_flags(namespace: Namespace) -> None:
    process = program.fork(namespace, "doctor", "--port=0", "--output=xml")
    stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (2, "")
    assert "--ip-address or SIDECAR_IP_ADDRESS is required" in stderr
    assert "--output=xml: unknown: write one of text, json" in stderr


def test_an_unknown_variable_is_a_warning(namespace: Namespace) -> None:
    report = doctor(namespace, *WANTED, env={"SIDECAR_PROT": "1"})
    assert report.having("warning", "settings", "unknown variable SIDECAR_PROT is ignored")


def test_a_verbose_look_shows_the_commands(namespace: Namespace) -> None:
    process = program.fork(namespace, "doctor", *WANTED, "-v=4")
    _, stderr = process.communicate()
    assert "`ip -json -details address show` exited with 0" in stderr
