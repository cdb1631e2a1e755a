"""Compares the observed with the desired state: one item for each interface, address and rule, for `status`."""

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field

from sidecar.state.compare import PREFERRED, dormant, elsewhere, find, has_scope, may_become_source
from sidecar.state.model import Address, AddressState, Desired, Facts, LinkAddress, Observed, Rule
from sidecar.state.plan import is_ours, obstacles, plan, unread


class State(enum.Enum):
    """The state of an interface, an address or a rule."""

    PRESENT = "present"
    MISSING = "missing"
    COPIES = "copies"  # the rule is there more than once
    ELSEWHERE = "elsewhere"  # the address is on another interface instead of its own
    UNUSABLE = "unusable"  # the address is there, but the kernel does not allow its use
    PREFERRED = "preferred"
    """The IPv6 address is there, but not deprecated: the kernel may choose it as a source address."""
    DOWN = "down"
    NO_EFFECT = "no effect"  # the rule is behind another one that drops its traffic, or in a table that is switched off
    UNKNOWN = "unknown"  # the object could not be observed


@dataclass(frozen=True, slots=True)
class Item:
    """A desired interface, address or rule."""

    kind: str
    name: str
    state: State
    detail: str = ""
    facts: Facts = field(default_factory=dict)


def survey(desired: Desired, observed: Observed) -> tuple[Item, ...]:
    """Return an item for the interface, each address, and each rule, in this order."""
    return (
        of_interface(desired, observed),
        *(of_address(desired, observed, address) for address in desired.addresses),
        *(of_rule(observed, rule) for rule in desired.rules),
    )


def is_in_sync(desired: Desired, observed: Observed) -> bool:
    """Whether everything was observed, and nothing is left to do: the same meaning as in `run`."""
    is_known = observed.links is not None and all(rule in observed.copies for rule in desired.rules)
    troubles = (*unread(desired, observed), *obstacles(desired, observed))
    return is_known and not plan(desired, observed) and not troubles


def of_interface(desired: Desired, observed: Observed) -> Item:
    """Return the item of the interface."""
    facts: Facts = {"interface": desired.interface}
    link = observed.link(desired.interface)
    if observed.links is None or (link and not link.name):
        return Item("interface", desired.interface, State.UNKNOWN, facts=facts)
    if link is None:
        return Item("interface", desired.interface, State.MISSING, facts=facts)
    words = [f"is {link.name}"] if link.name != desired.interface else []
    if is_ours(link):
        words.append("created by this program")
    state = State.PRESENT if link.is_up else State.DOWN
    return Item("interface", desired.interface, state, ", ".join(words), facts)


def of_address(desired: Desired, observed: Observed, address: Address) -> Item:
    """Return the item of an address."""
    name, facts = str(address), address.facts
    if observed.links is None:
        return Item("address", name, State.UNKNOWN, facts=facts)
    link, found = observed.link(address.interface), find(observed, address)
    others = ", ".join(dict.fromkeys(other.name for other, _ in elsewhere(observed, address)))
    if found is None and link and link.problem:
        return Item("address", name, State.UNKNOWN, link.problem, facts)
    if found is None:
        state = State.ELSEWHERE if others else State.MISSING
        return Item("address", name, state, others and f"it is on {others}", facts)
    if found.state is not AddressState.USABLE:
        return Item("address", name, State.UNUSABLE, found.state.name.lower(), facts)
    if link and may_become_source(link, address):
        return Item("address", name, State.PREFERRED, PREFERRED, facts)
    words = [*_differences(desired, address, found), *([f"also on {others}"] if others else [])]
    return Item("address", name, State.PRESENT, ", ".join(words), facts)


def of_rule(observed: Observed, rule: Rule) -> Item:
    """Return the item of a rule."""
    name, facts = str(rule), rule.facts
    match observed.copies.get(rule):
        case None:
            return Item("rule", name, State.UNKNOWN, observed.unknown.get(rule, ""), facts)
        case 0:
            return Item("rule", name, State.MISSING, facts=facts)
        case 1 if observed.is_dormant(rule):
            return Item("rule", name, State.NO_EFFECT, dormant(rule.family, rule.table), facts)
        case 1:
            hindrance = observed.hindrances.get(rule)
            if hindrance and hindrance.certain:
                return Item("rule", name, State.NO_EFFECT, f"behind `{hindrance.line}`", facts)
            return Item("rule", name, State.PRESENT, facts=facts)
        case copies:
            return Item("rule", name, State.COPIES, f"{copies} copies", {**facts, "copies": copies})


def _differences(desired: Desired, address: Address, found: LinkAddress) -> Iterator[str]:
    if found.prefix_length != address.prefix_length:
        yield f"as {found.cidr}"
    if found.is_peer:
        yield "with a peer"
    if not has_scope(desired, found):
        yield f"scope {found.scope}"
