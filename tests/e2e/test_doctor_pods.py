"""doctor on nodes with a pod: those on which the pod, the node or both do not reach the API server, and healthy ones.

The traffic is real (support/pod_node.py): a connection with TLS from the node and one from the pod, before the node is
broken, while it is, and once the remedy has been followed.
"""

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import pytest
from pytest_mock import MockerFixture

from sidecar.node.programs import is_installed
from support import program, proxy
from support.pod_node import BOTH, NODE, POD, PodNode, end
from support.program import PROGRAM, Sidecar
from support.waiting import HANG, until

NODES: Final = Path(__file__).parent / "nodes" / "with_pods"

IPV4: Final = ("--ip-address=10.96.0.2", "--setup-iptables")
IPV6: Final = ("--ip-address=fd00:10:96::2", "--setup-iptables")
WITHOUT_RULES: Final = IPV4[:1]

BACKENDS: Final = ("nft", "legacy")

_LEFT_OUT_EVERY: Final = 3  # rows
_FOR_ANY_USER: Final = 6  # of so many rows an ordinary user tries one

ONLY_POD: Final = frozenset((POD,))
ONLY_NODE: Final = frozenset((NODE,))

#: What the program that was not asked to set up rules is to be run with.
SET_UP: Final = ("--setup-iptables", "--rule-position=insert")


@dataclass
class Report:
    exit: int
    summary: str
    findings: list[dict[str, Any]]

    @property
    def first(self) -> str:
        """What the first line says, but for the numbers."""
        return self.summary.partition("; first: ")[2]

    def cause(self) -> dict[str, Any]:
        """Return the finding that the first line is about."""
        return next(each for each in self.findings if f"{each['topic']}: {each['found']}" == self.first)

    def commands(self) -> list[str]:
        """Return what the finding of the first line says to do, and those of its kind; none if it says it in words."""
        cause = self.cause()
        assert cause["commands"] or cause["remedy"]
        alike = [each for each in self.findings if (each["level"], each["topic"]) == (cause["level"], cause["topic"])]
        return list(dict.fromkeys(command for each in alike for command in each["commands"]))

    def noise(self) -> list[str]:
        """Return what a healthy node must not show; an ordinary user cannot see everything."""
        alarms = ("fault", "warning", "unknown") if os.geteuid() == 0 else ("fault", "warning")
        alarming = [each for each in self.findings if each["level"] in alarms]
        vague = [each for each in self.findings if re.search("perhaps|may (drop|take)|without effect", each["found"])]
        return [f"{each['topic']}: {each['found']}" for each in (*alarming, *vague)]


def doctor(node: PodNode, *flags: str) -> Report:
    process = program.fork(node.node, "doctor", *flags, f"--iptables-backend={node.backend}", "--output=json")
    stdout, stderr = process.communicate(timeout=HANG)
    assert stderr == ""
    shown = json.loads(stdout)
    assert shown["exit"] == process.returncode
    return Report(shown["exit"], shown["summary"], shown["findings"])


def is_in_order(node: PodNode, *flags: str) -> None:
    """Hold that doctor finds nothing wrong, and all five rules."""
    report = doctor(node, *flags)
    assert (report.noise(), report.exit) == ([], 0)
    assert any("5 of 5 IPv" in each["found"] for each in report.findings)


@pytest.fixture(autouse=True)
def unhurried(mocker: MockerFixture) -> None:
    """Let doctor take its time: here it is tried what it finds, however busy the machine is."""
    for limit in ("node.brief.LONGEST_LOOK", "doctor.view.PATIENCE", "doctor.listener.PATIENCE"):
        mocker.patch(f"sidecar.{limit}", HANG)  # its forked child has the same


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    proxy.make_certificate(folder / "valid", names="DNS:kubernetes,IP:10.96.0.2,IP:fd00:10:96::2")
    proxy.make_certificate(folder / "other", names="DNS:www.example.org")
    return folder


@pytest.fixture
def node_with(_namespaces: None, certificates: Path) -> Iterator[Callable[..., PodNode]]:
    """Return what makes a node with a pod."""
    with ExitStack() as stack:

        def made(backend: str, link: str = "cali0") -> PodNode:
            return stack.enter_context(PodNode(certificates / "valid", backend, link))

        yield made


def cases(rows: Sequence["Broken | Healthy"]) -> list[object]:
    """Return the rows with a backend: those that depend on it have one by turns, and both with --thorough.

    Without it, some are left out, as the unit tests have their kind. An ordinary user tries some of them.
    """
    chosen: list[object] = []
    for number, (row, turn) in enumerate(zip(rows, cycle(BACKENDS), strict=False)):
        for backend in BACKENDS if row.both else BACKENDS[:1]:
            is_left_out = number % _LEFT_OUT_EVERY == _LEFT_OUT_EVERY - 1
            marks = [pytest.mark.thorough] if is_left_out or (row.both and backend != turn) else []
            if row.needs and not is_installed(row.needs):
                marks.append(pytest.mark.skip(f"not installed: {row.needs}"))
            if number % _FOR_ANY_USER == 0:
                marks.append(pytest.mark.any_user)
            chosen.append(pytest.param(row, backend, id=f"{row.name}-{backend}", marks=marks))
    return chosen


# Broken nodes


def guard(chains: str, family: str = "inet") -> str:
    """Return the script that adds a table `guard` of nft's own, with these chains, sets and maps."""
    return f"nft -f - <<'END'\ntable {family} guard {{\n{chains}\n}}\nEND\n"


@dataclass(frozen=True)
class Broken:
    """On a node in sync `how` cuts somebody off; doctor's first line says why, and what to do about it mends it."""

    name: str
    how: str
    cut: frozenset[str]
    says: str
    """What is in the first line: the cause, in words that do not depend on how it is put."""

    undo: str = ""
    """What a person does whom a remedy tells it in words; by default, the rule or the table of `how` is removed."""

    exit: int = 1
    flags: tuple[str, ...] = IPV4
    then: tuple[str, ...] = ()
    """Flags that are part of the remedy."""

    still: str = ""
    """What is told once that is done, all the same."""

    before: str = ""
    link: str = "cali0"
    both: bool = False
    """Whether it depends on the backend."""

    needs: str = ""
    """A program without which it is skipped."""

    def undone(self) -> str:
        """Return the script that a remedy in words amounts to."""
        if self.undo:
            return self.undo
        if tables := re.findall(r"table (\w+) guard", self.how):
            return "\n".join(f"nft delete table {family} guard" for family in tables)
        return re.sub(" -[IA] ", " -D ", self.how)


#: What would take the node off the network, or is not doctor's to remove.
HARMFUL: Final = re.compile(r"rule del.* lookup (local|main|default)|route del\S* default| -F\b|\bflush\b|delete table")

#: What a remedy in words amounts to that asks for the rules.
SETTING_UP: Final = "$run --daemon=false " + " ".join(SET_UP)

#: As many hosts as lists of banned ones have; none of them is on this node.
MANY: Final = ", ".join(f"203.{number // 250}.113.{number % 250}" for number in range(5000))

#: The pod has a second link, by which it is answered.
SECOND_LINK: Final = """
ip link add cali1 type veth peer name eth1 address 02:00:00:00:00:07
ip link set cali1 up
ip link set eth1 netns $pod
$in_pod ip link set eth1 up
ip neighbour add 10.244.1.5 lladdr 02:00:00:00:00:07 dev cali1
ip route replace 10.244.1.5 dev cali1
ip neighbour add fd00:10:244::5 lladdr 02:00:00:00:00:07 dev cali1
ip route replace fd00:10:244::5 dev cali1
"""

