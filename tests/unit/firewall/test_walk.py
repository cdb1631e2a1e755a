"""The way of traffic through chains, on listings as `iptables -S` prints them."""

import pytest

from sidecar.firewall.conditions import Traffic
from sidecar.firewall.walk import Met, jumps, way
from sidecar.state.model import LOOPBACK

IN = Traffic("10.96.0.2/32", 443, inward=True, untracked=True)
OUT = Traffic("10.96.0.2/32", 443, inward=False, untracked=True)
TRACKED = Traffic("10.96.0.2/32", 443, inward=True, untracked=False)

BLOCKING = frozenset(("DROP", "REJECT"))
DNAT = frozenset(("DNAT",))


def chains(*lines: str) -> dict[str, list[str]]:
    """Return a listing, as the rules of each chain."""
    listed: dict[str, list[str]] = {}
    for line in lines:
        listed.setdefault(line.split()[1], []).append(line)
    return listed


KUBE_PROXY = chains(
    '-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
    '-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m comment --comment "default/kubernetes:https cluster IP" -m tcp '
    "--dport 443 -j KUBE-SVC-A",
    '-A KUBE-SERVICES -d 10.96.0.2/32 -p tcp -m comment --comment "x/y:https cluster IP" -m tcp --dport 443 '
    "-j KUBE-SVC-B",
    '-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports" -m addrtype --dst-type LOCAL '
    "-j KUBE-NODEPORTS",
    '-A KUBE-SVC-B ! -s 10.244.0.0/16 -d 10.96.0.2/32 -p tcp -m comment --comment "x/y:https cluster IP" -m tcp '
    "--dport 443 -j KUBE-MARK-MASQ",
    '-A KUBE-SVC-B -m comment --comment "x/y -> 10.0.0.5:6443" -m statistic --mode random --probability 0.5 '
    "-j KUBE-SEP-1",
    '-A KUBE-SVC-B -m comment --comment "x/y -> 10.0.0.6:6443" -j KUBE-SEP-2',
    '-A KUBE-SEP-1 -s 10.0.0.5/32 -m comment --comment "x/y:https" -j KUBE-MARK-MASQ',
    '-A KUBE-SEP-1 -p tcp -m comment --comment "x/y:https" -m tcp -j DNAT --to-destination 10.0.0.5:6443',
    '-A KUBE-SEP-2 -p tcp -m comment --comment "x/y:https" -m tcp -j DNAT --to-destination 10.0.0.6:6443',
    "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",
    "-A KUBE-NODEPORTS -p tcp -m tcp --dport 30080 -j KUBE-SVC-A",
    "-A KUBE-SVC-A -j DNAT --to-destination 192.0.2.1:6443",
)


def test_a_service_takes_what_is_for_its_address_by_whichever_endpoint() -> None:
    met = way(KUBE_PROXY, "PREROUTING", TRACKED).certainly(DNAT)
    assert met
    assert met.line.endswith("10.0.0.6:6443")
    other = Traffic("10.96.0.3/32", 443, inward=True, untracked=False)
    assert way(KUBE_PROXY, "PREROUTING", other).perhaps(DNAT) is None


def test_only_chains_that_the_traffic_may_come_to_are_followed() -> None:
    lines = KUBE_PROXY["KUBE-SERVICES"]
    assert list(jumps(lines, TRACKED, certain=False)) == ["KUBE-SVC-B", "KUBE-NODEPORTS"]
    assert list(jumps(lines, TRACKED, certain=True)) == ["KUBE-SVC-B"]


def test_chains_behind_a_certain_end_are_not_followed() -> None:
    lines = ["-A INPUT -j A", "-A INPUT -p tcp -j ACCEPT", "-A INPUT -j B"]
    assert list(jumps(lines, IN, certain=False)) == ["A"]


