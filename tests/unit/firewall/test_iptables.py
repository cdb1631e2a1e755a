from dataclasses import replace
from ipaddress import ip_address

import pytest

from sidecar.firewall.iptables import IptablesRules, hindrance
from sidecar.firewall.packet import CLIENT_PORT, Packet
from sidecar.firewall.verdicts import Matches
from sidecar.state.desired import desired
from sidecar.state.model import Hindrance, Rule
from support.namespace import IPV4, IPV6

RULES = desired([IPV4, IPV6], interface="lo", port=443, setup_iptables=True).rules
NOTRACK, ACCEPT_IN, ACCEPT_OUT = RULES[0], RULES[3], RULES[4]
ACCEPT_IN_6 = RULES[8]

CERTAIN = [
    "-A INPUT -j DROP",
    "-A INPUT -j REJECT --reject-with icmp-port-unreachable",
    "-A INPUT -p tcp -j DROP",
    "-A INPUT -d 10.96.0.0/16 -j DROP",
    "-A INPUT -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j DROP",
    "-A INPUT -p tcp -m tcp --dport 1:1023 -j DROP",
    "-A INPUT -p tcp -m multiport --dports 80,443,8000:9000 -j DROP",
    "-A INPUT ! -d 10.97.0.0/16 -j DROP",
    "-A INPUT ! -p udp -j DROP",
    "-A INPUT -m conntrack --ctstate NEW,UNTRACKED -j DROP",
    '-A INPUT -m comment --comment "it drops -j ACCEPT all" -j DROP',
    '-A INPUT -m comment --comment "-j" -j DROP',
]
UNCERTAIN = [
    "-A INPUT -i eth0 -j DROP",
    "-A INPUT -m socket -j DROP",
    "-A INPUT -m rpfilter -j DROP",
    "-A INPUT -m mark --mark 0x5 -j DROP",
    '-A INPUT -m set --match-set banned src -m comment --comment "-j ACCEPT" -j DROP',
    "-A INPUT ! -i lo -j DROP",
    "-A INPUT -s 192.168.0.0/16 -j DROP",
    "-A INPUT -p tcp -m tcp --sport 1024 -j DROP",
    "-A INPUT -m set --match-set bad src -j DROP",
    "-A INPUT -m limit --limit 3/min -j DROP",
    "-A INPUT -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j DROP",
    "-A INPUT -j KUBE-FIREWALL",
    "-A INPUT -g OTHER",
    "-A INPUT -j NFQUEUE --queue-num 1",
    "-A INPUT -j RETURN",
    '-A INPUT -m comment --comment "not closed -j DROP',
]
HARMLESS = [
    '-A INPUT -j LOG --log-prefix "DROP "',
    "-A INPUT -d 10.96.0.3/32 -j DROP",
    "-A INPUT -d 10.97.0.0/16 -j KUBE-FIREWALL",
    "-A INPUT -p udp -j DROP",
    "-A INPUT ! -p tcp -j DROP",
    "-A INPUT -p tcp -m tcp --dport 80 -j DROP",
    "-A INPUT -p tcp -m tcp ! --dport 443 -j DROP",
    "-A INPUT -p tcp -m multiport --dports 80,8000:9000 -j DROP",
    "-A INPUT ! -d 10.96.0.0/16 -j DROP",
    "-A INPUT -m conntrack --ctstate INVALID -j DROP",
    "-A INPUT -m state --state NEW -j DROP",
    "-A INPUT -i eth0 -j ACCEPT",
    "-A INPUT -j ACCEPT",
    "-A INPUT -j MARK --set-xmark 0x1/0x1",
    "-A INPUT",
]  # fmt: skip


@pytest.mark.parametrize("line", CERTAIN)
def test_a_rule_behind_one_that_drops_its_traffic_has_no_effect(line: str) -> None:
    assert hindrance(ACCEPT_IN, [HARMLESS[0], line]) == Hindrance(line, certain=True)


@pytest.mark.parametrize("line", UNCERTAIN)
def test_what_cannot_be_judged_is_called_uncertain(line: str) -> None:
    found = hindrance(ACCEPT_IN, [line])
    assert found
    assert (found.line, found.certain) == (line, False)


@pytest.mark.parametrize("line", HARMLESS)
def test_what_does_not_drop_its_traffic_is_no_hindrance(line: str) -> None:
    assert hindrance(ACCEPT_IN, [line]) is None


def test_a_certain_hindrance_counts_more_than_an_uncertain_one_before_it() -> None:
    assert hindrance(ACCEPT_IN, [UNCERTAIN[0], CERTAIN[0]]) == Hindrance(CERTAIN[0], certain=True)


def test_what_is_accepted_before_is_not_dropped_after() -> None:
    assert hindrance(ACCEPT_IN, ["-A INPUT -p tcp -j ACCEPT", "-A INPUT -j DROP"]) is None
    assert hindrance(ACCEPT_IN, ["-A INPUT -i lo -j ACCEPT", "-A INPUT -j DROP"])
    assert hindrance(ACCEPT_IN, ["-A INPUT -i eth0 -j DROP", "-A INPUT -p tcp -j ACCEPT"]) == Hindrance(
        "-A INPUT -i eth0 -j DROP", certain=False
    )