#: The pod's address is one of those that carriers share (RFC 6598), as in many clusters on AWS.
SHARED_ADDRESS: Final = """
$in_pod ip address add 100.64.1.5/32 dev eth0
$in_pod ip route replace default via 169.254.1.1 src 100.64.1.5
ip route add 100.64.1.5 dev cali0
ip neighbour add 100.64.1.5 lladdr 02:00:00:00:00:05 dev cali0
ip route delete 10.244.1.5; ip neighbour delete 10.244.1.5 dev cali0
$in_pod ip address delete 10.244.1.5/32 dev eth0
"""

#: Prints a rule set of firewalld without the pods.
NO_ZONE: Final = "sed '/saddr 10.244/d; /saddr fd00/d; /cali0/d'"

NODES_THAT_ARE_BROKEN: Final = (
    # Rules of iptables that only pods meet, before our ACCEPT
    Broken("drop by source", "$ipt -I INPUT -s 10.244.0.0/16 -p tcp --dport 443 -j DROP", ONLY_POD,
           "-s 10.244.0.0/16 .*-j DROP", both=True),
    Broken("drop by interface", "$ipt -I INPUT -i cali0 -j DROP", ONLY_POD, "-i cali0 -j DROP", both=True),
    Broken("drop by a prefix of interfaces", "$ipt -I INPUT -i cali+ -p tcp -m multiport --dports 80,443 -j DROP",
           ONLY_POD, r"-i cali\+ .*-j DROP", both=True),
    Broken("reject but for lo", "$ipt -I INPUT ! -i lo -d 10.96.0.0/12 -j REJECT", ONLY_POD,
           "(! -i lo .*|-d 10.96.0.0/12 .*)-j REJECT", both=True),
    Broken("drop of one pod", "$ipt -I INPUT -s 10.244.1.5 -j DROP", ONLY_POD, "-s 10.244.1.5/32 -j DROP"),
    Broken("drop on a bridge", "$ipt -I INPUT -i cni0 -p tcp --syn -j DROP", ONLY_POD, "-i cni0 .*-j DROP", link="cni0",
           both=True),
    Broken("drop of a range", "$ipt -I INPUT -m iprange --src-range 10.244.0.0-10.244.3.255 -j DROP", ONLY_POD,
           "--src-range 10.244.0.0-10.244.3.255 -j DROP"),
    Broken("drop of what is local", "$ipt -I INPUT -i cali+ -m addrtype --dst-type LOCAL -j DROP", ONLY_POD,
           "--dst-type LOCAL -j DROP"),
    Broken("drop of what is not tracked", "$ipt -I INPUT -i cali+ -m conntrack --ctstate INVALID,UNTRACKED -j DROP",
           ONLY_POD, "--ctstate INVALID,UNTRACKED -j DROP", both=True),
    Broken("drop of what is new", "$ipt -I INPUT -i cali+ -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP",
           ONLY_POD, "! --ctstate RELATED,ESTABLISHED -j DROP", both=True),
    Broken("drop by a mark", "$ipt -t mangle -I PREROUTING -i cali0 -j MARK --set-mark 0x10; "
           "$ipt -I INPUT -m mark --mark 0x10/0x10 -j DROP", ONLY_POD, "--mark 0x10/0x10 -j DROP"),
    Broken("goto", "$ipt -N PODS; $ipt -A PODS -p tcp -m multiport --dports 22,443 -j REJECT; $ipt -A PODS -j ACCEPT; "
           "$ipt -I INPUT -s 10.244.0.0/16 -g PODS", ONLY_POD, "-A PODS .*-j REJECT",
           "$ipt -D INPUT -s 10.244.0.0/16 -g PODS", both=True),
    Broken("dispatch by interface", "$ipt -N HOSTS; $ipt -N FROM; $ipt -N LINK; $ipt -A HOSTS -j FROM; "
           "$ipt -A HOSTS -j ACCEPT; $ipt -A FROM -i cali0 -g LINK; $ipt -A FROM -j DROP; "
           "$ipt -A LINK -p udp --dport 53 -j RETURN; $ipt -A LINK -j DROP; $ipt -I INPUT -i cali+ -g HOSTS",
           ONLY_POD, "-A LINK -j DROP", "$ipt -D INPUT -i cali+ -g HOSTS", both=True),
    Broken("drop in raw", "$ipt -t raw -I PREROUTING -i cali0 -p tcp --dport 443 -j DROP", ONLY_POD,
           "-A PREROUTING -i cali0 .*-j DROP.* in raw", both=True),
    Broken("drop in mangle, as it comes in", "$ipt -t mangle -I PREROUTING -s 10.244.1.0/24 -d 10.96.0.0/12 -j DROP",
           ONLY_POD, "-A PREROUTING -s 10.244.1.0/24 .*-j DROP.* in mangle", both=True),
    Broken("drop in mangle, for this node", "$ipt -t mangle -I INPUT -i cali+ -p tcp --dport 443 -j DROP", ONLY_POD,
           r"-A INPUT -i cali\+ .*-j DROP.* in mangle"),
    Broken("drop in security", "$ipt -t security -I INPUT -s 10.244.0.0/16 -j DROP", ONLY_POD,
           "-A INPUT -s 10.244.0.0/16 -j DROP.* in security", both=True),
    Broken("drop in security, from anywhere", "$ipt -t security -I INPUT -p tcp --dport 443 -j DROP", BOTH,
           "-A INPUT -p tcp .*-j DROP.* in security", both=True),
    Broken("drop by the hop limit", "$ipt -I INPUT -i cali+ -m ttl --ttl-gt 63 -j DROP", ONLY_POD,
           "--ttl-gt 63 -j DROP"),
    Broken("tracked before our rules", "$ipt -t raw -I PREROUTING -i cali0 -j CT --zone 7; "
           "$ipt -I INPUT -i cali+ -m conntrack --ctstate NEW -j DROP", ONLY_POD, "--ctstate NEW -j DROP", both=True),
    Broken("drop in one of 3,000 chains", "(echo '*filter'; for i in $(seq 3000); do echo \":C$i -\"; "
           "echo \"-I INPUT -i cali+ -j C$i\"; done; echo '-A C3000 -s 10.244.0.0/16 -j DROP'; echo COMMIT) | "
           "$ipt-restore --noflush", ONLY_POD, "-A C3000 -s 10.244.0.0/16 -j DROP", both=True),
    Broken("drop of a set", "ipset create banned hash:net; ipset add banned 10.244.0.0/16; "
           "$ipt -I INPUT -m set --match-set banned src -j DROP", ONLY_POD, "--match-set banned src -j DROP",
           "$ipt -D INPUT -m set --match-set banned src -j DROP", needs="ipset"),
    Broken("IPv6 drop by source", "$ipt6 -I INPUT -s fd00:10:244::/48 -p tcp --dport 443 -j DROP", ONLY_POD,
           "-s fd00:10:244::/48 .*-j DROP", flags=IPV6, both=True),
    Broken("IPv6 drop by interface", "$ipt6 -I INPUT -i cali+ -j DROP", ONLY_POD, r"-i cali\+ -j DROP", flags=IPV6),
    Broken("IPv6 drop in raw", "$ipt6 -t raw -I PREROUTING -i cali0 -p tcp --dport 443 -j DROP", ONLY_POD,
           "-A PREROUTING -i cali0 .*-j DROP.* in raw", flags=IPV6, both=True),

    # The replies
    Broken("replies rejected by interface", "$ipt -I OUTPUT -o cali0 -p tcp --sport 443 -j REJECT", ONLY_POD,
           "-A OUTPUT -o cali0 .*-j REJECT", both=True),
    Broken("replies dropped by destination", "$ipt -I OUTPUT -d 10.244.0.0/16 -j DROP", ONLY_POD,
           "-A OUTPUT -d 10.244.0.0/16 -j DROP", both=True),
    Broken("replies dropped in raw", "$ipt -t raw -I OUTPUT -d 10.244.0.0/16 -p tcp --sport 443 -j DROP", ONLY_POD,
           "-A OUTPUT -d 10.244.0.0/16 .*-j DROP.* in raw"),
    Broken("replies dropped in mangle, on the way out", "$ipt -t mangle -I POSTROUTING -o cali+ -p tcp --sport 443 "
           "-j DROP", ONLY_POD, r"-A POSTROUTING -o cali\+ .*-j DROP.* in mangle", both=True),
    Broken("replies dropped in security", "$ipt -t security -I OUTPUT -o cali0 -j DROP", ONLY_POD,
           "-A OUTPUT -o cali0 -j DROP.* in security"),
    Broken("policy of OUTPUT without rules", "$ipt -A OUTPUT -o lo -j ACCEPT; $ipt -A OUTPUT -o eth0 -j ACCEPT; "
           "$ipt -P OUTPUT DROP", ONLY_POD, "-P OUTPUT DROP", SETTING_UP, flags=WITHOUT_RULES, then=SET_UP, both=True),
    Broken("IPv6 replies dropped", "$ipt6 -I OUTPUT -d fd00:10:244::/48 -j DROP", ONLY_POD,
           "-A OUTPUT -d fd00:10:244::/48 -j DROP", flags=IPV6, both=True),

    # The node alone
    Broken("reject by owner", "$ipt -I OUTPUT -d 10.96.0.2 -p tcp --dport 443 -m owner --uid-owner 0 -j REJECT",
           ONLY_NODE, "-m owner --uid-owner 0 -j REJECT", both=True),
    Broken("drop in OUTPUT", "$ipt -I OUTPUT -o lo -d 10.96.0.0/12 -j DROP", ONLY_NODE,
           "-A OUTPUT -d 10.96.0.0/12 -o lo -j DROP", both=True),

    # Without rules of ours, which would let it in
    Broken("policy of INPUT behind ESTABLISHED", "$ipt -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; "
           "$ipt -A INPUT -i lo -j ACCEPT; $ipt -P INPUT DROP", ONLY_POD, "-P INPUT DROP", SETTING_UP,
           flags=WITHOUT_RULES, then=SET_UP, both=True),
    Broken("IPv6 policy of INPUT behind ESTABLISHED", "$ipt6 -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED "
           "-j ACCEPT; $ipt6 -A INPUT -i lo -j ACCEPT; $ipt6 -A INPUT -p icmpv6 -j ACCEPT; $ipt6 -P INPUT DROP",
           ONLY_POD, "-P INPUT DROP", SETTING_UP, flags=IPV6[:1], then=SET_UP, both=True),
    Broken("last rule of INPUT", "$ipt -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; "
           "$ipt -A INPUT -i lo -j ACCEPT; $ipt -A INPUT -p tcp --dport 22 -j ACCEPT; "
           "$ipt -A INPUT -j REJECT --reject-with icmp-host-prohibited", ONLY_POD,
           "-A INPUT -j REJECT --reject-with icmp-host-prohibited", SETTING_UP, flags=WITHOUT_RULES, then=SET_UP,
           both=True),
    Broken("rules only in the other backend", "for t in raw filter; do $ipt-save -t $t | $other-restore --noflush; "
           "$ipt -t $t -F; done; $ipt -A INPUT -i lo -j ACCEPT; "
           "$ipt -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; $ipt -P INPUT DROP", ONLY_POD,
           "missing: -t raw|has our rules|other backend|-P INPUT DROP", f"{SETTING_UP}; $other -t raw -F; $other -F",
           both=True, still=".*has our rules, too.*"),

    # Who takes the traffic first, without NOTRACK
    Broken("DNAT by interface", "$ipt -t nat -A PREROUTING -i cali0 -p tcp --dport 443 -j DNAT "
           "--to-destination 192.0.2.99:443", ONLY_POD, "-i cali0 .*-j DNAT", flags=WITHOUT_RULES, both=True),
    Broken("DNAT by source", "$ipt -t nat -N PORTAL; $ipt -t nat -A PORTAL -p tcp --dport 443 -j DNAT "
           "--to-destination 192.0.2.99:443; $ipt -t nat -I PREROUTING -s 10.244.0.0/16 -j PORTAL", ONLY_POD,
           "-A PORTAL .*-j DNAT", "$ipt -t nat -D PREROUTING -s 10.244.0.0/16 -j PORTAL", flags=WITHOUT_RULES,
           both=True),
    Broken("REDIRECT by a prefix of interfaces", "$ipt -t nat -A PREROUTING -i cali+ -p tcp --dport 443 -j REDIRECT "
           "--to-ports 8443", ONLY_POD, r"-i cali\+ .*-j REDIRECT", flags=WITHOUT_RULES, both=True),
    Broken("IPv6 DNAT by interface", "$ipt6 -t nat -A PREROUTING -i cali0 -p tcp --dport 443 -j DNAT "
           "--to-destination [fd00:192::99]:443", ONLY_POD, "-i cali0 .*-j DNAT",
           flags=IPV6[:1]),
    Broken("TPROXY", "$ipt -t mangle -I PREROUTING -i cali0 -p tcp --dport 443 -j TPROXY --on-port 15001 "
           "--tproxy-mark 0x1/0x1", ONLY_POD, "-i cali0 .*-j TPROXY", both=True),
    Broken("TPROXY of all", "$ipt -t mangle -N PROXY; $ipt -t mangle -A PROXY -p tcp --dport 443 -j TPROXY "
           "--on-port 15001 --on-ip 127.0.0.1; $ipt -t mangle -I PREROUTING -j PROXY", BOTH,
           "-A PROXY .*-j TPROXY", "$ipt -t mangle -D PREROUTING -j PROXY", both=True),

    # Tables of nft itself, which rules of iptables cannot open: an ACCEPT ends its own base chain only
    Broken("nft policy drop but for lo", guard("""chain input { type filter hook input priority filter; policy drop;
           iifname lo accept; ct state established,related accept; }"""), ONLY_POD, "inet guard", both=True),
    Broken("nft policy drop but for the network of the nodes", guard("""chain input {
           type filter hook input priority filter; policy drop; iif lo accept; ct state vmap { established : accept,
           related : accept, invalid : drop }; ip saddr 192.0.2.0/24 tcp dport 443 accept; }"""), ONLY_POD,
           "inet guard"),
    Broken("nft policy drop of all", guard("""chain input { type filter hook input priority filter; policy drop;
           iifname eth0 accept; }"""), BOTH, "inet guard"),
    Broken("nft reject by interface", guard("""chain input { type filter hook input priority filter;
           iifname "cali*" tcp dport 443 reject with tcp reset; }""", "ip"), ONLY_POD, "ip guard"),
    Broken("nft reject in a chain", guard("""chain https { counter; ip saddr 10.244.0.0/16 log prefix "no " reject; }
           chain input { type filter hook input priority filter; tcp dport 443 jump https; }"""), ONLY_POD,
           "inet guard"),
    Broken("nft goto in goto", guard("""chain last { drop; }
           chain second { ip daddr 10.96.0.0/12 goto last; accept; }
           chain first { tcp dport { 22, 443, 10250 } goto second; accept; }
           chain input { type filter hook input priority filter; iifname != { "lo", "eth0" } goto first; accept; }"""),
           ONLY_POD, "inet guard"),
    Broken("nft verdict map", guard("""chain pods { tcp dport { 22, 80, 443 } drop; }
           chain input { type filter hook input priority filter;
           iifname vmap { "lo" : accept, "eth0" : accept, "cali0" : goto pods }; }"""), ONLY_POD, "inet guard"),
    Broken("nft verdict map by name", guard("""map verdicts { type ipv4_addr : verdict; flags interval;
           elements = { 10.244.0.0/16 : drop, 192.0.2.0/24 : accept }; }
           chain input { type filter hook input priority filter; ip saddr vmap @verdicts; }"""), ONLY_POD,
           "inet guard"),
    Broken("nft verdict map of addresses and ports", guard("""map services {
           type ipv4_addr . inet_proto . inet_service : verdict; elements = { 10.96.0.2 . tcp . 443 : goto refused,
           10.96.0.10 . udp . 53 : accept }; }
           chain refused { iifname != lo reject; }
           chain input { type filter hook input priority filter; ip daddr . meta l4proto . th dport vmap @services; }
           """), ONLY_POD, "inet guard"),
    Broken("nft set of pairs", guard("""chain input { type filter hook input priority filter;
           iifname . tcp dport { "cali0" . 443, "cali0" . 22 } drop; }"""), ONLY_POD, "inet guard"),
    Broken("nft set of 5,000 that holds the pod", guard(f"""set banned {{ type ipv4_addr;
           elements = {{ {MANY}, 10.244.1.5 }}; }}
           chain input {{ type filter hook input priority filter; ip saddr @banned drop; }}"""), ONLY_POD,
           "inet guard.*banned|banned.*inet guard"),
    Broken("nft set of networks that holds the pods", guard("""set private { type ipv4_addr; flags interval;
           elements = { 172.16.0.0/12, 10.240.0.0-10.247.255.255, 198.51.100.0/24 }; }
           chain input { type filter hook input priority filter; iifname != lo ip saddr @private drop; }"""), ONLY_POD,
           "inet guard"),
    Broken("nft that drops what is new, without rules of ours", guard("""chain input {
           type filter hook input priority filter; iif != lo ct state new drop; }"""), ONLY_POD, "inet guard",
           flags=WITHOUT_RULES),
    Broken("nft that drops what is not established", guard("""chain input { type filter hook input priority filter;
           iif != lo ct state != { established, related } drop; }"""), ONLY_POD, "inet guard"),
    Broken("nft that drops what is not tracked", guard("""chain input { type filter hook input priority filter;
           ct state untracked drop; }"""), BOTH, "inet guard"),
    Broken("nft that drops by a mark", guard("""chain early { type filter hook prerouting priority mangle;
           ip saddr 10.244.0.0/16 meta mark set 0x20; }
           chain input { type filter hook input priority filter; meta mark & 0x20 == 0x20 drop; }"""), ONLY_POD,
           "inet guard"),
    Broken("nft whose second base chain drops", guard("""chain first { type filter hook input priority -10;
           tcp dport 443 accept; }
           chain second { type filter hook input priority 10; ip saddr 10.244.0.0/16 drop; }"""), ONLY_POD,
           "inet guard"),
    Broken("nft before raw", guard("""chain early { type filter hook prerouting priority -450;
           iifname cali0 ip daddr 10.96.0.0/12 drop; }""", "ip"), ONLY_POD, "ip guard"),
    Broken("nft in raw", guard("""chain early { type filter hook prerouting priority raw; tcp dport 443
           iifname cali0 counter drop; }"""), ONLY_POD, "inet guard"),
    Broken("nft on the way out", guard("""chain out { type filter hook output priority filter;
           oifname "cali*" tcp sport 443 reject; }"""), ONLY_POD, "inet guard"),
    Broken("nft behind the routing of replies", guard("""chain out { type filter hook postrouting priority mangle;
           ip saddr 10.96.0.2 ip daddr 10.244.0.0/16 drop; }"""), ONLY_POD, "inet guard"),
    Broken("nft on the pod's link", guard("""chain link { type filter hook ingress device "cali0" priority 0;
           ip daddr 10.96.0.2 tcp dport 443 drop; }""", "netdev"), ONLY_POD, "netdev guard"),
    Broken("nft inet on the pod's link", guard("""chain link { type filter hook ingress device "cali0" priority 0;
           ip protocol tcp drop; }"""), ONLY_POD, "inet guard"),
    Broken("nft that sends it on by another device", guard("""chain link {
           type filter hook ingress device "cali0" priority 0; ip daddr 10.96.0.0/12 fwd to "eth0"; }""", "netdev"),
           ONLY_POD, "netdev guard"),
    Broken("nft redirect", guard("""chain nat { type nat hook prerouting priority dstnat;
           iifname cali0 tcp dport 443 redirect to :8443; }"""), ONLY_POD, "inet guard", flags=WITHOUT_RULES),
    Broken("nft dnat by a map", guard("""chain nat { type nat hook prerouting priority dstnat;
           iifname != lo meta l4proto tcp dnat to ip daddr . tcp dport map { 10.96.0.2 . 443 : 192.0.2.99 . 6443 }; }
           """, "ip"), ONLY_POD, "ip guard", flags=WITHOUT_RULES),
    Broken("nft that hides the rules", "nft add table ip raw '{ flags dormant; }'; $ipt -t nat -A PREROUTING -i cali0 "
           "-p tcp --dport 443 -j DNAT --to-destination 192.0.2.99:443", ONLY_POD, "dormant",
           "nft add table ip raw"),
    Broken("nft IPv6 policy drop but for lo", guard("""chain input { type filter hook input priority filter;
           policy drop; iifname lo accept; ct state established,related accept; meta l4proto ipv6-icmp accept;
           meta nfproto ipv4 accept; }"""), ONLY_POD, "inet guard", flags=IPV6, both=True),
    Broken("nft IPv6 drop by source", guard("""chain input { type filter hook input priority filter;
           ip6 saddr fd00:10:244::/48 tcp dport 443 drop; }""", "ip6"), ONLY_POD, "ip6 guard", flags=IPV6),
    Broken("nft IPv6 on the pod's link", guard("""chain link { type filter hook ingress device "cali0" priority 0;
           ip6 daddr fd00:10:96::2 drop; }""", "netdev"), ONLY_POD, "netdev guard", flags=IPV6),

    Broken("nft that drops what comes in by another way", guard("""chain early {
           type filter hook prerouting priority raw; meta nfproto ipv6 fib saddr . iif oif missing drop; }"""),
           ONLY_POD, "inet guard", flags=IPV6, before=SECOND_LINK),

    # What others set up, where the pod or the address is not part of it (nodes/with_pods)
    Broken("ufw without rules of ours", "$ipt-restore --noflush < ufw.iptables", ONLY_POD, "-P INPUT DROP", SETTING_UP,
           flags=WITHOUT_RULES, then=SET_UP, both=True),
    Broken("ufw that denies the pods", "$ipt-restore --noflush < ufw.iptables; $ipt -D INPUT 1; "
           "$ipt -A INPUT -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j ACCEPT; "
           "$ipt -A ufw-user-input -s 10.244.0.0/16 -j DROP", ONLY_POD, "-A ufw-user-input -s 10.244.0.0/16 -j DROP",
           "$ipt -D ufw-user-input -s 10.244.0.0/16 -j DROP", both=True),
    Broken("firewalld with iptables without rules of ours", "$ipt-restore --noflush < ../firewalld.rules", ONLY_POD,
           "-A INPUT -j REJECT --reject-with icmp-host-prohibited", SETTING_UP, flags=WITHOUT_RULES, then=SET_UP,
           both=True),
    Broken("firewalld with the pods in no zone", f"{NO_ZONE} firewalld.nft | nft -f -", ONLY_POD, "inet firewalld",
           "nft insert rule inet firewalld filter_INPUT_ZONES iifname cali0 goto filter_IN_trusted", both=True),
    Broken("firewalld with the pods in no zone, without rules of ours", f"{NO_ZONE} firewalld.nft | nft -f -",
           ONLY_POD, "inet firewalld",
           "nft insert rule inet firewalld filter_INPUT_ZONES iifname cali0 goto filter_IN_trusted",
           flags=WITHOUT_RULES),
    Broken("firewalld for IPv6 with the pods in no zone", f"{NO_ZONE} firewalld.nft | nft -f -", ONLY_POD,
           "inet firewalld",
           "nft insert rule inet firewalld filter_INPUT_ZONES ip6 saddr fd00:10:244::/48 goto filter_IN_trusted",
           flags=IPV6),
    Broken("an administrator's nftables.conf without the pods", "nft -f administrator.nft; "
           "nft flush set inet filter pods", ONLY_POD, "inet filter", "nft add element inet filter pods "
           "{ 10.244.0.0/16 }", both=True),
    Broken("an administrator's nftables.conf for another bridge", "sed 's/\"cni0\"/\"cni1\"/' administrator.nft | "
           "nft -f -", ONLY_POD, "inet filter", "nft insert rule inet filter input iifname cni0 accept", link="cni0"),
    Broken("kube-proxy in mode nftables without rules of ours", "nft -f kube-proxy.nft", ONLY_NODE,
           "cluster-ips-check|10.96.0.0/12", SETTING_UP, flags=WITHOUT_RULES, then=SET_UP, both=True),
    Broken("Calico that closes the hosts to the pods", "sed '/DefaultEndpointToHostAction/s/ACCEPT/DROP/' "
           "calico.iptables | $ipt-restore --noflush", ONLY_POD, "-A cali-wl-to-host .*-j DROP",
           "$ipt -I cali-wl-to-host -d 10.96.0.2 -p tcp --dport 443 -j ACCEPT", both=True),
    Broken("Calico with a profile that allows nothing", "sed '/^-A cali-pro-kns.default/d' calico.iptables | "
           "$ipt-restore --noflush", ONLY_POD, "-A cali-fw-cali0 .*-j DROP",
           "$ipt -I cali-fw-cali0 -d 10.96.0.2 -p tcp --dport 443 -j RETURN", both=True),
    Broken("Calico in mode nftables that does not know the pod", "nft -f calico.nft; "
           "nft delete element ip calico filter-cali-fw-dispatch '{ cali0 }'", ONLY_POD,
           "ip calico|filter-cali-from-wl-dispatch", "nft add element ip calico filter-cali-fw-dispatch "
           "'{ cali0 : goto filter-cali-fw-cali0 }'"),
    Broken("fail2ban that has banned the pod", "$ipt-restore --noflush < fail2ban.iptables; "
           "$ipt -I f2b-recidive -s 10.244.1.5 -j DROP", ONLY_POD, "-A f2b-recidive -s 10.244.1.5/32 -j DROP",
           "$ipt -D f2b-recidive -s 10.244.1.5 -j DROP", both=True),
    Broken("fail2ban in nft that has banned the pod", "nft -f fail2ban.nft; "
           "nft add element inet f2b-table addr-set-recidive '{ 10.244.1.5 }'", ONLY_POD, "f2b-table",
           "nft delete element inet f2b-table addr-set-recidive '{ 10.244.1.5 }'"),
    Broken("Tailscale where the pod has an address of its network", "$ipt-restore --noflush < tailscale.iptables",
           ONLY_POD, "-A ts-input -s 100.64.0.0/10 ! -i tailscale0 -j DROP",
           "$ipt -I ts-input -s 100.64.1.5 -j RETURN", before=SHARED_ADDRESS, both=True),

    # Routes
    Broken("local table behind others", "ip rule add pref 32770 lookup local; ip rule del pref 0", BOTH,
           "(table|lookup) local", "ip rule add pref 0 lookup local"),
    Broken("IPv6 local table behind others", "ip -6 rule add pref 32770 lookup local; ip -6 rule del pref 0", BOTH,
           "(table|lookup) local", "ip -6 rule add pref 0 lookup local", flags=IPV6),
    Broken("rule by iif before the table local", "ip rule add pref 20 lookup local; ip rule del pref 0; "
           "ip rule add pref 10 iif cali0 lookup 100; ip route add default via 192.0.2.10 table 100", ONLY_POD,
           "iif cali0|cali0.* (dev eth0|192.0.2.10|table 100)", "ip rule add pref 0 lookup local"),
    Broken("rule by source before the table local", "ip rule add pref 20 lookup local; ip rule del pref 0; "
           "ip rule add pref 10 from 10.244.0.0/16 lookup 100; ip route add blackhole default table 100", ONLY_POD,
           "from 10.244|table 100|blackhole", "ip rule add pref 0 lookup local"),
    Broken("fwmark detour on the way in", "ip rule add pref 20 lookup local; ip rule del pref 0; "
           "ip rule add pref 10 fwmark 0x7 lookup 100; ip route add default via 192.0.2.10 table 100; "
           "$ipt -t mangle -A PREROUTING -i cali0 -p tcp --dport 443 -j MARK --set-mark 0x7", ONLY_POD,
           "fwmark 0x7|0x7.* table 100|-j MARK", "ip rule add pref 0 lookup local"),
    Broken("fwmark detour on the way back", "ip rule add pref 10 fwmark 0x7 lookup 100; "
           "ip route add default via 192.0.2.10 table 100; "
           "$ipt -t mangle -A OUTPUT -s 10.96.0.2 -j MARK --set-mark 0x7", ONLY_POD,
           "fwmark 0x7|0x7.* table 100|-j MARK", "ip rule delete pref 10"),
    Broken("from the address to a blackhole", "ip rule add pref 10 from 10.96.0.2 lookup 100; "
           "ip route add blackhole default table 100", ONLY_POD, "from 10.96.0.2|table 100|blackhole",
           "ip rule delete pref 10"),
    Broken("from the address to the uplink", "ip rule add pref 10 from 10.96.0.2 lookup 100; "
           "ip route add default via 192.0.2.10 table 100", ONLY_POD, "from 10.96.0.2|table 100|eth0",
           "ip rule delete pref 10"),
    Broken("prohibited to pods", "ip rule add pref 10 to 10.244.0.0/16 prohibit", ONLY_POD,
           "10.244.*prohibit|prohibit.*10.244|10.244.*Permission denied", "ip rule delete pref 10"),
    Broken("pods unreachable", "ip route replace unreachable 10.244.1.0/24; ip route delete 10.244.1.5", ONLY_POD,
           "10.244.1.*([uU]nreachable|No route)|[uU]nreachable.*10.244.1",
           "ip route delete unreachable 10.244.1.0/24; ip route add 10.244.1.5 dev cali0"),
    Broken("pods on a bridge in a blackhole", "ip rule add pref 10 to 10.244.1.0/24 lookup 100; "
           "ip route add blackhole 10.244.0.0/16 table 100", ONLY_POD, "10.244.*|table 100|blackhole",
           "ip rule delete pref 10", link="cni0"),
    Broken("strict rp_filter", "echo 1 > /proc/sys/net/ipv4/conf/cali0/rp_filter", ONLY_POD, "rp_filter",
           "echo 0 > /proc/sys/net/ipv4/conf/cali0/rp_filter", before=SECOND_LINK),
    Broken("drop of what comes in by another way", "$ipt -t raw -I PREROUTING -m rpfilter --invert -j DROP", ONLY_POD,
           "-m rpfilter --invert -j DROP", before=SECOND_LINK, both=True),
    Broken("fwmark of nft on the way back", guard("""chain out { type route hook output priority mangle;
           ip saddr 10.96.0.2 meta mark set 0x7; }""") + "ip rule add pref 10 fwmark 0x7 lookup 100; "
           "ip route add blackhole default table 100", ONLY_POD, "fwmark 0x7|table 100|inet guard",
           "ip rule delete pref 10"),
    Broken("rule by port before the table local", "ip rule add pref 20 lookup local; ip rule del pref 0; "
           "ip rule add pref 10 ipproto tcp dport 443 lookup 100; ip route add default via 192.0.2.10 table 100", BOTH,
           "dport 443|table 100", "ip rule add pref 0 lookup local"),
    Broken("IPv6 from the address to a blackhole", "ip -6 rule add pref 10 from fd00:10:96::2 lookup 100; "
           "ip -6 route add blackhole default table 100", ONLY_POD, "from fd00:10:96::2|table 100|blackhole",
           "ip -6 rule delete pref 10", flags=IPV6),
    Broken("IPv6 rule by iif before the table local", "ip -6 rule add pref 20 lookup local; ip -6 rule del pref 0; "
           "ip -6 rule add pref 10 iif cali0 lookup 100; ip -6 route add default via fd00:192::10 table 100", ONLY_POD,
           "iif cali0|cali0.* (dev eth0|fd00:192::10|table 100)", "ip -6 rule add pref 0 lookup local", flags=IPV6),

    # The proxy's way to the API server
    Broken("the proxy's way out dropped", "$ipt -I OUTPUT -d 192.0.2.10 -p tcp --dport 6443 -j DROP", BOTH, "upstream"),
    Broken("the proxy's way out rejected", "$ipt -I OUTPUT -d 192.0.2.0/24 -p tcp -j REJECT", BOTH, "upstream"),
    Broken("no default route", "ip route delete default; ip address delete 192.0.2.1/24 dev eth0", BOTH, "upstream",
           "ip address add 192.0.2.1/24 dev eth0; ip route add default via 192.0.2.10"),
)  # fmt: skip


