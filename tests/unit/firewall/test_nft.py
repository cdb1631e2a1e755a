"""nftables' own tables, on rule sets as firewalls and Kubernetes' networks make them.

`recorded/NAME.json` is what `nft --json list ruleset` (1.0.6) printed when a rule set was loaded in a network
namespace. Each was written for this test, in the shape that the program's sources or documents show:

- firewalld: its table inet firewalld, with zone public on eth0 and the pods' network in zone trusted
- kube-proxy in mode nftables: a service with two endpoints, one without endpoints
- calico: Felix in nftables mode, with one workload, cali0
- ufw and cilium: they use iptables-nft, whose rules nft shows without the options of extensions
"""

import copy
import json
from dataclasses import replace
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest

from sidecar.firewall.nft import NftRule, NftRules, NftTable, base_chains, read
from sidecar.firewall.nft_conditions import Elements
from sidecar.firewall.nft_values import Json
from sidecar.firewall.packet import ESTABLISHED, NEW, UNTRACKED, Hook, Journey, Packet, from_peer, from_this_node
from sidecar.firewall.verdicts import BaseChain, Effect, Judgement, Matches
from sidecar.firewall.walk import Met, Passage, passage, way
from sidecar.state.model import Family

RECORDED = Path(__file__).parent / "recorded"
IP = IPv4Address("10.96.0.2")
POD = IPv4Address("10.244.0.5")


def recorded(name: str) -> list[NftTable]:
    """Return the tables of a listing that is not terse: a set without elements has none."""
    tables = read((RECORDED / f"{name}.json").read_text())
    for table in tables:
        for each in table.sets.values():
            each.setdefault("elem", [])
    return tables


