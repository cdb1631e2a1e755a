from hypothesis import given
from hypothesis import strategies as st

from sidecar.desired import desired
from sidecar.model import (
    Action,
    AddAddress,
    Address,
    AddRule,
    Observed,
    RemoveAddress,
    RemoveRule,
    RemoveSurplus,
    Rule,
)
from sidecar.plan import plan, teardown
from support.namespace import IPV4, IPV6

GOAL = desired([IPV4, IPV6], interface="lo", port=443, setup_iptables=True)
FOREIGN = Address(IPV4, 32, "eth0")


@st.composite
def observations(draw: st.DrawFn) -> Observed:
    """Any state of a node: with each part there, there more than once, missing, or not to be seen."""
    addresses = draw(st.none() | st.frozensets(st.sampled_from([*GOAL.addresses, FOREIGN])))
    links = draw(st.sampled_from([frozenset({"lo"}), frozenset({"lo", "eth0"})])) if addresses is not None else None
    copies = draw(st.dictionaries(st.sampled_from(GOAL.rules), st.integers(0, 4)))
    return Observed(links, addresses, copies)


def after(observed: Observed, actions: tuple[Action, ...]) -> Observed:
    """Return what a node is like once these actions were carried out."""
    addresses, copies = set(observed.addresses or ()), dict(observed.copies)
    for action in actions:
        match action:
            case AddAddress(address):
                addresses.add(address)
            case RemoveAddress(address):
                addresses.remove(address)
            case AddRule(rule):
                copies[rule] += 1
            case RemoveSurplus(rule, surplus):
                copies[rule] -= surplus
            case RemoveRule(rule, number):
                copies[rule] -= number
    return Observed(observed.links, None if observed.addresses is None else frozenset(addresses), copies)


@given(observations(), st.data())
def test_from_any_half_done_plan_planning_again_reaches_the_goal(observed: Observed, data: st.DataObject) -> None:
    actions = plan(GOAL, observed)
    interrupted = after(observed, actions[: data.draw(st.integers(0, len(actions)))])
    reached = after(interrupted, plan(GOAL, interrupted))
    assert plan(GOAL, reached) == ()
    assert set(reached.copies.values()) <= {1}
    assert reached.addresses is None or reached.addresses >= set(GOAL.addresses)


@given(observations(), st.data())
def test_from_any_half_done_teardown_everything_goes_in_the_end(observed: Observed, data: st.DataObject) -> None:
    actions = teardown(GOAL, observed)
    interrupted = after(observed, actions[: data.draw(st.integers(0, len(actions)))])
    gone = after(interrupted, teardown(GOAL, interrupted))
    assert teardown(GOAL, gone) == ()
    assert set(gone.copies.values()) <= {0}
    assert not (gone.addresses or frozenset()) & set(GOAL.addresses)


@given(observations())
def test_what_was_not_seen_is_not_acted_on(observed: Observed) -> None:
    for action in (*plan(GOAL, observed), *teardown(GOAL, observed)):
        match action:
            case AddAddress() | RemoveAddress():
                assert observed.addresses is not None
            case AddRule(rule) | RemoveSurplus(rule) | RemoveRule(rule):
                assert rule in observed.copies


@given(observations())
def test_an_address_on_another_interface_is_neither_taken_for_ours_nor_touched(observed: Observed) -> None:
    assert all(
        action.address != FOREIGN
        for action in (*plan(GOAL, observed), *teardown(GOAL, observed))
        if isinstance(action, AddAddress | RemoveAddress)
    )


def everything() -> Observed:
    return Observed(frozenset({"lo"}), frozenset(GOAL.addresses), dict.fromkeys(GOAL.rules, 1))


def test_a_node_in_sync_needs_nothing() -> None:
    assert plan(GOAL, everything()) == ()


def test_a_patient_teardown_keeps_an_address_while_its_rules_are_unknown() -> None:
    only_ipv4 = {rule: 0 for rule in GOAL.rules if rule.family == 4}
    observed = Observed(frozenset({"lo"}), frozenset(GOAL.addresses), only_ipv4)
    assert teardown(GOAL, observed, patient=True) == (RemoveAddress(GOAL.addresses[0]),)
    assert teardown(GOAL, observed) == tuple(map(RemoveAddress, GOAL.addresses))


def test_rules_go_before_the_address() -> None:
    kinds = [type(action) for action in teardown(GOAL, everything())]
    assert kinds == [RemoveRule] * 10 + [RemoveAddress] * 2


def test_without_the_interface_the_rules_are_still_set_up() -> None:
    nothing: dict[Rule, int] = dict.fromkeys(GOAL.rules, 0)
    kinds = {type(action) for action in plan(GOAL, Observed(frozenset(), frozenset(), nothing))}
    assert kinds == {AddRule}
