from dataclasses import replace

import pytest

from sidecar.state.desired import desired
from sidecar.state.inventory import Item, State, is_in_sync, survey
from sidecar.state.model import AddressState, Desired, Hindrance, Link, LinkAddress, Observed
from sidecar.state.plan import MARK
from support.namespace import IPV4, IPV6

GOAL = desired([IPV4, IPV6], interface="dummy0", port=443, setup_iptables=True)
FOUR, SIX = GOAL.addresses
RULE = GOAL.rules[3]

HELD_4 = LinkAddress(IPV4, 32, "host")
HELD_6 = LinkAddress(IPV6, 128, "global", is_deprecated=True)
HELD = Link("dummy0", kind="dummy", alias=MARK, addresses=(HELD_4, HELD_6))
FOREIGN = replace(HELD, alias="")
COPIES = dict.fromkeys(GOAL.rules, 1)
ALL = Observed((HELD,), COPIES)

#: One more copy of both addresses, on another interface.
DUPLICATES = Link("eth0", addresses=(LinkAddress(IPV4, 24, "global"), LinkAddress(IPV6, 64, "global")))
TENTATIVE = replace(HELD_6, state=AddressState.TENTATIVE)
PREFERRED = "not deprecated, so it may become a source address"
DUPLICATE = replace(HELD_6, state=AddressState.DUPLICATE)


def holding(*addresses: LinkAddress) -> Link:
    return replace(HELD, addresses=addresses)


def find(name: str, *links: Link) -> tuple[State, str]:
    """Look for one thing on a node that has these links."""
    (item,) = [each for each in survey(GOAL, Observed(links, COPIES)) if each.name == name]
    return item.state, item.detail


def find_rule(observed: Observed) -> Item:
    (item,) = [each for each in survey(GOAL, observed) if each.name == str(RULE)]
    return item


def test_an_item_for_each_thing_the_interface_first_then_addresses_then_rules() -> None:
    items = survey(GOAL, ALL)
    things = [
        ("interface", "dummy0"),
        ("address", "10.96.0.2/32 on dummy0"),
        ("address", "fd00:10:96::2/128 on dummy0"),
    ]
    assert [(each.kind, each.name) for each in items] == [*things, *(("rule", str(rule)) for rule in GOAL.rules)]
    assert {each.state for each in items} == {State.PRESENT}
    facts: list[object] = [{"interface": "dummy0"}]
    facts += [{"address": "10.96.0.2/32", "interface": "dummy0"}, {"address": str(SIX.cidr), "interface": "dummy0"}]
    assert [each.facts for each in items[:3]] == facts
    assert [each.facts["family"] for each in items[3:]] == [4] * 5 + [6] * 5


def test_what_could_not_be_looked_at_is_not_known_to_be_missing() -> None:
    items = survey(GOAL, Observed(None, {}))
    assert [(each.state, each.detail) for each in items] == [(State.UNKNOWN, "")] * 13
    assert [each.facts for each in items] == [each.facts for each in survey(GOAL, ALL)]


@pytest.mark.parametrize(
    ("links", "state", "detail"),
    [
        ((FOREIGN,), State.PRESENT, ""),
        ((HELD,), State.PRESENT, "created by this program"),
        ((replace(FOREIGN, name="eth7", altnames=("dummy0",)),), State.PRESENT, "is eth7"),
        ((replace(HELD, name="eth7", altnames=("dummy0",)),), State.PRESENT, "is eth7, created by this program"),
        ((replace(FOREIGN, is_up=False),), State.DOWN, ""),
        ((replace(HELD, is_up=False),), State.DOWN, "created by this program"),
        ((Link("lo"), Link("dummy1")), State.MISSING, ""),
        ((), State.MISSING, ""),
        ((Link("", problem="odd"),), State.UNKNOWN, ""),
        ((Link("eth9", problem="odd"),), State.MISSING, ""),
    ],
)
def test_the_interface(links: tuple[Link, ...], state: State, detail: str) -> None:
    assert find("dummy0", *links) == (state, detail)


@pytest.mark.parametrize(
    ("links", "state", "detail"),
    [
        ([HELD], State.PRESENT, ""),
        ([replace(HELD, is_up=False)], State.PRESENT, ""),
        ([holding()], State.MISSING, ""),
        ([], State.MISSING, ""),
        ([replace(holding(), problem="odd")], State.UNKNOWN, "odd"),
        ([replace(HELD, problem="odd")], State.PRESENT, ""),
        ([Link("", problem="odd")], State.UNKNOWN, "odd"),
        ([HELD, Link("", problem="odd")], State.PRESENT, ""),
        ([holding(), Link("eth9", problem="odd")], State.MISSING, ""),
        ([holding(LinkAddress(IPV4, 24, "host"))], State.MISSING, ""),  # which leaves room for it as a /32
        ([holding(replace(HELD_4, is_peer=True))], State.MISSING, ""),
        ([holding(LinkAddress(IPV4 + 1, 32, "host"))], State.MISSING, ""),
        ([holding(LinkAddress(IPV4, 24, "global"), HELD_4)], State.PRESENT, ""),
        ([holding(replace(HELD_4, scope="global"))], State.PRESENT, "scope global"),
        ([DUPLICATES], State.ELSEWHERE, "it is on eth0"),
        ([holding(), DUPLICATES, replace(DUPLICATES, name="eth1")], State.ELSEWHERE, "it is on eth0, eth1"),
        ([HELD, DUPLICATES], State.PRESENT, "also on eth0"),
        ([holding(replace(HELD_4, scope="link")), DUPLICATES], State.PRESENT, "scope link, also on eth0"),
    ],
)
def test_an_ipv4_address(links: list[Link], state: State, detail: str) -> None:
    assert find("10.96.0.2/32 on dummy0", *links) == (state, detail)