def listing(
    *rules: list[Json], family: str = "inet", table: Json = None, sets: tuple[Json, ...] = (), **base: Json
) -> str:
    """Return a listing of a table that has one base chain, `start`, and a chain `other` that drops."""
    place = {"family": family, "table": "t"}
    chain = {"name": "start", "type": "filter", "hook": "input", "prio": 0, "policy": "accept", **base}
    items: list[Json] = [
        {"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
        {"table": {"family": family, "name": "t", **(table or {})}},
        *sets,
        {"chain": {**place, **chain}},
        {"chain": {**place, "name": "other"}},
        {"rule": {**place, "chain": "other", "handle": 9, "expr": [{"drop": None}]}},
        *({"rule": {**place, "chain": "start", "handle": 1, "expr": rule}} for rule in rules),
    ]
    return json.dumps({"nftables": items})


def untracking() -> list[NftTable]:
    """Return a table that exempts all packets from connection tracking, as our rules in the table raw do."""
    place = {"family": "inet", "table": "untracking"}
    items = []
    for hook in ("prerouting", "output"):
        items += [
            {"chain": {**place, "name": hook, "type": "filter", "hook": hook, "prio": -300, "policy": "accept"}},
            {"rule": {**place, "chain": hook, "handle": 1, "expr": [{"notrack": None}]}},
        ]
    return read(json.dumps({"nftables": items}))


def follow(tables: list[NftTable], journey: Journey, family: Family = 4) -> Passage:
    return passage(base_chains(tables, family, Elements()), journey)


def of_pod(interface: str = "cali0", client: str = "10.244.0.5", ip: str = str(IP)) -> Journey:
    """Return the journey of a pod's request; the way back to it leads out by the same interface."""
    request, _ = from_peer(ip_address(ip), 443, interface, ip_address(client))
    return replace(request, steps=tuple((hook, replace(packet, returns=True)) for hook, packet in request.steps))


def packet(**known: Json) -> Packet:
    _, (_, arrived) = of_pod().steps[1:]
    return replace(arrived, **{"state": UNTRACKED, **known})


def judged(rule: list[Json], *, sets: tuple[Json, ...] = (), **known: Json) -> list[tuple[Matches, Effect]]:
    (table,) = read(listing(rule, sets=sets))
    judgements = NftRules(table, Elements()).judge(NftRule(rule), packet(**known))
    return [(each.matches, each.effect) for each in judgements or ()]


def text(met: Met | None) -> str:
    assert met
    return met.line


@pytest.mark.parametrize("tracked", [True, False], ids=["tracked", "untracked"])
class TestFirewalld:
    def tables(self, tracked: bool) -> list[NftTable]:  # noqa: FBT001 - a parameter of the tests
        return recorded("firewalld") + ([] if tracked else untracking())

    def test_pods_in_a_trusted_zone_pass(self, tracked: bool) -> None:  # noqa: FBT001 - as above
        assert follow(self.tables(tracked), of_pod()) == Passage(
            None, (), {**dict.fromkeys(PASSED, 0)}, _state(tracked)
        )

    def test_others_are_rejected_by_the_default_zone(self, tracked: bool) -> None:  # noqa: FBT001 - as above
        found = follow(self.tables(tracked), of_pod("eth0", "192.168.0.9"))
        assert text(found.stopped).startswith("reject with icmpx admin-prohibited # handle ")
        assert found.stopped
        assert found.stopped.chain == "filter_IN_public"
        assert found.stopped.base
        assert (found.stopped.base.table, found.stopped.base.priority) == ("table inet firewalld", 10)
        assert found.doubts == ()

    def test_this_node_passes(self, tracked: bool) -> None:  # noqa: FBT001 - as above
        found = follow(self.tables(tracked), from_this_node(IP, 443)[0])
        assert (found.stopped, found.doubts) == (None, ())


#: The hooks of a request from a peer.
PASSED = (Hook.INGRESS, Hook.PREROUTING, Hook.INPUT)


def _state(tracked: bool) -> str:  # noqa: FBT001 - as above
    return NEW if tracked else UNTRACKED


class TestKubeProxy:
    def test_a_pod_passes(self) -> None:
        found = follow(recorded("kube-proxy"), of_pod())
        assert (found.stopped, found.doubts) == (None, ())

    def test_what_this_node_sends_to_an_unallocated_address_is_dropped(self) -> None:
        found = follow(recorded("kube-proxy"), from_this_node(IP, 443)[0])
        assert text(found.stopped).startswith(
            'ip daddr 10.96.0.0/16 drop comment "Drop traffic to unallocated ClusterIPs" # handle '
        )

    def test_but_not_if_it_is_untracked(self) -> None:
        found = follow(recorded("kube-proxy") + untracking(), from_this_node(IP, 443)[0])
        assert (found.stopped, found.doubts) == (None, ())

    def test_a_service_takes_it_whichever_endpoint_is_chosen(self) -> None:
        found = follow(recorded("kube-proxy"), of_pod(ip="10.96.0.1"))
        assert found.stopped
        assert found.stopped.effect is Effect.TAKE
        assert "dnat to 192.168.0.3:6443" in found.stopped.line

    def test_elements_of_a_terse_listing_are_asked_for(self) -> None:
        full = recorded("kube-proxy")
        terse = copy.deepcopy(full)
        for each in terse[0].sets.values():
            del each["elem"]
        elements = Elements()
        journey = of_pod(ip="10.96.0.1")
        assert passage(base_chains(terse, 4, elements), journey).stopped is None
        for _ in range(5):
            for question in elements.questions:
                elements.answers[question] = full[0].sets[question.name]["elem"]
            elements.questions.clear()
            found = passage(base_chains(terse, 4, elements), journey)
        assert not elements.questions
        assert found == replace(follow(full, journey), stopped=found.stopped)
        assert found.stopped
        assert found.stopped.effect is Effect.TAKE

    def test_an_answer_that_cannot_be_had_is_a_doubt_and_no_question_any_more(self) -> None:
        terse = recorded("kube-proxy")
        for each in terse[0].sets.values():
            del each["elem"]
        elements = Elements()
        passage(base_chains(terse, 4, elements), of_pod())
        assert elements.questions
        elements.answers = dict.fromkeys(elements.questions)
        elements.questions.clear()
        found = passage(base_chains(terse, 4, elements), of_pod())
        assert not elements.questions
        assert {each.effect for each in found.doubts} == {Effect.UNKNOWN}
        assert found.stopped is None


class TestCalico:
    @pytest.mark.parametrize("tracked", [True, False], ids=["tracked", "untracked"])
    def test_a_workload_passes(self, tracked: bool) -> None:  # noqa: FBT001 - a parameter of the test
        found = follow(recorded("calico") + ([] if tracked else untracking()), of_pod())
        assert (found.stopped, found.doubts) == (None, ())

    def test_an_unknown_workload_is_dropped(self) -> None:
        found = follow(recorded("calico"), of_pod("cali9"))
        assert 'drop comment "cali:3; Unknown interface"' in text(found.stopped)

    def test_what_its_route_does_not_lead_back_to_is_dropped(self) -> None:
        journey = of_pod()
        steps = tuple((hook, replace(each, returns=False)) for hook, each in journey.steps)
        assert "fib saddr . mark . iif oif" in text(follow(recorded("calico"), replace(journey, steps=steps)).stopped)

    def test_another_interface_passes(self) -> None:
        found = follow(recorded("calico"), of_pod("eth0", "192.168.0.9"))
        assert (found.stopped, found.doubts) == (None, ())


class TestIptablesNft:
    """The tables of iptables, judged by what nft lists where iptables cannot list them."""

    def base(self, name: str, table: str, chain: str) -> BaseChain[NftRule]:
        rules = NftRules(next(each for each in recorded(name) if each.name == table), Elements())
        return BaseChain(Hook[chain], 0, table, chain, rules)

    def test_what_ufw_may_drop_is_a_doubt(self) -> None:
        found = way(self.base("ufw", "filter", "INPUT"), packet())
        assert found.ends
        assert found.certainly(Effect.ACCEPT) is None
        assert found.certainly(Effect.DROP) is None
        assert text(found.met[-1]) == "policy drop"
        assert not found.met[-1].certain

    def test_ufw_lets_this_node_in(self) -> None:
        found = way(self.base("ufw", "filter", "INPUT"), packet(came_in="lo"))
        assert found.certainly(Effect.ACCEPT)

    @pytest.mark.parametrize("chain", ["INPUT", "OUTPUT"])
    def test_cilium_drops_nothing(self, chain: str) -> None:
        assert not way(self.base("cilium", "filter", chain), packet()).perhaps(Effect.DROP, Effect.UNKNOWN)

    def test_a_mark_of_iptables_is_not_known(self) -> None:
        found = way(self.base("cilium", "filter", "OUTPUT"), packet())
        assert found.packet.mark is None


class TestBaseChains:
    def chains(self, text: str, family: Family = 4) -> list[BaseChain[NftRule]]:
        return base_chains(read(text), family, Elements())

    @pytest.mark.parametrize(
        ("family", "seen"), [("ip", [4]), ("ip6", [6]), ("inet", [4, 6]), ("arp", []), ("bridge", [])]
    )
    def test_a_table_sees_its_own_family(self, family: str, seen: list[int]) -> None:
        assert [each for each in (4, 6) if self.chains(listing(family=family), each)] == seen

    @pytest.mark.parametrize(
        ("printed", "priority"),
        [(10, 10), (-300, -300), ("filter", 0), ("filter + 10", 10), ("raw - 5", -305), ("dstnat+1", -99), ("-7", -7)],
    )
    def test_priorities_are_numbers_or_names(self, printed: Json, priority: int) -> None:
        assert [each.priority for each in self.chains(listing(prio=printed))] == [priority]

    def test_a_dormant_table_has_none(self) -> None:
        assert self.chains(listing(table={"flags": "dormant"})) == []
        assert self.chains(listing(table={"flags": ["dormant", "owner"]})) == []
        assert self.chains(listing(table={"flags": ["owner", "persist"]}))

    def test_forward_is_not_on_the_way(self) -> None:
        assert self.chains(listing(hook="forward")) == []

    def test_a_chain_of_type_nat_is_known_as_such(self) -> None:
        assert [each.is_nat for each in self.chains(listing(type="nat", hook="prerouting"))] == [True]

    @pytest.mark.parametrize(
        ("hook", "devices", "stops"),
        [
            ("ingress", "cali0", True),
            ("ingress", ["eth0", "cali0"], True),
            ("ingress", "eth0", False),
            ("ingress", None, None),
            ("egress", "cali0", False),
        ],
    )
    def test_devices(self, hook: str, devices: Json, stops: bool | None) -> None:  # noqa: FBT001 - an expectation
        dev = {} if devices is None else {"dev": devices}
        found = follow(read(listing([{"drop": None}], family="netdev", hook=hook, **dev)), of_pod())
        assert bool(found.stopped) is (stops is True)
        assert bool(found.doubts) is (stops is None)

    def test_a_policy_is_the_last_rule(self) -> None:
        (base,) = self.chains(listing([{"counter": {"packets": 1, "bytes": 2}}], policy="drop"))
        (met,) = way(base, packet()).met
        assert (met.line, met.effect, met.certain) == ("policy drop", Effect.DROP, True)

    def test_accept_ends_its_own_base_chain_only(self) -> None:
        tables = read(listing([{"accept": None}], prio=-1)) + read(listing([{"drop": None}], family="ip"))
        assert text(follow(tables, of_pod()).stopped) == "drop # handle 1"

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{}",
            "[]",
            '{"nftables": [{"rule": {}}]}',
            '{"nftables": [{"chain": 1}]}',
            listing(prio="odd"),
            listing(prio=None),
            "null",
        ],
    )
    def test_what_is_no_listing_is_an_error(self, text: str) -> None:
        with pytest.raises(ValueError, match="no listing of nft"):
            read(text)


