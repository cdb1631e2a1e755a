from dataclasses import replace

from sidecar.errors import InterfaceMissing
from sidecar.state.actions import Action, AddAddress, CreateLink, RemoveAddress
from sidecar.state.desired import desired
from sidecar.state.foresee import whole_plan
from sidecar.state.history import remember
from sidecar.state.model import Address, Desired, History, Link, LinkAddress, Observed
from sidecar.state.plan import MARK, obstacles, plan, teardown
from support.namespace import IPV4, IPV6

GOAL = desired([IPV4, IPV6], interface="own0", port=443)
HELD = (LinkAddress(IPV4, 32, "host"), LinkAddress(IPV6, 128, "global", is_deprecated=True))
FOREIGN = Link("own0", index=5, addresses=HELD)
OURS = replace(FOREIGN, alias=MARK, kind="dummy")
LO = Link("lo", index=1)
ADDRESSES_ON_NEW = [Address(IPV4, 32, "new0"), Address(IPV6, 128, "new0")]


def looks(*states: tuple[Link, ...] | None, goal: Desired = GOAL) -> Observed:
    """Look at these states one after the other, and return the last, with what is remembered."""
    history = History()
    for links in states:
        history = remember(goal, Observed(links, {}, history=history))
    return Observed(states[-1], {}, history=history)


def actions(observed: Observed) -> list[Action]:
    return list(plan(GOAL, observed))


def test_a_link_that_was_not_ours_is_waited_for() -> None:
    for states in ([(LO, FOREIGN), (LO,)], [(LO, OURS), (LO, FOREIGN), (LO,)], [(FOREIGN,), None, (LO,), (LO,)]):
        observed = looks(*states)
        assert actions(observed) == []
        failures = list(obstacles(GOAL, observed))
        assert {type(failure.error) for failure in failures} == {InterfaceMissing}
        assert "waiting for it: it was there, and this program did not create it" in str(failures[0])


def test_one_of_ours_is_created_again() -> None:
    """Another instance may be seen while it creates the link: then it has its mark at the next look."""
    for states in ([(LO,)], [(LO, OURS), (LO,)], [(LO,), None, (LO,)], [(LO, FOREIGN), (LO, OURS), (LO,)]):
        assert [type(action) for action in actions(looks(*states))] == [CreateLink, AddAddress, AddAddress]


def test_with_another_name_it_loses_the_address() -> None:
    observed = looks((LO, FOREIGN), (LO, replace(FOREIGN, name="new0")))
    assert actions(observed) == [RemoveAddress(address) for address in ADDRESSES_ON_NEW]
    assert teardown(GOAL, observed) == tuple(actions(observed))
    by_both_names = looks((LO, FOREIGN), (LO, replace(FOREIGN, name="new0", altnames=("own0",))))
    assert actions(by_both_names) == []


def test_the_address_goes_to_the_link_that_has_the_name_now() -> None:
    successor = Link("own0", index=6)
    observed = looks((LO, FOREIGN), (LO, replace(FOREIGN, name="new0"), successor))
    added = [AddAddress(address, "host") for address in GOAL.addresses]
    assert actions(observed) == added
    assert list(whole_plan(GOAL, observed)) == [*added, *(RemoveAddress(address) for address in ADDRESSES_ON_NEW)]


def test_one_of_ours_with_another_name_is_replaced_before_it_loses_the_address() -> None:
    observed = looks((LO, OURS), (LO, replace(OURS, name="new0")))
    assert [type(action) for action in whole_plan(GOAL, observed)] == [
        *(CreateLink, AddAddress, AddAddress, RemoveAddress, RemoveAddress)
    ]


def test_what_comes_there_later_is_left_to_others() -> None:
    renamed = replace(FOREIGN, name="new0")
    for before in (replace(renamed, addresses=()), replace(renamed, addresses=HELD[:0])):
        assert actions(looks((LO, FOREIGN), (LO, before), (LO, renamed))) == []
    assert actions(looks((LO, Link("own0", index=5)), (LO,), (LO, renamed))) == []


def test_a_look_that_failed_changes_nothing() -> None:
    before, after = looks((LO, FOREIGN)), looks((LO, FOREIGN), None)
    assert before.history == after.history == History(was_foreign=True, index=5)


def test_a_link_whose_name_cannot_be_read_is_nobody_s() -> None:
    assert looks((LO, Link("", problem="odd"))).history == History()