@pytest.mark.parametrize(
    ("links", "state", "detail"),
    [
        ([HELD], State.PRESENT, ""),
        ([holding(HELD_4)], State.MISSING, ""),
        ([holding(replace(HELD_6, is_deprecated=False))], State.PREFERRED, PREFERRED),
        ([holding(replace(TENTATIVE, is_deprecated=False))], State.UNUSABLE, "tentative"),
        ([holding(replace(HELD_6, prefix_length=64, is_deprecated=False))], State.PRESENT, "as fd00:10:96::2/64"),
        ([holding(replace(HELD_6, scope="host"))], State.PRESENT, ""),  # to IPv6 the kernel gives the scope
        ([holding(replace(HELD_6, prefix_length=64))], State.PRESENT, "as fd00:10:96::2/64"),
        ([holding(replace(HELD_6, is_peer=True)), DUPLICATES], State.PRESENT, "with a peer, also on eth0"),
        ([holding(TENTATIVE)], State.UNUSABLE, "tentative"),
        ([holding(DUPLICATE), DUPLICATES], State.UNUSABLE, "duplicate"),
        ([DUPLICATES], State.ELSEWHERE, "it is on eth0"),
    ],
)
def test_an_ipv6_address(links: list[Link], state: State, detail: str) -> None:
    assert find("fd00:10:96::2/128 on dummy0", *links) == (state, detail)


@pytest.mark.parametrize(
    ("copies", "state", "detail"),
    [(0, State.MISSING, ""), (1, State.PRESENT, ""), (2, State.COPIES, "2 copies"), (31, State.COPIES, "31 copies")],
)
def test_a_rule(copies: int, state: State, detail: str) -> None:
    item = find_rule(Observed((HELD,), {**COPIES, RULE: copies}))
    assert (item.state, item.detail) == (state, detail)
    assert item.facts == RULE.facts | ({"copies": copies} if copies > 1 else {})


@pytest.mark.parametrize(
    ("copies", "certain", "state", "detail"),
    [
        (1, True, State.NO_EFFECT, "behind `-A INPUT -j DROP`"),
        (1, False, State.PRESENT, ""),
        (0, True, State.MISSING, ""),
        (2, True, State.COPIES, "2 copies"),
    ],
)
def test_a_rule_behind_another_one(copies: int, certain: bool, state: State, detail: str) -> None:  # noqa: FBT001 - a parameter
    item = find_rule(Observed((HELD,), {**COPIES, RULE: copies}, {RULE: Hindrance("-A INPUT -j DROP", certain)}))
    assert (item.state, item.detail) == (state, detail)


def test_a_rule_that_could_not_be_looked_for_beside_others_that_could() -> None:
    items = survey(GOAL, Observed((HELD,), {rule: 1 for rule in GOAL.rules if rule != RULE}))
    assert [each.name for each in items if each.state is State.UNKNOWN] == [str(RULE)]


# In sync: what `run` would leave alone

CERTAIN = {RULE: Hindrance("-A INPUT -j DROP", certain=True)}
PERHAPS = {RULE: Hindrance("-A INPUT -j KUBE-FIREWALL", certain=False)}
INSERTING = replace(GOAL, insert=True)


@pytest.mark.parametrize(
    ("goal", "observed", "expected"),
    [
        (GOAL, ALL, True),
        (GOAL, replace(ALL, links=None), False),
        (GOAL, replace(ALL, copies={rule: 1 for rule in GOAL.rules if rule != RULE}), False),
        (GOAL, replace(ALL, copies={**COPIES, RULE: 0}), False),
        (GOAL, replace(ALL, copies={**COPIES, RULE: 2}), False),
        (GOAL, replace(ALL, hindrances=CERTAIN), True),
        (INSERTING, replace(ALL, hindrances=CERTAIN), False),
        (INSERTING, replace(ALL, hindrances=PERHAPS), True),
        (GOAL, replace(ALL, links=()), False),
        (GOAL, replace(ALL, links=(replace(HELD, problem="odd"), Link("", problem="odd"))), True),
        (GOAL, replace(ALL, links=(replace(holding(HELD_4), problem="odd"),)), False),
        (GOAL, replace(ALL, links=(Link("", problem="odd"),)), False),
        (replace(GOAL, link_kind=""), replace(ALL, links=()), False),
        (GOAL, replace(ALL, links=(holding(HELD_4),)), False),
        (GOAL, replace(ALL, links=(holding(HELD_4, replace(HELD_6, is_deprecated=False)),)), False),
        (GOAL, replace(ALL, links=(holding(HELD_4, TENTATIVE),)), False),
        (GOAL, replace(ALL, links=(holding(HELD_4, DUPLICATE),)), False),
        (GOAL, replace(ALL, links=(holding(replace(HELD_4, scope="global"), HELD_6),)), True),
        (GOAL, replace(ALL, links=(replace(HELD, is_up=False),)), False),
        (GOAL, replace(ALL, links=(replace(FOREIGN, is_up=False),)), True),  # there may be a reason
        (GOAL, replace(ALL, links=(HELD, replace(HELD, name="eth0", alias=""))), True),
        (replace(GOAL, remove_duplicates=True), replace(ALL, links=(HELD, replace(HELD, name="eth0"))), False),
        (desired([IPV4], interface="dummy0", port=443), Observed((HELD,), {}), True),
    ],
)
def test_in_sync(goal: Desired, observed: Observed, expected: bool) -> None:  # noqa: FBT001 - a parameter
    assert is_in_sync(goal, observed) is expected