#: Statements that no release prints, or that are not known here.
ODD: tuple[Json, ...] = (
    {},
    None,
    7,
    "odd",
    {"odd": None},
    {"match": None},
    {"match": {}},
    {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}}},
    {"match": {"op": "?", "left": {"meta": {"key": "iifname"}}, "right": "cali0"}},
    {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": "@missing"}},
    {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": "host.example"}},
    {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": {"range": [1]}}},
    {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "odd"}},
    {"match": {"op": "<", "left": {"meta": {"key": "iifname"}}, "right": "x"}},
    {"match": {"op": "==", "left": {"&": [{"meta": {"key": "mark"}}]}, "right": 1}},
    {"match": {"op": "==", "left": {"&": [{"meta": {"key": "mark"}}, "x"]}, "right": 1}},
    {"match": {"op": "==", "left": {"concat": [{"meta": {"key": "mark"}}, {"meta": {"key": "mark"}}]}, "right": 1}},
    {"match": {"op": "==", "left": {"fib": {"result": "type", "flags": None}}, "right": "local"}},
    {"xt": None},
    {"xt": {"type": "match", "name": "conntrack"}},
    {"limit": "a limit by name"},
    {"set": {"op": "add"}},
    {"mangle": {}},
)


@pytest.mark.parametrize("statement", ODD, ids=str)
def test_what_is_not_understood_matches_perhaps(statement: Json) -> None:
    assert judged([statement, {"drop": None}])[0] == (Matches.PERHAPS, Effect.DROP)
    assert NftRule([statement, {"drop": None}], 3).text.endswith("drop # handle 3")


@pytest.mark.parametrize("data", [{"set": 7}, {"set": [7]}, {"set": [["cali0", 7]]}, "@missing", None, 7], ids=str)
def test_a_malformed_map_may_do_anything(data: Json) -> None:
    found = judged([{"vmap": {"key": {"meta": {"key": "iifname"}}, "data": data}}])
    assert found[0] == (Matches.PERHAPS, Effect.UNKNOWN)


def match(left: Json, right: Json, op: str = "==") -> Json:
    return {"match": {"op": op, "left": left, "right": right}}


SOURCE = {"payload": {"protocol": "ip", "field": "saddr"}}
PORT = {"payload": {"protocol": "tcp", "field": "dport"}}
MARK = {"meta": {"key": "mark"}}
NAME = {"meta": {"key": "iifname"}}


@pytest.mark.parametrize(
    ("left", "known"),
    [
        (SOURCE, {"source": None}),
        (PORT, {"destination_port": None}),
        (NAME, {"came_in": None}),
        (MARK, {"mark": None}),
        ({"&": [MARK, 1]}, {"mark": None}),
        ({"ct": {"key": "state"}}, {"state": None}),
        ({"payload": {"protocol": "tcp", "field": "flags"}}, {"flags": None}),
        ({"meta": {"key": "skuid"}}, {"owner": None}),
        ({"fib": {"result": "type", "flags": ["daddr"]}}, {"is_to_here": None}),
        ({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}, {"returns": None}),
    ],
)
def test_what_is_not_known_of_a_packet_matches_perhaps(left: Json, known: Json) -> None:
    for op in ("==", "!="):
        assert judged([match(left, 1, op), {"drop": None}], **known) == [(Matches.PERHAPS, Effect.DROP)]


def test_a_key_that_is_partly_known_may_be_among_elements_that_fit() -> None:
    left = {"concat": [SOURCE, PORT]}
    there = {"set": [{"concat": ["1.2.3.4", 443]}]}
    elsewhere = {"set": [{"concat": ["1.2.3.4", 22]}]}
    assert judged([match(left, there), {"drop": None}], source=None) == [(Matches.PERHAPS, Effect.DROP)]
    assert judged([match(left, elsewhere), {"drop": None}], source=None) == []


def test_a_set_is_not_asked_for_if_nothing_of_its_key_is_known() -> None:
    (table,) = read(listing(sets=({"set": {"family": "inet", "table": "t", "name": "s"}},)))
    elements = Elements()
    rule = NftRule([match(SOURCE, "@s"), {"drop": None}])
    assert NftRules(table, elements).judge(rule, packet(source=None)) == [
        Judgement(Matches.PERHAPS, Effect.DROP, "drop")
    ]
    assert not elements.questions


FLAGS = {"payload": {"protocol": "tcp", "field": "flags"}}
STATE = {"ct": {"key": "state"}}
PROTOCOL = {"meta": {"key": "l4proto"}}

#: Several forms of the same, of which releases print one or another; whether a SYN from the pod matches.
FORMS: tuple[tuple[Json, bool], ...] = (
    (match({"fib": {"result": "type", "flags": "daddr"}}, "local"), True),
    (match({"fib": {"result": "type", "flags": ["daddr"]}}, "local"), True),
    (match({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}, "0"), False),
    (match({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}, False), False),  # noqa: FBT003 - as nft prints it
    (match({"fib": {"result": "check", "flags": ["saddr", "iif"]}}, True), True),  # noqa: FBT003 - as above
    (match({"&": [FLAGS, ["fin", "syn"]]}, "syn"), True),
    (match({"&": [FLAGS, {"|": ["fin", "syn"]}]}, "syn"), True),
    (match({"&": [FLAGS, {"|": [{"|": ["fin", "syn"]}, "ack"]}]}, "syn"), True),
    (match(FLAGS, {"|": ["syn", "ack"]}, "in"), True),
    (match(FLAGS, {"|": ["fin", "ack"]}, "in"), False),
    (match(FLAGS, "ack", "!"), True),
    (match({"&": [{"&": [MARK, 0xFF]}, 0xF]}, 1), True),
    (match({"&": [MARK, 0xFF, 0xF]}, 1), True),
    (match(STATE, ["established", "untracked"], "in"), True),
    (match(STATE, {"|": ["established", "untracked"]}, "in"), True),
    (match(STATE, {"set": ["established", "untracked"]}, "in"), True),
    (match(STATE, {"set": ["established", "untracked"]}), True),
    (match(PROTOCOL, 6), True),
    (match(PROTOCOL, "6"), True),
    (match(PROTOCOL, {"set": [17, 6]}), True),
    (match(PROTOCOL, "ipv6-icmp"), False),
    (match(NAME, {"set": "cali0"}), True),
    (match(NAME, {"set": [{"elem": {"val": "cali*", "counter": {"packets": 1, "bytes": 2}}}]}), True),
    (match(NAME, {"set": ["*"]}), True),
    (match({"meta": {"key": "iif"}}, "77"), False),
    (match({"payload": {"protocol": "ip", "field": "ttl"}}, 3, "<"), False),
    (match({"payload": {"protocol": "ip6", "field": "hoplimit"}}, 64), False),
    (match({"meta": {"key": "oif"}}, "0"), True),
    (match(SOURCE, {"prefix": {"addr": "0.0.0.0", "len": 0}}), True),
)


@pytest.mark.parametrize(("condition", "matches"), FORMS, ids=str)
def test_forms_of_several_releases(condition: Json, matches: bool) -> None:  # noqa: FBT001 - an expectation
    expected = [] if not matches else [(Matches.ALL, Effect.DROP)]
    assert judged([condition, {"drop": None}], mark=1, returns=True) == expected


@pytest.mark.parametrize("state", [NEW, UNTRACKED, ESTABLISHED])
def test_each_state_is_known_by_its_name(state: str) -> None:
    rule = [{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [[state.lower(), {"drop": None}]]}}}]
    assert judged(rule, state=state) == [(Matches.ALL, Effect.DROP)]