@pytest.mark.parametrize("line", ["-A INPUT -j RETURN", "-A INPUT -g OTHER"])
def test_what_is_never_reached_is_not_what_hinders(line: str) -> None:
    assert hindrance(ACCEPT_IN, [line, "-A INPUT -j DROP"]) == Hindrance(line, certain=False)


def test_outgoing_rules_are_judged_by_their_source() -> None:
    assert hindrance(ACCEPT_OUT, ["-A OUTPUT -s 10.96.0.0/12 -p tcp -m tcp --sport 443 -j DROP"])
    assert hindrance(ACCEPT_OUT, ["-A OUTPUT -s 10.97.0.0/16 -j DROP"]) is None
    found = hindrance(ACCEPT_OUT, ["-A OUTPUT -d 10.0.0.0/8 -j DROP"])
    assert found
    assert not found.certain


@pytest.mark.parametrize(
    ("line", "certain"),
    [
        ("-A PREROUTING -j ACCEPT", True),
        ("-A PREROUTING -p tcp -j DROP", True),
        ("-A PREROUTING -i eth0 -j ACCEPT", False),
        ("-A PREROUTING -j CT --zone 7", True),
        ("-A PREROUTING -i eth0 -j CT --helper ftp", False),
        ("-A PREROUTING -m conntrack --ctstate INVALID -j DROP", False),
    ],
)
def test_to_notrack_an_accept_before_it_is_a_hindrance_too(line: str, certain: bool) -> None:  # noqa: FBT001 - a parameter
    found = hindrance(NOTRACK, [line])
    assert found
    assert found.certain is certain


@pytest.mark.parametrize(
    "line", ["-A PREROUTING -j CT --notrack", "-A PREROUTING -j NOTRACK", "-A PREROUTING -p udp -j CT --zone 7"]
)
def test_to_notrack_what_does_the_same_is_no_hindrance(line: str) -> None:
    assert hindrance(NOTRACK, [line]) is None


def test_ipv6() -> None:
    assert hindrance(ACCEPT_IN_6, ["-A INPUT -d fd00:10:96::/112 -j DROP"])
    assert hindrance(ACCEPT_IN_6, ["-A INPUT -d fd00:10:97::/112 -j DROP"]) is None
    assert hindrance(ACCEPT_IN_6, ["-A INPUT -d ::/0 -j DROP"])


@pytest.mark.parametrize("rule", RULES)
def test_our_own_rules_do_not_hinder_each_other(rule: Rule) -> None:
    others = [
        other.line for other in RULES if other.place == rule.place and other.family == rule.family and other != rule
    ]
    assert hindrance(rule, others) is None


REQUEST = Packet(
    4, ip_address("10.244.0.5"), ip_address("10.96.0.2"), CLIENT_PORT, 443, frozenset(("syn",)), "cali0", "", "NEW", 0,
    is_from_here=False, is_to_here=True, returns=True,
)  # fmt: skip
ALL, NOTHING, PERHAPS = Matches.ALL, Matches.NOTHING, Matches.PERHAPS


@pytest.mark.parametrize(
    ("conditions", "matches"),
    [
        ("", ALL),
        ("-s 10.244.0.0/16", ALL),
        ("-s 10.245.0.0/16", NOTHING),
        ("! -s 10.244.0.5/32", NOTHING),
        ("-i cali+", ALL),
        ("-i cali1", NOTHING),
        ("! -i lo", ALL),
        ("-o cali0", NOTHING),
        ("-p tcp -m tcp --sport 1024:65535", ALL),
        ("-p tcp -m multiport --ports 80,443", ALL),
        ("-p tcp -m multiport --sports 80,443", NOTHING),
        ("-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN", ALL),
        ("-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -m state --state NEW", NOTHING),
        ("-p tcp -m tcp --tcp-flags ALL NONE", NOTHING),
        ("-p tcp -m tcp --syn", ALL),
        ("-m conntrack --ctstate NEW,UNTRACKED", ALL),
        ("-m conntrack --ctstate INVALID", NOTHING),
        ("-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT", ALL),
        ("-m mark --mark 0x4000/0x4000", NOTHING),
        ("-m mark ! --mark 0x4000/0x4000", ALL),
        ("-m mark --mark 0x0", ALL),
        ("-m addrtype --dst-type LOCAL", ALL),
        ("-m addrtype ! --dst-type LOCAL", NOTHING),
        ("-m addrtype --src-type LOCAL", NOTHING),
        ("-m addrtype --dst-type MULTICAST,BROADCAST", NOTHING),
        ("-m iprange --src-range 10.244.0.1-10.244.0.9", ALL),
        ("-m iprange ! --src-range 10.244.0.1-10.244.0.9", NOTHING),
        ("-m rpfilter --loose --validmark", ALL),
        ("-m rpfilter --validmark --invert", NOTHING),
        ("-m pkttype --pkt-type broadcast", NOTHING),
        ("-m socket --transparent", NOTHING),
        ("-f", NOTHING),
        ("-m owner --uid-owner 1000", PERHAPS),
        ("-m limit --limit 5/sec", PERHAPS),
        ("-m set --match-set banned src,dst", PERHAPS),
        ("-m connmark --mark 0x80/0x80", PERHAPS),
        ("-m string --string x", PERHAPS),
        ("-m addrtype --dst-type LOCAL --limit-iface-in", PERHAPS),
        ("-m addrtype ! --dst-type LOCAL --limit-iface-in", PERHAPS),
        ("-m conntrack --ctstatus NONE", PERHAPS),
        ("-m ttl --ttl-gt 10", ALL),
        ("-m ttl --ttl-lt 5", NOTHING),
        ("-m hl --hl-eq 255", NOTHING),
        ("-m recent --set --name banned --mask 255.255.255.255 --rsource", ALL),
        ("-m recent --update --seconds 60 --name banned --mask 255.255.255.255 --rsource", PERHAPS),
        ("-m rt --rt-type 0", NOTHING),
        ("-m rt ! --rt-type 0", NOTHING),
        ("-m frag --fragmore", NOTHING),
    ],
)
def test_what_is_known_of_a_packet_decides(conditions: str, matches: Matches) -> None:
    rule = " ".join(f"-A INPUT {conditions} -j DROP".split())
    judged = IptablesRules({}).judge(rule, REQUEST)
    assert [each.matches for each in judged or ()] == ([] if matches is NOTHING else [matches])


