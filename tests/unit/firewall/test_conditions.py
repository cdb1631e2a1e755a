import pytest

from sidecar.firewall.conditions import Quick
from sidecar.firewall.walk import hindrance
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


@pytest.mark.parametrize(
    ("line", "never", "never_all"),
    [
        ("-A INPUT -d 10.96.0.9/32 -j DROP", True, False),
        ("-A INPUT -d 10.96.0.2/32 -j DROP", False, False),
        ("-A INPUT -d 10.96.0.0/16 -j DROP", False, False),
        ("-A INPUT ! -d 10.96.0.9/32 -j DROP", False, False),
        ('-A INPUT -m comment --comment "is -d 10.96.0.9/32" -j DROP', False, False),
        ("-A INPUT -s 192.0.2.1/32 -j DROP", False, True),
        ("-A INPUT -i eth0 -j DROP", False, True),
        ('-A INPUT -m comment --comment "from -i eth0" -j DROP', False, False),
    ],
)
def test_what_is_told_quickly(line: str, never: bool, never_all: bool) -> None:  # noqa: FBT001 - a table
    quick = Quick({"-d": "10.96.0.2/32", "--dport": "443"})
    assert (quick.never(line), quick.never_all(line)) == (never, never_all)


def test_of_ipv6_a_32_is_a_network() -> None:
    quick = Quick({"-d": "fd00:10:96::2/128", "--dport": "443"})
    assert not quick.never("-A INPUT -d fd00:10::/32 -j DROP")
    assert quick.never("-A INPUT -d fd00:10:96::3/128 -j DROP")
