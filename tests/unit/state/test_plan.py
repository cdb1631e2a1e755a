from dataclasses import replace
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from sidecar.state.actions import (
    Action,
    AddAddress,
    AddRule,
    CreateLink,
    DeleteLink,
    DeprecateAddress,
    MoveToFront,
    RemoveAddress,
    RemoveRule,
    RemoveSurplus,
    RuleAction,
    SetLinkUp,
)
from sidecar.state.desired import desired
from sidecar.state.foresee import whole_plan
from sidecar.state.model import Address, AddressState, Desired, Hindrance, Link, LinkAddress, Observed, Rule
from sidecar.state.plan import MARK, notices, obstacles, plan, teardown, unread
from support.namespace import IPV4, IPV6

GOAL = desired([IPV4, IPV6], interface="lo", port=443, setup_iptables=True)
OWN = replace(GOAL, interface="own0", addresses=tuple(Address(a.ip, a.prefix_length, "own0") for a in GOAL.addresses))
NO_COPIES: dict[Rule, int] = dict.fromkeys(GOAL.rules, 0)

OURS = (LinkAddress(IPV4, 32, "host"), LinkAddress(IPV6, 128, "global", is_deprecated=True))
PREFERRED = replace(OURS[1], is_deprecated=False)
FOREIGN = (
    LinkAddress(IPV4, 24, "global"),
    LinkAddress(IPV6, 64, "global"),
    LinkAddress(ip_address("192.168.7.1"), 24, "global"),
    LinkAddress(ip_address("fe80::1"), 64, "link", made_by_kernel=True),
    LinkAddress(ip_address("169.254.20.10"), 32, "link"),
    LinkAddress(IPV6, 128, "global", is_peer=True),
)


def as_the_kernel_has_it(address: LinkAddress) -> object:
    """Return what makes an address another one: IPv6 takes it once, whatever its prefix length; IPv4 once with each."""
    return address.ip, address.prefix_length if address.ip.version == 4 else 0


@st.composite
def observations(draw: st.DrawFn) -> Observed:
    """Any state of a node: with each part there, there more than once, missing, or not to be seen."""
    addresses = st.lists(st.sampled_from([*OURS, PREFERRED, *FOREIGN]), unique_by=as_the_kernel_has_it)
    links = [
        Link(
            name,
            is_up=draw(st.booleans()),
            alias=draw(st.sampled_from(["", MARK])),
            kind=draw(st.sampled_from(["", "dummy"])),
            has_dependents=draw(st.booleans()),
            addresses=tuple(draw(addresses)),
        )
        for name in draw(st.lists(st.sampled_from(["lo", "own0", "eth0"]), unique=True))
    ]
    copies = draw(st.dictionaries(st.sampled_from(GOAL.rules), st.integers(0, 4)))
    return Observed(draw(st.sampled_from([None, tuple(links)])), copies)


goals = st.builds(
    replace,
    st.sampled_from([GOAL, OWN]),
    link_kind=st.sampled_from(["", "dummy"]),
    remove_duplicates=st.booleans(),
)


def addresses_after(there: tuple[LinkAddress, ...], action: Action) -> tuple[LinkAddress, ...]:
    """Return what is on a link once this action was carried out on it."""
    match action:
        case AddAddress(address, scope):
            is_ipv6 = address.ip.version == 6
            return (*there, LinkAddress(address.ip, address.prefix_length, scope, is_deprecated=is_ipv6))
        case DeprecateAddress(address):
            changed = tuple(replace(a, is_deprecated=True) if a.cidr == address.cidr else a for a in there)
            assert changed != there
            return changed
        case RemoveAddress(address):
            left = tuple(a for a in there if (a.ip, a.prefix_length) != (address.ip, address.prefix_length))
            assert len(left) == len(there) - 1
            return left
    raise AssertionError(action)


def after(observed: Observed, actions: tuple[Action, ...]) -> Observed:
    """Return what a node is like once these actions were carried out."""
    links, copies = {link.name: link for link in observed.links or ()}, dict(observed.copies)
    for action in actions:
        match action:
            case CreateLink(name, kind):
                assert name not in links
                links[name] = Link(name, kind=kind, alias=MARK)
            case SetLinkUp(name):
                links[name] = replace(links[name], is_up=True)
            case DeleteLink(name):
                del links[name]
            case AddAddress(address) | DeprecateAddress(address) | RemoveAddress(address):
                there = links[address.interface]
                links[address.interface] = replace(there, addresses=addresses_after(there.addresses, action))
            case AddRule(rule):
                copies[rule] += 1
            case RemoveSurplus(rule, surplus):
                copies[rule] -= surplus
            case RemoveRule(rule, number):
                copies[rule] -= number
    return Observed(None if observed.links is None else tuple(links.values()), copies)


