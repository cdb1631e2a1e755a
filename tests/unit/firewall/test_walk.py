"""The way of traffic through chains, on listings as `iptables -S` prints them."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from sidecar.firewall.iptables import IptablesRules
from sidecar.firewall.packet import NEW, UNTRACKED, Hook, Packet, from_peer, from_this_node
from sidecar.firewall.verdicts import BaseChain, Effect
from sidecar.firewall.walk import Passage, Way, passage, way

ADDRESS, POD = IPv4Address("10.96.0.2"), IPv4Address("10.244.0.5")
TRACKED = Packet(4, None, ADDRESS, None, 443)
IN = replace(TRACKED, state=UNTRACKED)
OUT = Packet(4, ADDRESS, None, 443, None, state=UNTRACKED)


def chains(*lines: str) -> IptablesRules:
    """Return a listing, as the rules of each chain."""
    listed: dict[str, list[str]] = {}
    for line in lines:
        listed.setdefault(line.split()[1], []).append(line)
    return IptablesRules(listed)


def followed(rules: IptablesRules, chain: str, packet: Packet) -> Way:
    """Return what happens to a packet that enters a chain, as a base chain."""
    return way(BaseChain(Hook.INPUT, 0, "filter", chain, rules), packet)


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
    met = followed(KUBE_PROXY, "PREROUTING", TRACKED).certainly(Effect.TAKE)
    assert met
    assert met.line.endswith("10.0.0.6:6443")
    other = replace(TRACKED, destination=IPv4Address("10.96.0.3"))
    assert followed(KUBE_PROXY, "PREROUTING", other).perhaps(Effect.TAKE) is None


def test_only_chains_that_a_packet_may_come_to_are_followed() -> None:
    assert list(KUBE_PROXY.jumps("KUBE-SERVICES", TRACKED)) == ["KUBE-SVC-B", "KUBE-NODEPORTS"]
    to_another = replace(TRACKED, is_to_here=False)
    assert list(KUBE_PROXY.jumps("KUBE-SERVICES", to_another)) == ["KUBE-SVC-B"]


def test_chains_behind_a_certain_end_are_not_followed() -> None:
    listed = chains("-A INPUT -j A", "-A INPUT -s 192.0.2.1/32 -j DROP", "-A INPUT -p tcp -j ACCEPT", "-A INPUT -j B")
    assert list(listed.jumps("INPUT", IN)) == ["A"]


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
        (["-A INPUT -i lo -j ACCEPT", "-A INPUT -j DROP"], "DROP", False),
        (["-A INPUT ! -i lo -j DROP"], "DROP", False),
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
    met = [each for each in followed(chains(*lines), "INPUT", IN).met if each.effect in (Effect.DROP, Effect.ACCEPT)]
    if target is None:
        assert not any(each.certain for each in met)
    else:
        assert (target in met[-1].line, met[-1].certain) == (True, certain)


def test_after_a_certain_end_nothing_is_met() -> None:
    line = "-A OUTPUT -s 10.96.0.2/32 -p tcp -m tcp --sport 443 -j ACCEPT"
    found = followed(chains(line, "-A OUTPUT -j DROP"), "OUTPUT", OUT)
    assert [(each.line, each.certain) for each in found.met] == [(line, True)]
    assert found.certainly(Effect.DROP) is None


def test_a_return_from_a_base_chain_leads_to_its_policy() -> None:
    found = followed(chains("-A INPUT -j RETURN", "-A INPUT -j ACCEPT", "-P INPUT DROP"), "INPUT", IN).certainly(
        Effect.DROP
    )
    assert found
    assert found.line == "-P INPUT DROP"


def test_a_state_that_is_not_known_decides_nothing() -> None:
    listed = chains("-A INPUT -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP")
    assert followed(listed, "INPUT", IN).certainly(Effect.DROP)
    assert followed(listed, "INPUT", TRACKED).certainly(Effect.DROP) is None


def test_very_many_rules_are_no_certainty() -> None:
    listed = chains(*["-A INPUT -p udp -j DROP"] * 20_001, "-A INPUT -j DROP")
    assert followed(listed, "INPUT", IN).certainly(Effect.DROP) is None


def test_rules_for_other_addresses_are_quickly_passed() -> None:
    listed = chains(*["-A INPUT -d 10.97.0.1/32 -p tcp -j DROP"] * 20_001, "-A INPUT -j DROP")
    assert followed(listed, "INPUT", IN).certainly(Effect.DROP)


@pytest.mark.parametrize(
    ("lines", "is_dropped"),
    [
        # As Calico does it: a mark says whether a policy has accepted.
        (["-A INPUT -j c", "-A INPUT -m mark --mark 0x1/0x1 -j ACCEPT", "-A c -j MARK --set-xmark 0x1/0x1"], False),
        (["-A INPUT -j c", "-A INPUT -m mark --mark 0x1/0x1 -j ACCEPT", "-A c -p udp -j MARK --set-xmark 0x1/0x1"],
         True),
        (["-A INPUT -j c", "-A INPUT -m mark --mark 0x1/0x1 -j ACCEPT", "-A c -m limit -j MARK --set-xmark 0x1/0x1"],
         None),
        (["-A INPUT -j c", "-A INPUT -m mark --mark 0x1/0x1 -j ACCEPT", "-A c -m limit -j RETURN",
          "-A c -j MARK --set-xmark 0x1/0x1"], None),
        (["-A INPUT -j c", "-A INPUT -m mark --mark 0x1/0x1 -j ACCEPT", "-A c -m limit -j d", "-A d -j DROP",
          "-A c -j MARK --set-xmark 0x1/0x1"], None),
        (["-A INPUT -m limit -j c", "-A INPUT -m mark --mark 0x0/0x1 -j ACCEPT", "-A c -j MARK --set-xmark 0x1/0x1",
          "-A c -j DROP"], None),
    ],
)  # fmt: skip
def test_the_mark_is_known_as_far_as_the_way_is(lines: list[str], is_dropped: bool | None) -> None:  # noqa: FBT001 - a table
    found = followed(chains(*lines, "-P INPUT DROP"), "INPUT", replace(IN, mark=0))
    certain = [each for each in found.met if each.certain and each.effect in (Effect.DROP, Effect.ACCEPT)]
    assert [each.effect is Effect.DROP for each in certain] == ([] if is_dropped is None else [is_dropped])


def base(hook: Hook, priority: int, *lines: str, is_nat: bool = False) -> BaseChain[str]:
    return BaseChain(hook, priority, "some table", hook.name, chains(*lines), is_nat)


def both(*bases: BaseChain[str], node: bool = False) -> tuple[Passage, Passage]:
    """Return the passages of a request and its reply."""
    request, reply = from_this_node(ADDRESS, 443) if node else from_peer(ADDRESS, 443, "cali0", POD)
    first = passage(bases, request)
    return first, passage(bases, reply, first)


ACCEPT = base(Hook.INPUT, 0, "-A INPUT -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j ACCEPT", "-P INPUT DROP")
NOTRACK = base(Hook.PREROUTING, -300, "-A PREROUTING -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j NOTRACK")


def test_accept_ends_only_its_own_base_chain() -> None:
    assert both(ACCEPT) == (Passage(None, (), {Hook.INGRESS: 0, Hook.PREROUTING: 0, Hook.INPUT: 0}, "NEW"), both()[1])
    guard = base(Hook.INPUT, 10, "-A INPUT -i lo -j ACCEPT", "-P INPUT DROP")
    stopped = both(ACCEPT, guard)[0].stopped
    assert stopped
    assert (stopped.line, stopped.base) == ("-P INPUT DROP", guard)
    assert both(ACCEPT, guard, node=True)[0].stopped is None


def test_a_chain_before_connection_tracking_sees_no_state() -> None:
    raw = base(Hook.PREROUTING, -300, "-A PREROUTING -m conntrack --ctstate NEW -j DROP")
    mangle = base(Hook.PREROUTING, -150, "-A PREROUTING -m conntrack --ctstate NEW -j DROP")
    assert both(raw)[0].stopped is None
    assert both(mangle)[0].stopped
    assert both(NOTRACK, mangle)[0].stopped is None


@pytest.mark.parametrize("options", ["--zone 7", "--helper ftp"])
def test_notrack_comes_too_late_behind_a_rule_that_has_it_tracked(options: str) -> None:
    ours = "-A PREROUTING -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j NOTRACK"
    first = base(Hook.PREROUTING, -300, f"-A PREROUTING -i cali0 -j CT {options}", ours)
    drop = base(Hook.INPUT, 0, "-A INPUT -m conntrack --ctstate NEW -j DROP")
    assert both(NOTRACK, drop)[0].stopped is None
    assert both(first, drop)[0].stopped
    assert both(first)[0].state == NEW


def test_a_reply_is_established_unless_the_request_was_not_tracked() -> None:
    out = base(Hook.OUTPUT, 0, "-A OUTPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT", "-P OUTPUT DROP")
    assert both(out)[1].stopped is None
    assert both(NOTRACK, out)[1].stopped


def test_nat_sees_only_the_first_packet_of_a_tracked_connection() -> None:
    nat = base(Hook.PREROUTING, -100, "-A PREROUTING -j DNAT --to-destination 192.0.2.1:6443", is_nat=True)
    assert both(nat)[0].stopped
    assert both(NOTRACK, nat)[0].stopped is None
    assert both(replace(nat, hook=Hook.OUTPUT, name="PREROUTING"))[1].stopped is None


def test_a_mark_goes_from_hook_to_hook() -> None:
    mangle = base(Hook.PREROUTING, -150, "-A PREROUTING -i cali0 -j MARK --set-xmark 0x1/0x1")
    filters = base(Hook.INPUT, 0, "-A INPUT -m mark --mark 0x1/0x1 -j DROP")
    first, _ = both(mangle, filters)
    assert first.marks == {Hook.INGRESS: 0, Hook.PREROUTING: 1}
    assert first.stopped
    assert both(mangle, filters, node=True)[0].stopped is None


def test_what_is_not_understood_is_a_doubt() -> None:
    limited = base(Hook.INPUT, 0, "-A INPUT -m limit --limit 5/sec -j DROP")
    first, _ = both(limited)
    assert first.stopped is None
    assert [each.line for each in first.doubts] == ["-A INPUT -m limit --limit 5/sec -j DROP"]