def test_an_untracked_packet_has_no_mark_of_its_connection() -> None:
    rule = [match({"ct": {"key": "mark"}}, 1, "!="), {"drop": None}]
    assert judged(rule, state=UNTRACKED) == []
    assert judged(rule, state=NEW) == [(Matches.PERHAPS, Effect.DROP)]


@pytest.mark.parametrize(
    ("value", "mark"),
    [
        (5, 5),
        ({"|": [MARK, 16]}, 17),
        ({"|": [{"&": [MARK, 0xFFFFFFF0]}, 2]}, 2),
        ({"^": [MARK, 3]}, 2),
        ({"odd": 1}, None),
    ],
)
def test_marks_are_followed(value: Json, mark: int | None) -> None:
    (base,) = base_chains(read(listing([{"mangle": {"key": MARK, "value": value}}])), 4, Elements())
    assert way(base, packet(mark=1)).packet.mark == mark


def test_a_mark_that_may_be_set_is_not_known() -> None:
    rules: tuple[list[Json], ...] = (
        [{"mangle": {"key": MARK, "value": 2}}, {"limit": {"rate": 1, "per": "second"}}, {"drop": None}],
        [{"limit": {"rate": 1, "per": "second"}}, {"mangle": {"key": MARK, "value": 3}}],
    )
    found = []
    for rule in rules:
        (base,) = base_chains(read(listing(rule)), 4, Elements())
        found.append(way(base, packet(mark=1)).packet.mark)
    assert found == [2, None]