def converged(goal: Desired, observed: Observed, data: st.DataObject) -> Observed:
    """Return what a node is like after planning again and again, each plan but the last cut short somewhere."""
    for _ in range(data.draw(st.integers(0, 3))):
        actions = plan(goal, observed)
        observed = after(observed, actions[: data.draw(st.integers(0, len(actions)))])
    for _ in range(2):  # duplicates are removed only once the address is seen to be in place
        observed = after(observed, plan(goal, observed))
    return observed


@given(goals, observations(), st.data())
def test_from_any_half_done_plan_planning_again_reaches_the_goal(
    goal: Desired, observed: Observed, data: st.DataObject
) -> None:
    reached = converged(goal, observed, data)
    assert plan(goal, reached) == ()
    assert set(reached.copies.values()) <= {1}
    link = reached.link(goal.interface)
    if link:
        assert {address.ip for address in goal.addresses} <= {found.ip for found in link.addresses}
    if link and link.is_up and goal.remove_duplicates:
        others = [found for other in reached.links or () for found in other.addresses if other != link]
        elsewhere = {found.cidr for found in others if not found.is_peer}
        assert not elsewhere & {address.cidr for address in goal.addresses}


@given(goals, observations())
def test_a_whole_plan_reaches_the_goal_without_another_look(goal: Desired, observed: Observed) -> None:
    actions = whole_plan(goal, observed)
    first = plan(goal, observed)
    assert actions[: len(first)] == first
    assert plan(goal, after(observed, actions)) == ()


def test_a_whole_plan_takes_copies_away_before_it_moves_the_one_that_is_left() -> None:
    goal = replace(GOAL, insert=True)
    rule = goal.rules[3]
    behind = Observed(
        everything().links, {**everything().copies, rule: 3}, {rule: Hindrance("-A INPUT -j DROP", certain=True)}
    )
    assert whole_plan(goal, behind) == (RemoveSurplus(rule, 2), MoveToFront(rule, "-A INPUT -j DROP"))


@given(goals, observations(), st.data())
def test_from_any_half_done_teardown_everything_goes_in_the_end(
    goal: Desired, observed: Observed, data: st.DataObject
) -> None:
    actions = teardown(goal, observed)
    interrupted = after(observed, actions[: data.draw(st.integers(0, len(actions)))])
    gone = after(interrupted, teardown(goal, interrupted))
    assert teardown(goal, gone) == ()
    assert set(gone.copies.values()) <= {0}
    link = gone.link(goal.interface)
    left = {found.cidr for found in (link.addresses if link else ()) if not found.is_peer}
    assert not left & {address.cidr for address in goal.addresses}


@given(goals, observations())
def test_what_was_not_seen_is_not_acted_on(goal: Desired, observed: Observed) -> None:
    actions = [*plan(goal, observed), *teardown(goal, observed)]
    assert {action.rule for action in actions if isinstance(action, RuleAction)} <= observed.copies.keys()
    if observed.links is None:
        assert [action for action in actions if not isinstance(action, RuleAction)] == []
        assert [*obstacles(goal, observed), *notices(goal, observed)] == []


@given(goals, observations())
def test_what_is_not_ours_is_not_touched(goal: Desired, observed: Observed) -> None:
    """But for copies of our addresses on other links, where that was asked for."""
    for action in (*plan(goal, observed), *teardown(goal, observed)):
        match action:
            case DeleteLink(name):
                link = observed.link(name)
                assert link
                assert (link.name, link.alias, link.kind) == (goal.interface, MARK, "dummy")
                assert {found.cidr for found in link.addresses} <= {"10.96.0.2/32", "fd00:10:96::2/128", "fe80::1/64"}
                assert not link.has_dependents
                assert not any(found.is_peer for found in link.addresses)
            case SetLinkUp(name):
                link = observed.link(name)
                assert link
                assert link.name == "lo" or link.alias == MARK
            case CreateLink(name):
                assert name == goal.interface
                assert goal.link_kind
            case AddAddress(address) | DeprecateAddress(address):
                assert address in goal.addresses
            case RemoveAddress(address):
                # A wider network takes other addresses and routes with it.
                is_whole = (address.ip, address.prefix_length) in ((IPV4, 32), (IPV6, 128))
                assert address in goal.addresses or (goal.remove_duplicates and is_whole)


