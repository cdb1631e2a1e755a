"""What of the desired state is there: one item for each thing, for a person and for a program. Pure."""

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field

from sidecar.state.model import Address, AddressState, Desired, Facts, LinkAddress, Observed, Rule
from sidecar.state.plan import is_ours, obstacles, on, plan


class State(enum.Enum):
    """What was found of a thing."""

    PRESENT = "present"
    MISSING = "missing"
    COPIES = "copies"
    """A rule is there more than once."""
    ELSEWHERE = "elsewhere"
    """An address is not on its interface, but on another one."""
    UNUSABLE = "unusable"
    """An address is there, but the kernel does not let it be used."""
    DOWN = "down"
    NO_EFFECT = "no effect"
    """A rule stands behind another one that drops its traffic."""
    UNKNOWN = "unknown"
    """It could not be looked at."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that is desired: an interface, an address, a rule."""

    kind: str
    name: str
    state: State
    detail: str = ""
    facts: Facts = field(default_factory=dict)


def survey(desired: Desired, observed: Observed) -> tuple[Item, ...]:
    """Return an item for the interface, each address, and each rule, in this order."""
    return (
        _interface(desired, observed),
        *(_address(desired, observed, address) for address in desired.addresses),
        *(_rule(observed, rule) for rule in desired.rules),
    )


def is_in_sync(desired: Desired, observed: Observed) -> bool:
    """Whether all could be looked at, and nothing is to be done: the same as `run` means by it."""
    is_known = observed.links is not None and all(rule in observed.copies for rule in desired.rules)
    return is_known and not plan(desired, observed) and not any(obstacles(desired, observed))


def _interface(desired: Desired, observed: Observed) -> Item:
    facts: Facts = {"interface": desired.interface}
    link = observed.link(desired.interface)
    if observed.links is None:
        return Item("interface", desired.interface, State.UNKNOWN, facts=facts)
    if link is None:
        return Item("interface", desired.interface, State.MISSING, facts=facts)
    words = [f"is {link.name}"] if link.name != desired.interface else []
    if is_ours(link):
        words.append("created by this program")
    state = State.PRESENT if link.is_up else State.DOWN
    return Item("interface", desired.interface, state, ", ".join(words), facts)


def _address(desired: Desired, observed: Observed, address: Address) -> Item:
    name, facts = str(address), address.facts
    if observed.links is None:
        return Item("address", name, State.UNKNOWN, facts=facts)
    link = observed.link(desired.interface)
    found = on(link, address) if link else None
    others = ", ".join(
        other.name
        for other in observed.links
        if other is not link and any(each.ip == address.ip for each in other.addresses)
    )
    if link is None or found is None:
        state = State.ELSEWHERE if others else State.MISSING
        return Item("address", name, state, others and f"it is on {others}", facts)
    if found.state is not AddressState.USABLE:
        return Item("address", name, State.UNUSABLE, found.state.name.lower(), facts)
    words = [*_differences(desired, address, found), *([f"also on {others}"] if others else [])]
    return Item("address", name, State.PRESENT, ", ".join(words), facts)


def _differences(desired: Desired, address: Address, found: LinkAddress) -> Iterator[str]:
    if found.prefix_length != address.prefix_length:
        yield f"as {found.cidr}"
    if found.is_peer:
        yield "with a peer"
    if found.ip.version == 4 and found.scope != desired.scope:  # noqa: PLR2004 - the protocol's name
        yield f"scope {found.scope}"


def _rule(observed: Observed, rule: Rule) -> Item:
    name, facts = str(rule), rule.facts
    match observed.copies.get(rule):
        case None:
            return Item("rule", name, State.UNKNOWN, facts=facts)
        case 0:
            return Item("rule", name, State.MISSING, facts=facts)
        case 1:
            hindrance = observed.hindrances.get(rule)
            if hindrance and hindrance.certain:
                return Item("rule", name, State.NO_EFFECT, f"behind `{hindrance.line}`", facts)
            return Item("rule", name, State.PRESENT, facts=facts)
        case copies:
            return Item("rule", name, State.COPIES, f"{copies} copies", {**facts, "copies": copies})