@pytest.mark.parametrize(
    ("line", "before", "after"),
    [
        ("-j MARK --set-xmark 0x1/0x1", 0x10, 0x11),
        ("-j MARK --set-xmark 0x0/0xf0", 0x11, 0x1),
        ("-j MARK --set-xmark 0x5/0xffffffff", None, 5),
        ("-j MARK --set-xmark 0x5/0xff", None, None),
        ("-j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80", 0x81, 0x1),
        ("-j CONNMARK --save-mark", 0x81, 0x81),
    ],
)
def test_a_rule_changes_the_mark(line: str, before: int | None, after: int | None) -> None:
    packet = replace(REQUEST, mark=before)
    (judged,) = IptablesRules({}).judge(f"-A PREROUTING {line}", packet) or ()
    assert judged.change
    assert judged.change(packet).mark == after


def test_an_untracked_packet_has_no_mark_of_a_connection() -> None:
    packet = replace(REQUEST, mark=1, state="UNTRACKED")
    rules = IptablesRules({})
    (judged,) = rules.judge("-A PREROUTING -j CONNMARK --restore-mark --nfmask 0x1 --ctmask 0x1", packet) or ()
    assert judged.change
    assert judged.change(packet).mark == 1


@pytest.mark.parametrize("state", ["UNTRACKED", "INVALID"])
@pytest.mark.parametrize(
    "condition",
    [
        "-m connmark --mark 0x80/0x80",
        "-m connmark ! --mark 0x80/0x80",
        "-m conntrack --ctdir ORIGINAL",
        "-m conntrack ! --ctstatus DNAT",
        "-m connbytes ! --connbytes 0:10 --connbytes-mode packets --connbytes-dir both",
    ],
)
def test_a_packet_without_a_connection_has_nothing_of_one(condition: str, state: str) -> None:
    packet = replace(REQUEST, state=state)
    assert IptablesRules({}).judge(f"-A INPUT {condition} -j DROP", packet) == ()


def test_behind_a_state_it_is_not_known_what_a_packet_without_a_connection_fits() -> None:
    packet = replace(REQUEST, state="UNTRACKED")
    line = "-A INPUT -m conntrack --ctstate INVALID,UNTRACKED --ctdir ORIGINAL -j DROP"
    (judged,) = IptablesRules({}).judge(line, packet) or ()
    assert judged.matches is PERHAPS


@pytest.mark.parametrize(
    ("line", "is_quick"),
    [
        ("-A INPUT -d 10.96.0.9/32 -j DROP", True),
        ("-A INPUT -s 192.0.2.1/32 -j DROP", True),
        ("-A INPUT -d 10.96.0.2/32 -j DROP", False),
        ("-A INPUT -d 10.96.0.0/16 -j DROP", False),
        ("-A INPUT ! -d 10.96.0.9/32 -j DROP", False),
        ('-A INPUT -m comment --comment "is -d 10.96.0.9/32" -j DROP', False),
    ],
)
def test_rules_for_other_addresses_take_no_time(line: str, is_quick: bool) -> None:  # noqa: FBT001 - a table
    assert (IptablesRules({}).judge(line, REQUEST) is None) is is_quick


def test_of_ipv6_a_32_is_a_network() -> None:
    packet = Packet.of(ACCEPT_IN_6)
    rules = IptablesRules({})
    assert rules.judge("-A INPUT -d fd00:10::/32 -j DROP", packet)
    assert rules.judge("-A INPUT -d fd00:10:96::3/128 -j DROP", packet) is None
