"""The decisions: desired and observed state in, actions out. No I/O, so that every situation can be tested.

Both functions say nothing about what could not be looked at: acting on a guess is worse than waiting for the
next look. From any half-done list of actions, looking and planning again leads to the same goal.
"""

from collections.abc import Iterator

from sidecar.model import (
    Action,
    AddAddress,
    AddRule,
    Desired,
    Observed,
    RemoveAddress,
    RemoveRule,
    RemoveSurplus,
)


def plan(desired: Desired, observed: Observed) -> tuple[Action, ...]:
    """Return what leads from the observed state to the desired one: addresses first, then rules."""
    return (*_add_addresses(desired, observed), *_correct_rules(desired, observed))


def teardown(desired: Desired, observed: Observed, *, patient: bool = False) -> tuple[Action, ...]:
    """Return what takes away everything desired that is there: rules first.

    The address goes last, so that it answers for as long as anything still leads to it. With `patient` it stays
    while it is unknown whether its rules are there.
    """
    rules = (RemoveRule(rule, observed.copies[rule]) for rule in desired.rules if observed.copies.get(rule))
    kept = {rule.family for rule in desired.rules if rule not in observed.copies} if patient else set()
    present = observed.addresses or frozenset()
    addresses = (
        RemoveAddress(address) for address in desired.addresses if address in present and address.ip.version not in kept
    )
    return (*rules, *addresses)


def _add_addresses(desired: Desired, observed: Observed) -> Iterator[AddAddress]:
    if observed.links is None or observed.addresses is None or desired.interface not in observed.links:
        return
    for address in desired.addresses:
        if address not in observed.addresses:
            yield AddAddress(address, desired.scope)


def _correct_rules(desired: Desired, observed: Observed) -> Iterator[AddRule | RemoveSurplus]:
    for rule in desired.rules:
        match observed.copies.get(rule):
            case None | 1:
                pass
            case 0:
                yield AddRule(rule, desired.insert)
            case copies:
                yield RemoveSurplus(rule, copies - 1)