@pytest.mark.parametrize(("broken", "backend"), cases(NODES_THAT_ARE_BROKEN))
def test_who_is_cut_off_is_named_first_and_the_remedy_mends_it(
    node_with: Callable[..., PodNode], broken: Broken, backend: str
) -> None:
    node = node_with(backend, broken.link)
    node.sh(broken.before)
    node.put_in_place(*broken.flags)
    assert node.reaches() == BOTH
    node.sh(f"cd {NODES}; {broken.how}", *broken.flags)
    assert node.reaches(broken.cut) == BOTH - broken.cut
    report = doctor(node, *broken.flags)
    assert re.search(broken.says, report.first), report.summary
    assert report.exit == broken.exit
    assert not any(HARMFUL.search(command) for each in report.findings for command in each["commands"])
    commands = report.commands()
    node.sh("\n".join(commands) or broken.undone(), *broken.flags)
    assert node.reaches() == BOTH
    mended = doctor(node, *broken.flags, *([] if commands else broken.then))
    assert re.fullmatch(broken.still, "\n".join(mended.noise()))
    assert mended.exit == 0


#: A proxy that takes what is diverted to it, and does not answer.
TRANSPARENT: Final = """
import socket, time
listener = socket.socket()
listener.setsockopt(socket.SOL_IP, 19, 1)  # IP_TRANSPARENT
listener.bind(("127.0.0.1", 15001))
listener.listen()
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("how", "says"),
    [
        pytest.param(
            "$ipt -t mangle -A PREROUTING -i cali0 -p tcp -m tcp --dport 443 -j TPROXY --on-port 15001 "
            "--on-ip 127.0.0.1 --tproxy-mark 0x1/0x1",
            "-j TPROXY",
            id="iptables",
        ),
        pytest.param(
            guard(
                """chain divert { type filter hook prerouting priority mangle;
                iifname cali0 tcp dport 443 tproxy to 127.0.0.1:15001 accept; }""",
                "ip",
            ),
            "ip guard",
            id="nft",
        ),
    ],
)
def test_a_transparent_proxy_that_takes_the_pods_traffic(
    node_with: Callable[..., PodNode], how: str, says: str
) -> None:
    node = node_with("nft")
    node.put_in_place(*IPV4)
    listener = node.start(sys.executable, "-c", TRANSPARENT)
    assert listener.stdout
    assert listener.stdout.readline() == "ready\n"
    assert node.reaches() == BOTH
    node.sh(how)
    assert node.reaches(ONLY_POD) == ONLY_NODE
    report = doctor(node, *IPV4)
    assert re.search(says, report.first), report.summary
    assert report.exit == 1
    node.sh("\n".join(report.cause()["commands"]) or Broken("", how, ONLY_POD, says).undone())
    assert node.reaches() == BOTH
    is_in_order(node, *IPV4)


# The path behind the address


@dataclass(frozen=True)
class Dead:
    """The node is in order, but what is behind the address is not."""

    name: str
    how: Callable[[PodNode], object]
    says: str
    haproxy: bool = False


PATHS_THAT_ARE_DEAD: Final = (
    Dead("the proxy is silent", lambda node: node.start_proxy("is silent"), "no (TLS )?answer"),
    Dead("the proxy resets", lambda node: node.start_proxy("resets"), "reset"),
    Dead("the proxy closes", lambda node: node.start_proxy("closes"), "closes?d?"),
    Dead("the proxy closes after a hello", lambda node: node.start_proxy("closes after a hello"), "hello|closes?d?"),
    Dead("the proxy speaks HTTP", lambda node: node.start_proxy("speaks HTTP"), "HTTP"),
    Dead("the API server is down", PodNode.stop_apiserver, "upstream"),
    Dead("the API server is down, behind HAProxy", PodNode.stop_apiserver, "upstream", haproxy=True),
    Dead("the control plane is unreachable, behind HAProxy",
         lambda node: node.control.run("ip", "link", "set", "eth0", "down"), "upstream", haproxy=True),
)  # fmt: skip


@pytest.mark.parametrize("dead", [pytest.param(each, id=each.name) for each in PATHS_THAT_ARE_DEAD])
def test_a_dead_path_behind_the_address_is_a_fault(
    node_with: Callable[..., PodNode], certificates: Path, dead: Dead
) -> None:
    if dead.haproxy and not is_installed("haproxy"):
        pytest.skip("not installed: haproxy")
    node = node_with("nft")
    node.put_in_place(*IPV4)
    if dead.haproxy:
        node.start_haproxy()
    assert node.reaches() == BOTH
    is_in_order(node, *IPV4)
    dead.how(node)
    assert node.reaches(BOTH) == set()
    report = doctor(node, *IPV4)
    assert re.match(r"1 fault(, \d+ unknown)?; first: ", report.summary), report.summary
    assert re.search(dead.says, report.first), report.summary
    assert "10.96.0.2:443" in report.first
    assert report.cause()["remedy"]
    assert not report.cause()["commands"]
    assert report.exit == 1
    node.control.run("ip", "link", "set", "eth0", "up")
    node.start_apiserver(certificates / "valid")
    if not dead.haproxy:
        node.start_proxy()
    until(lambda: node.reaches() == BOTH)
    is_in_order(node, *IPV4)


def test_a_certificate_for_another_name_is_a_warning(node_with: Callable[..., PodNode], certificates: Path) -> None:
    node = node_with("nft")
    node.put_in_place(*IPV4)
    node.start_apiserver(certificates / "other")
    assert node.reaches() == BOTH
    report = doctor(node, *IPV4)
    assert re.search("certificate.* (www.example.org|10.96.0.2)", report.first), report.summary
    assert report.cause()["level"] == "warning"
    assert report.exit == 0
    node.start_apiserver(certificates / "valid")
    is_in_order(node, *IPV4)


# A sidecar that runs, and does not repair


def node_with_sidecar(node_with: Callable[..., PodNode], backend: str) -> tuple[PodNode, Sidecar]:
    """Return a node on which a sidecar runs."""
    node = node_with(backend)
    node.put_in_place(*IPV4)
    sidecar = Sidecar(node.start(str(PROGRAM), *IPV4, f"--iptables-backend={backend}"))
    sidecar.wait_for("in sync")
    assert node.reaches() == BOTH
    return node, sidecar


THE_ADDRESS: Final = "ip address delete 10.96.0.2/32 dev lo"
A_RULE: Final = "$ipt -D INPUT -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j ACCEPT"
CLOSED: Final = (
    "$ipt -A INPUT -i lo -j ACCEPT; $ipt -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; "
    "$ipt -P INPUT DROP"
)
TAKEN_AWAY: Final = [
    pytest.param(THE_ADDRESS, "nft", id="address-nft"),
    pytest.param(A_RULE, "nft", id="rule-nft", marks=pytest.mark.thorough),
    pytest.param(A_RULE, "legacy", id="rule-legacy"),
]


@pytest.mark.parametrize(("taken", "backend"), TAKEN_AWAY)
def test_a_stopped_sidecar_is_the_finding(node_with: Callable[..., PodNode], taken: str, backend: str) -> None:
    node, sidecar = node_with_sidecar(node_with, backend)
    cut = BOTH if taken == THE_ADDRESS else ONLY_POD
    pid = sidecar.process.pid
    os.kill(pid, signal.SIGSTOP)
    node.sh(f"{taken}; {CLOSED}")
    assert node.reaches(cut) == BOTH - cut
    report = doctor(node, *IPV4)
    assert re.search(rf"pid {pid}\b.*stopped|stopped.*pid {pid}\b", report.first), report.summary
    assert report.exit == 1
    cause = report.cause()
    assert f"kill -CONT {pid}" in "\n".join((*cause["commands"], cause["remedy"]))
    node.sh("\n".join(cause["commands"]) or f"kill -CONT {pid}")
    until(lambda: node.reaches(cut) == BOTH)
    until(lambda: not doctor(node, *IPV4).noise())


@pytest.mark.parametrize(("taken", "backend"), TAKEN_AWAY)
def test_somebody_who_fights_the_sidecar_is_the_finding(
    node_with: Callable[..., PodNode], taken: str, backend: str
) -> None:
    node, sidecar = node_with_sidecar(node_with, backend)
    fight = f"ipt=iptables-{node.backend}; while sleep 0.05; do {taken} && echo again; done 2>/dev/null"
    opponent = node.start("sh", "-c", fight)
    assert opponent.stdout
    for _ in range(3):
        assert opponent.stdout.readline() == "again\n"
    report = doctor(node, *IPV4)
    assert re.search(rf"pid {sidecar.process.pid}\b", report.first), report.summary
    assert re.search("again|keeps|fought|fights|undo", report.first), report.summary
    assert report.exit == 1
    assert not report.cause()["commands"]
    end(opponent)
    until(lambda: node.reaches(BOTH) == BOTH)
    until(lambda: not doctor(node, *IPV4).noise())
    assert sidecar.stop() == 0


# Healthy nodes


@dataclass(frozen=True)
class Healthy:
    """`how` changes nothing for the node and its pod, though it came first, so doctor has nothing to say."""

    name: str
    how: str
    flags: tuple[str, ...] = IPV4
    link: str = "cali0"
    both: bool = True
    """Whether it depends on the backend."""

    needs: str = ""
    """A program without which it is skipped."""


RESTORE: Final = "$ipt-restore --noflush <"

#: Cilium asks its own tables first.
CILIUM: Final = """
ip rule add pref 100 lookup local; ip rule del pref 0
ip rule add pref 9 fwmark 0x200/0xf00 lookup 2004; ip route add local default dev lo table 2004
ip rule add pref 10 fwmark 0xa00/0xf00 lookup 2005; ip route add default via 192.0.2.10 table 2005
"""
TAILSCALE: Final = """
ip tuntap add tailscale0 mode tun; ip address add 100.101.102.103/32 dev tailscale0; ip link set tailscale0 up
ip rule add pref 5210 fwmark 0x80000/0xff0000 lookup main; ip rule add pref 5230 fwmark 0x80000/0xff0000 lookup default
ip rule add pref 5250 fwmark 0x80000/0xff0000 unreachable; ip rule add pref 5270 lookup 52
ip route add 100.100.100.100 dev tailscale0 table 52
"""
#: With links of pods' own, it asks the table local later.
AWS: Final = """
ip rule add pref 20 lookup local; ip rule del pref 0
ip rule add pref 10 iif vlan1a2b3c4d5e6 lookup 101; ip route add default via 192.0.2.10 table 101
ip rule add pref 512 to 10.244.1.5 lookup main; ip rule add pref 1024 fwmark 0x80/0x80 lookup main
ip rule add pref 1536 from 10.244.1.5 lookup 2; ip route add default via 192.0.2.10 table 2
echo 2 > /proc/sys/net/ipv4/conf/eth0/rp_filter
"""

HEALTHY_NODES: Final = (
    # What others set up (nodes/with_pods)
    Healthy("kube-proxy", f"{RESTORE} ../kube-proxy.rules"),
    Healthy("kube-proxy in mode nftables", "nft -f kube-proxy.nft"),
    Healthy("Calico", f"{RESTORE} calico.iptables"),
    Healthy("Calico beside kube-proxy", f"{RESTORE} ../kube-proxy.rules; {RESTORE} calico.iptables"),
    Healthy("Calico in mode nftables", "nft -f calico.nft; nft -f kube-proxy.nft", both=False),
    Healthy("Cilium", f"{RESTORE} ../kube-proxy.rules; {RESTORE} cilium.iptables\n{CILIUM}", link="lxc1a2b3c4d5e6f"),
    Healthy("Docker", f"{RESTORE} ../docker.rules", link="cni0"),
    Healthy("flannel", f"{RESTORE} ../kube-proxy.rules; {RESTORE} flannel.iptables", link="cni0"),
    Healthy("firewalld with the pods' link in a zone", "sed '/ip6* saddr .* goto/d' firewalld.nft | nft -f -"),
    Healthy("firewalld with the pods' network in a zone", "sed '/iifname .cali0. goto/d' firewalld.nft | nft -f -",
            both=False),
    Healthy("firewalld for IPv6", "nft -f firewalld.nft", flags=IPV6, both=False),
    Healthy("ufw", f"{RESTORE} ufw.iptables"),
    Healthy("fail2ban", f"{RESTORE} fail2ban.iptables"),
    Healthy("fail2ban in nft", "nft -f fail2ban.nft", both=False),
    Healthy("Tailscale", f"{TAILSCALE}{RESTORE} tailscale.iptables"),
    Healthy("AWS' VPC CNI", f"{AWS}{RESTORE} ../kube-proxy.rules; {RESTORE} aws.iptables", link="eni1a2b3c4d5e6"),
    Healthy("an administrator's nftables.conf", "nft -f administrator.nft"),
    Healthy("an administrator's nftables.conf, for a bridge", "nft -f administrator.nft", link="cni0", both=False),
    Healthy("an administrator's nftables.conf, for IPv6", "nft -f administrator.nft", flags=IPV6, both=False),
    # What looks like a fault, and is for others, or for nobody
    Healthy("banned hosts", "for i in $(seq 250); do echo -I INPUT -s 203.0.113.$i -j DROP; done | "
            "(echo '*filter'; cat; echo COMMIT) | $ipt-restore --noflush"),
    Healthy("5,000 banned hosts in a set of nft", guard(f"""set banned {{ type ipv4_addr; elements = {{ {MANY} }}; }}
            chain input {{ type filter hook input priority filter; ip saddr @banned drop; }}"""), both=False),
    Healthy("banned networks in a set of nft", guard("""set bogons { type ipv4_addr; flags interval;
            elements = { 0.0.0.0/8, 100.64.0.0/10, 172.16.0.0/12, 198.18.0.0/15, 224.0.0.0-255.255.255.255 }; }
            chain early { type filter hook prerouting priority raw; ip saddr @bogons drop; }""", "ip"), both=False),
    Healthy("drop on the uplink", "$ipt -I INPUT -i eth0 -p tcp --dport 443 -j DROP"),
    Healthy("drop of spoofed pods on the uplink", "$ipt -t raw -I PREROUTING -i eth0 -s 10.244.1.0/24 -j DROP"),
    Healthy("drop on links that are not there", "$ipt -I INPUT -i docker0 -j DROP; $ipt -I INPUT -i wg+ -j DROP"),
    Healthy("drop of another address", "$ipt -I INPUT -d 10.96.0.3 -j DROP; $ipt -I INPUT -d 10.97.0.0/16 -j REJECT"),
    Healthy("drop of another port", "$ipt -I INPUT -i cali0 -p tcp -m multiport --dports 22,2379:2380 -j DROP"),
    Healthy("drop of QUIC", "$ipt -I INPUT -p udp --dport 443 -j DROP", both=False),
    Healthy("drop of what is new or invalid", "$ipt -I INPUT -m conntrack --ctstate INVALID,NEW -p tcp --dport 443 "
            "-j DROP"),
    Healthy("drop by what only a connection has", "$ipt -I INPUT -p tcp --dport 443 -m connmark ! --mark 0x1 "
            "-j DROP; $ipt -I INPUT -p tcp --dport 443 -m conntrack --ctdir ORIGINAL -j DROP"),
    Healthy("usual hardening", "$ipt -I INPUT -m ttl --ttl-lt 5 -j DROP; $ipt -t mangle -I PREROUTING -p tcp ! --syn "
            "-m conntrack --ctstate NEW -j DROP", both=False),
    Healthy("usual hardening for IPv6", "$ipt6 -I INPUT -m rt --rt-type 0 -j DROP; $ipt6 -I INPUT -m frag --fragmore "
            "-j DROP; $ipt6 -I INPUT -m hl --hl-lt 5 -j DROP", flags=IPV6, both=False),
    Healthy("drop of what users send elsewhere", "$ipt -I OUTPUT -d 169.254.169.254 -p tcp -m owner ! --uid-owner 0 "
            "-j DROP", both=False),
    Healthy("drop of what is forwarded", "$ipt -P FORWARD DROP; $ipt -I FORWARD -i cali+ -d 10.96.0.0/12 -j DROP"),
    Healthy("a log", "$ipt -I INPUT -i cali+ -m limit --limit 3/min -j LOG --log-prefix 'from a pod: '", both=False),
    Healthy("an exception before a drop", "$ipt -N PODS; $ipt -A PODS -p tcp --dport 443 -j RETURN; "
            "$ipt -A PODS -j DROP; $ipt -I INPUT -i cali+ -j PODS"),
    Healthy("DNAT of what is not tracked", "$ipt -t nat -A PREROUTING -i cali0 -p tcp --dport 443 -j DNAT "
            "--to-destination 192.0.2.99:443"),
    Healthy("nft that drops what is new", guard("""chain input { type filter hook input priority filter;
            iif != lo ct state new drop; }"""), both=False),
    Healthy("nft dnat of what is not tracked", guard("""chain nat { type nat hook prerouting priority dstnat;
            iifname cali0 tcp dport 443 redirect to :8443; }"""), both=False),
    Healthy("nft on the uplink", guard("""chain link { type filter hook ingress device "eth0" priority 0;
            ip daddr 10.96.0.0/12 drop; }""", "netdev"), both=False),
    Healthy("nft dormant", "nft add table inet guard '{ flags dormant; }'; nft add chain inet guard input "
            "'{ type filter hook input priority 0; policy drop; }'", both=False),
    Healthy("nft for arp and bridges", guard("""chain input { type filter hook input priority filter;
            arp operation request limit rate over 10/second drop; }""", "arp")
            + guard("chain input { type filter hook input priority filter; ether type 0x88cc drop; }", "bridge"),
            both=False),
    Healthy("rules for other traffic", "ip rule add pref 10 to 203.0.113.0/24 unreachable; "
            "ip rule add pref 11 from 198.51.100.7 lookup 100; ip rule add pref 12 fwmark 0x7 blackhole; "
            "ip rule add pref 13 iif eth0 lookup 100; ip route add blackhole 10.244.7.0/26", both=False),
    Healthy("strict rp_filter", "for i in all cali0 eth0; do echo 1 > /proc/sys/net/ipv4/conf/$i/rp_filter; done",
            both=False),
)  # fmt: skip


@pytest.mark.parametrize(("healthy", "backend"), cases(HEALTHY_NODES))
def test_nothing_is_said_about_a_healthy_node(
    node_with: Callable[..., PodNode], healthy: Healthy, backend: str
) -> None:
    node = node_with(backend, healthy.link)
    node.sh(f"cd {NODES}; {healthy.how}")
    node.put_in_place(*healthy.flags)
    assert node.reaches() == BOTH
    is_in_order(node, *healthy.flags)


#: A client whose connection stays open.
CLIENT: Final = """
import socket, time
connection = socket.create_connection(("10.96.0.2", 443))
print("ready", flush=True)
time.sleep(600)
"""


def test_connections_that_crossed_a_gap_are_no_reason_for_a_warning(node_with: Callable[..., PodNode]) -> None:
    """The kernel remembers those that began without our rules for days: it does not see their end."""
    if os.geteuid():
        pytest.skip("the tracked connections are for root of the node only")
    node = node_with("nft")
    node.sh("$ipt -A INPUT -m conntrack --ctstate INVALID -j LOG")  # so that it tracks
    node.put_in_place(*WITHOUT_RULES)
    client = node.pod.start(sys.executable, "-c", CLIENT)
    assert client.stdout
    assert client.stdout.readline() == "ready\n"
    node.sh("$run --daemon=false", *IPV4)
    end(client)
    assert "ESTABLISHED" in node.node.run("conntrack", "-L", "-d", "10.96.0.2")
    is_in_order(node, *IPV4)


def test_without_settings_it_finds_them_in_the_rules_that_stand_there(node_with: Callable[..., PodNode]) -> None:
    """As where the sidecar's container is in a crash loop."""
    node = node_with("nft")
    node.put_in_place(*IPV4)
    process = program.fork(node.node, "doctor", "--output=json")
    stdout, stderr = process.communicate(timeout=HANG)
    assert stderr == ""
    shown = json.loads(stdout)
    report = Report(shown["exit"], shown["summary"], shown["findings"])
    assert (report.noise(), report.exit) == ([], 0)
    assert any("10.96.0.2:443 answers" in each["found"] for each in report.findings)