def everything(**changes: object) -> Observed:
    link = replace(Link("lo", addresses=OURS), **changes)  # type: ignore[arg-type] # fields of Link, by name
    return Observed((link,), dict.fromkeys(GOAL.rules, 1))


def test_a_node_in_sync_needs_nothing() -> None:
    assert plan(GOAL, everything()) == ()
    assert [*obstacles(GOAL, everything()), *notices(GOAL, everything())] == []


def test_a_patient_teardown_keeps_an_address_while_its_rules_are_unknown() -> None:
    only_ipv4 = {rule: 0 for rule in GOAL.rules if rule.family == 4}
    observed = replace(everything(), copies=only_ipv4)
    assert teardown(GOAL, observed, patient=True) == (RemoveAddress(GOAL.addresses[0]),)
    assert teardown(GOAL, observed) == tuple(map(RemoveAddress, GOAL.addresses))


def test_rules_go_before_the_address_and_that_before_the_link() -> None:
    own = Observed((Link("own0", kind="dummy", alias=MARK, addresses=OURS),), dict.fromkeys(GOAL.rules, 1))
    kinds = [type(action) for action in teardown(OWN, own)]
    assert kinds == [RemoveRule] * 10 + [RemoveAddress] * 2 + [DeleteLink]


def test_without_the_interface_the_rules_are_still_set_up() -> None:
    goal = replace(GOAL, link_kind="")
    nothing = Observed((), NO_COPIES)
    assert {type(action) for action in plan(goal, nothing)} == {AddRule}
    assert [failure.attempt for failure in obstacles(goal, nothing)] == ["add 10.96.0.2/32", "add fd00:10:96::2/128"]


def test_a_missing_interface_is_created_first() -> None:
    actions = plan(OWN, Observed((Link("lo"),), {}))
    assert [type(action) for action in actions] == [CreateLink, AddAddress, AddAddress]


def test_what_could_not_be_read_of_the_interface_is_neither_added_nor_called_done() -> None:
    own = Link("own0", kind="dummy", alias=MARK, addresses=OURS[:1], problem="odd")
    for link in (own, replace(own, name="", addresses=())):
        observed = Observed((Link("lo"), link), dict.fromkeys(GOAL.rules, 1))
        assert plan(OWN, observed) == ()
        unknown = OWN.addresses[len(link.addresses) :]
        assert [failure.attempt for failure in unread(OWN, observed)] == [f"look for {each}" for each in unknown]
        assert not [action for action in teardown(OWN, observed) if isinstance(action, DeleteLink)]
        (notice,) = notices(OWN, observed)
        assert "can be read only in part: odd" in str(notice)


def test_an_interface_by_another_of_its_names() -> None:
    goal = replace(OWN, interface="other0")
    assert plan(goal, everything(name="eth0", altnames=("other0",))) == ()


def test_an_ipv4_address_with_another_prefix_length_stays_and_ours_is_added_beside_it() -> None:
    observed = everything(addresses=(FOREIGN[0], OURS[1]))
    assert plan(GOAL, observed) == (AddAddress(GOAL.addresses[0], "host"),)


def test_an_ipv6_address_with_another_prefix_length_is_taken_as_it_is() -> None:
    """For the kernel takes no second one."""
    for is_deprecated, risk in ((True, ""), (False, "; it is not deprecated, so it may become a source address")):
        observed = everything(addresses=(OURS[0], replace(FOREIGN[1], is_deprecated=is_deprecated)))
        assert plan(GOAL, observed) == ()
        assert [str(notice) for notice in notices(GOAL, observed)] == [
            f"fd00:10:96::2/64 on lo is used as it is, and cleanup leaves it in place{risk}"
        ]
    assert RemoveAddress(GOAL.addresses[1]) not in teardown(GOAL, observed)