@pytest.mark.parametrize(
    ("lines", "target", "certain"),
    [
        (["-A INPUT -j DROP"], "DROP", True),
        (["-A INPUT -j ACCEPT", "-A INPUT -j DROP"], "ACCEPT", True),
        (["-A INPUT -i eth0 -j ACCEPT", "-A INPUT -j DROP"], "DROP", False),
        (["-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "-A INPUT -j DROP"], "DROP", True),
        (["-A INPUT -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP"], "DROP", True),
        (["-A INPUT -m conntrack --ctstate UNTRACKED -j ACCEPT", "-A INPUT -j DROP"], "ACCEPT", True),
        (["-A INPUT -p udp -j DROP"], None, False),
        (["-A INPUT -d 10.96.0.9/32 -j DROP", "-A INPUT ! -d 10.96.0.2/32 -j DROP"], None, False),
        (["-A INPUT ! -d 10.96.0.9/32 -j DROP"], "DROP", True),
        (["-A INPUT -d 10.96.0.0/16 -j DROP"], "DROP", True),
        (["-A INPUT -p tcp -m tcp --dport 80 -j DROP"], None, False),
        (["-A INPUT -j LOG", "-A INPUT -j DROP"], "DROP", True),
        (["-A INPUT -j c", "-A c -j DROP"], "DROP", True),
        (["-A INPUT -j c", "-A c -j RETURN", "-A c -j DROP"], None, False),
        (["-A INPUT -j c", "-A INPUT -j DROP", "-A c -p tcp -j RETURN"], "DROP", True),
        (["-A INPUT -j c", "-A INPUT -j REJECT", "-A c -i eth0 -j RETURN", "-A c -j DROP"], "REJECT", False),
        (["-A INPUT -i lo -j ACCEPT", "-A INPUT -j DROP"], "DROP", True),
        (["-A INPUT ! -i lo -j DROP"], "DROP", True),
        (["-A INPUT -p udp -j ACCEPT", "-P INPUT DROP"], "DROP", True),
        (["-A INPUT -g c", "-A INPUT -j DROP", "-A c -p udp -j ACCEPT"], None, False),
        (["-A INPUT -i cali+ -g c", "-A INPUT -j DROP", "-A c -p udp -j ACCEPT"], "DROP", False),
        (["-A INPUT -j c", "-A INPUT -j DROP", "-A c -i eth0 -j ACCEPT"], "DROP", False),
        (["-A INPUT -j not-listed", "-A INPUT -j DROP"], "DROP", False),
        (["-A INPUT -j c", "-A c -j INPUT"], None, False),  # no kernel has it; it must come to an end
        (['-A INPUT -m comment --comment "-j DROP" -p udp -j DROP'], None, False),
        (['-A INPUT -m comment --comment "a \\" -j ACCEPT" -j DROP'], "DROP", True),
        (['-A INPUT -m string --string "--comment x -j ACCEPT" -j DROP'], "DROP", False),
        (["-A INPUT"], None, False),
    ],
)
def test_what_becomes_of_it(lines: list[str], target: str | None, certain: bool) -> None:  # noqa: FBT001 - a table
    met = way(chains(*lines), "INPUT", IN).met
    last = next((each for each in reversed(met) if each.target in {"DROP", "REJECT", "ACCEPT"}), None)
    if target is None:
        assert last is None or not last.certain
    else:
        assert last
        assert (last.target, last.certain) == (target, certain)


def test_replies_to_this_node_come_in_over_lo() -> None:
    replies = Traffic("10.96.0.2/32", 443, inward=False, untracked=True, interface=LOOPBACK)
    listed = chains("-A INPUT -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j ACCEPT", "-P INPUT DROP")
    assert way(listed, "INPUT", replies).certainly(BLOCKING) == Met("INPUT", "-P INPUT DROP", "DROP", certain=True)
    listed = chains("-A INPUT -i lo -j ACCEPT", "-P INPUT DROP")
    assert way(listed, "INPUT", replies).certainly(BLOCKING) is None


def test_after_a_certain_end_nothing_is_met() -> None:
    listed = chains("-A OUTPUT -s 10.96.0.2/32 -p tcp -m tcp --sport 443 -j ACCEPT", "-A OUTPUT -j DROP")
    line = "-A OUTPUT -s 10.96.0.2/32 -p tcp -m tcp --sport 443 -j ACCEPT"
    assert way(listed, "OUTPUT", OUT).met == (Met("OUTPUT", line, "ACCEPT", certain=True),)
    assert way(listed, "OUTPUT", OUT).certainly(BLOCKING) is None


def test_a_state_says_nothing_of_traffic_that_may_be_tracked() -> None:
    listed = chains("-A INPUT -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP")
    assert way(listed, "INPUT", IN).certainly(BLOCKING)
    assert way(listed, "INPUT", TRACKED).certainly(BLOCKING) is None


def test_very_many_rules_are_no_certainty() -> None:
    listed = chains(*["-A INPUT -p udp -j DROP"] * 20_001, "-A INPUT -j DROP")
    assert way(listed, "INPUT", IN).certainly(BLOCKING) is None


def test_rules_for_other_addresses_are_quickly_passed() -> None:
    listed = chains(*["-A INPUT -d 10.97.0.1/32 -p tcp -j DROP"] * 20_001, "-A INPUT -j DROP")
    assert way(listed, "INPUT", IN).certainly(BLOCKING)