def test_connection_tracking_is_not_undone_once_it_has_seen_a_packet() -> None:
    (base,) = base_chains(read(listing([{"notrack": None}])), 4, Elements())
    assert way(base, packet(state=NEW)).packet.state == NEW
    assert way(base, packet(state=None)).packet.state == UNTRACKED


def test_a_zone_has_a_packet_tracked_that_is_exempted_later() -> None:
    zone = {"mangle": {"key": {"ct": {"key": "zone"}}, "value": 7}}
    for rules in ([zone], [{"counter": None}]):
        tables = [*read(listing(rules, hook="prerouting", prio=-310)), *untracking()]
        assert follow(tables, of_pod()).state == (NEW if rules == [zone] else UNTRACKED)


def test_only_one_choice_of_several_is_certain_not_which() -> None:
    key = {"numgen": {"mode": "random", "mod": 2, "offset": 0}}
    both = {"set": [[0, {"drop": None}], [1, {"jump": {"target": "other"}}]]}
    one = {"set": [[0, {"drop": None}]]}
    for data, ends in ((both, True), (one, False)):
        (base,) = base_chains(read(listing([{"vmap": {"key": key, "data": data}}])), 4, Elements())
        assert way(base, packet()).ends is ends


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (
            [match(SOURCE, "@banned"), {"counter": {"packets": 1, "bytes": 2}}, {"drop": None}],
            "ip saddr @banned counter drop",
        ),
        ([match(NAME, "cali*", "!="), {"goto": {"target": "x"}}], 'iifname != "cali*" goto x'),
        ([match({"&": [MARK, 0x4000]}, 0, "!="), {"return": None}], "meta mark & 0x00004000 != 0x00000000 return"),
        ([match({"ct": {"key": "state"}}, ["established", "related"], "in")], "ct state established,related"),
        ([match(SOURCE, {"prefix": {"addr": "10.0.0.0", "len": 8}})], "ip saddr 10.0.0.0/8"),
        ([match(PORT, {"set": [22, {"range": [80, 90]}]})], "tcp dport { 22, 80-90 }"),
        (
            [{"vmap": {"key": NAME, "data": {"set": [["lo", {"accept": None}], ["a*", {"jump": {"target": "b"}}]]}}}],
            'iifname vmap { "lo" : accept, "a*" : jump b }',
        ),
        ([{"mangle": {"key": MARK, "value": {"|": [MARK, 1]}}}], "meta mark set meta mark | 0x00000001"),
        ([{"dnat": {"addr": "10.0.0.1", "port": 80}}], "dnat to 10.0.0.1:80"),
        ([{"reject": {"type": "icmpx", "expr": "admin-prohibited"}}], "reject with icmpx admin-prohibited"),
        ([{"limit": {"rate": 10, "burst": 5, "per": "second", "inv": True}}], "limit rate over 10/second"),
        ([{"log": {"prefix": "x "}}], 'log prefix "x "'),
        ([{"xt": {"type": "match", "name": "conntrack"}}], 'xt match "conntrack"'),
        ([match({"tcp option": {"name": "sack-perm"}}, right=True)], "tcp option sack-perm exists"),
    ],
)
def test_a_rule_is_shown_as_nft_lists_it(rule: list[Json], text: str) -> None:
    assert NftRule(rule).text == text