def test_another_scope_is_kept_and_noticed() -> None:
    observed = everything(addresses=(replace(OURS[0], scope="global"), OURS[1]))
    assert plan(GOAL, observed) == ()
    (notice,) = notices(GOAL, observed)
    assert "10.96.0.2/32 on lo has scope global instead of host" in str(notice)


def test_an_ipv6_address_that_may_become_a_source_is_changed_in_place() -> None:
    observed = everything(addresses=(OURS[0], PREFERRED))
    assert plan(GOAL, observed) == (DeprecateAddress(GOAL.addresses[1]),)
    assert whole_plan(GOAL, observed) == (DeprecateAddress(GOAL.addresses[1]),)
    for other in (FOREIGN[1], FOREIGN[5]):  # the kernel takes no second one, and it is not exactly the one we add
        assert plan(GOAL, everything(addresses=(OURS[0], other))) == ()


def test_an_address_elsewhere_is_noticed_or_removed_once_it_is_in_place() -> None:
    elsewhere = Link("eth0", addresses=(OURS[0],))
    both = Observed((Link("lo", addresses=OURS), elsewhere), dict.fromkeys(GOAL.rules, 1))
    (notice,) = notices(GOAL, both)
    assert "10.96.0.2/32 is on eth0 as well; --remove-duplicates" in str(notice)
    goal = replace(GOAL, remove_duplicates=True)
    assert list(notices(goal, both)) == []
    assert plan(goal, both) == (RemoveAddress(Address(IPV4, 32, "eth0")),)
    only_there = replace(both, links=(Link("lo", addresses=OURS[1:]), elsewhere))
    assert plan(goal, only_there) == (AddAddress(GOAL.addresses[0], "host"),)


def test_an_address_that_cannot_be_used_yet_or_at_all_is_not_in_sync() -> None:
    for state, reason in ((AddressState.TENTATIVE, "tentative"), (AddressState.DUPLICATE, "another host")):
        observed = everything(addresses=(OURS[0], replace(OURS[1], state=state)))
        assert plan(GOAL, observed) == ()
        (failure,) = obstacles(GOAL, observed)
        assert reason in str(failure)


def test_where_the_address_does_not_work_others_keep_it() -> None:
    goal = replace(OWN, remove_duplicates=True)
    elsewhere = Link("eth0", addresses=OURS)
    duplicate = replace(OURS[1], state=AddressState.DUPLICATE)
    for own in (
        Link("own0", is_up=False, addresses=OURS),
        Link("own0", is_up=False, addresses=(OURS[0], duplicate)),
    ):
        observed = Observed((own, elsewhere), dict.fromkeys(GOAL.rules, 1))
        assert plan(goal, observed) == ()
        assert [str(notice) for notice in notices(goal, observed)][1:] == [
            "10.96.0.2/32 is on eth0 as well, and stays there until it works on own0",
            "fd00:10:96::2/128 is on eth0 as well, and stays there until it works on own0",
        ]


def test_an_address_with_a_network_is_never_taken_off_another_interface() -> None:
    goal = replace(GOAL, remove_duplicates=True)
    observed = Observed((Link("lo", addresses=OURS), Link("eth0", addresses=FOREIGN[:1])), {})
    assert plan(goal, observed) == ()
    (notice,) = notices(goal, observed)
    assert str(notice) == "10.96.0.2/24 is on eth0 as well, with a network or a peer, and stays there"


def test_with_insert_only_what_certainly_hinders_a_rule_makes_it_move() -> None:
    goal, rule = replace(GOAL, insert=True), GOAL.rules[3]
    for certain in (True, False):
        observed = replace(everything(), hindrances={rule: Hindrance("-A INPUT -j DROP", certain=certain)})
        assert plan(goal, observed) == ((MoveToFront(rule, "-A INPUT -j DROP"),) if certain else ())
        assert plan(GOAL, observed) == ()


def test_a_link_that_is_down_is_set_up_only_if_it_is_ours_or_lo() -> None:
    assert plan(GOAL, everything(is_up=False)) == (SetLinkUp("lo"),)
    assert plan(OWN, everything(name="own0", is_up=False, alias=MARK)) == (SetLinkUp("own0"),)
    assert plan(OWN, everything(name="own0", is_up=False)) == ()
    (notice,) = notices(OWN, everything(name="own0", is_up=False))
    assert "own0 is down: nothing reaches its addresses; this program did not create it" in str(notice)
