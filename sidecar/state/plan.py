"""Decides what to do: turns desired and observed state into actions, obstacles and notices. No I/O, so easy to test.

Objects that could not be observed cause no action: acting on a guess is worse than waiting for the next look. If a
list of actions was carried out only in part, observing and planning again leads to the same desired state.
"""

from collections.abc import Iterator
from typing import Final

from sidecar import PROGRAM
from sidecar.errors import AddressUnusable, InterfaceMissing, LinkUnreadable, RuleUnknown
from sidecar.state.actions import (
    Action,
    AddAddress,
    AddRule,
    CreateLink,
    DeleteLink,
    DeprecateAddress,
    Failure,
    LinkAction,
    MoveToFront,
    Notice,
    RemoveAddress,
    RemoveFormer,
    RemoveRule,
    RemoveSurplus,
    SetLinkUp,
)
from sidecar.state.compare import (
    also_on,
    dormant,
    elsewhere,
    find,
    has_scope,
    is_down,
    is_exact,
    may_become_source,
    on,
    other_scope,
    taken_as_it_is,
    waking,
    works,
)
from sidecar.state.model import (
    LOOPBACK,
    Address,
    AddressState,
    Desired,
    Facts,
    Link,
    LinkAddress,
    Observed,
)
from sidecar.text import visible

WAS_FOREIGN: Final = "it was there, and this program did not create it"
MARK: Final = PROGRAM  # the alias (man 8 ip-link) of a link that this program created. A link without it is not ours


def plan(desired: Desired, observed: Observed) -> tuple[Action, ...]:
    """Return the actions that lead from the observed to the desired state: the interface, its addresses, then rules."""
    return (
        *_prepare_link(desired, observed),
        *_correct_addresses(desired, observed),
        *_follow_name(desired, observed),
        *_correct_rules(desired, observed),
        *_leave_former_backend(desired, observed),
    )


def teardown(desired: Desired, observed: Observed, *, patient: bool = False) -> tuple[Action, ...]:
    """Return the actions that remove everything desired that is there: rules first.

    The addresses go after the rules, so that they answer for as long as anything still leads to them. With `patient`,
    an address stays while it is unknown whether its rules are there. The interface goes last, and only if this program
    created it and it holds nothing but desired addresses.
    """
    rules = tuple(RemoveRule(rule, observed.copies[rule]) for rule in desired.rules if observed.copies.get(rule))
    link = observed.link(desired.interface)
    kept = {rule.family for rule in desired.rules if rule not in observed.copies} if patient else set()
    there = (address for address in desired.addresses if link and on(link, address, exactly=True))
    going = [address for address in (*there, *_left_behind(desired, observed)) if address.ip.version not in kept]
    links = (DeleteLink(desired.interface),) if link and not kept and _is_ours_alone(desired, link) else ()
    return (*rules, *map(RemoveAddress, going), *links)


def unread(desired: Desired, observed: Observed) -> Iterator[Failure]:
    """Yield the addresses that may be on the interface or not, as it could not be read in full."""
    link = observed.link(desired.interface)
    for address in desired.addresses:
        if link and link.problem and on(link, address) is None:
            yield Failure(f"look for {address}", LinkUnreadable(link.problem), address.facts)


def obstacles(desired: Desired, observed: Observed) -> Iterator[Failure]:
    """Yield the obstacles to the desired state that no action can remove."""
    if observed.links is None:
        return
    link = observed.link(desired.interface)
    if link is None and not creates_link(desired, observed):
        missing = InterfaceMissing(desired.interface, waits_because(desired, observed))
        for address in desired.addresses:
            yield Failure(f"add {address.cidr}", missing, address.facts)
    for address in desired.addresses:
        found = find(observed, address)
        if found and found.state is not AddressState.USABLE:
            failed = found.state is AddressState.DUPLICATE
            yield Failure(f"use {address}", AddressUnusable(duplicate=failed), address.facts)


def notices(desired: Desired, observed: Observed) -> Iterator[Notice]:
    """Yield what an operator should know about the node, although nothing is missing."""
    for each in observed.links or ():
        if each.problem:
            name = visible(each.name) or "a link without a readable name"
            yield Notice(f"{name} can be read only in part: {each.problem}", {"interface": name})
    link = observed.link(desired.interface)
    if link and not link.is_up and not _may_be_set_up(link):
        remedy = f"this program did not create it, and leaves it so: `ip link set {link.name} up`"
        yield Notice(f"{is_down(link)}; {remedy}", {"interface": link.name})
    for address in desired.addresses:
        found = find(observed, address)
        if found and not is_exact(address, found):
            yield Notice(taken_as_it_is(found, desired.interface), address.facts)
        elif found and not has_scope(desired, found):
            remedy = "remove it, and it is added again with the right one"
            yield Notice(f"{other_scope(desired, address, found)}; {remedy}", address.facts)
        yield from _notice_duplicates(desired, observed, address)
    for family, table in sorted(observed.dormant):
        if any(observed.copies.get(rule) for rule in desired.rules if (rule.family, rule.table) == (family, table)):
            text = f"{dormant(family, table)}: `{waking(family, table)}` ends that"
            yield Notice(text, {"family": family, "table": table})
    for rule, hindrance in observed.hindrances.items():
        is_movable = hindrance.certain and not desired.insert
        remedy = "; --rule-position=insert puts it in front" if is_movable else ""
        facts = rule.facts | {"behind": hindrance.line}
        yield Notice(f"{hindrance.effect_on(rule)}{remedy}", facts, certain=hindrance.certain)


def unknowns(observed: Observed) -> Iterator[Notice]:
    """Yield what an operator should know about rules of which it cannot be known whether they are there."""
    for rule, why in observed.unknown.items():
        yield Notice(f"unknown whether it is there: {rule}: {why}", rule.facts | {"why": why})


def unremovable(observed: Observed) -> tuple[Failure, ...]:
    """Return a failure for each rule that a cleanup leaves, as it may be another program's."""
    return tuple(Failure(RemoveRule(rule, 1).todo, RuleUnknown(why)) for rule, why in observed.unknown.items())


def _notice_duplicates(desired: Desired, observed: Observed, address: Address) -> Iterator[Notice]:
    link = observed.link(desired.interface)
    for other, duplicate in elsewhere(observed, address):
        text = also_on(other, duplicate)
        facts: Facts = {"address": duplicate.cidr, "interface": other.name}
        if not _is_removable(duplicate):
            yield Notice(f"{text}, with a network or a peer, and stays there", facts)
        elif not desired.remove_duplicates:
            yield Notice(f"{text}; --remove-duplicates removes it there", facts)
        elif link and not works(link, address):
            yield Notice(f"{text}, and stays there until it works on {desired.interface}", facts)


def waits_because(desired: Desired, observed: Observed) -> str:
    """Return why a missing interface is waited for rather than created, or an empty text."""
    if observed.history.was_foreign:
        return WAS_FOREIGN
    return desired.waits_because


def creates_link(desired: Desired, observed: Observed) -> bool:
    """Whether a missing interface is created."""
    return bool(desired.link_kind) and not waits_because(desired, observed)


def is_ours(link: Link) -> bool:
    """Whether this program created a link."""
    return link.alias == MARK


def _prepare_link(desired: Desired, observed: Observed) -> Iterator[LinkAction]:
    if observed.links is None:
        return
    link = observed.link(desired.interface)
    if link is None:
        if creates_link(desired, observed):
            yield CreateLink(desired.interface, desired.link_kind)
    elif not link.is_up and _may_be_set_up(link):
        yield SetLinkUp(desired.interface)


def _correct_addresses(desired: Desired, observed: Observed) -> Iterator[LinkAction]:
    link = observed.link(desired.interface)
    if observed.links is None:
        return
    if not (link or creates_link(desired, observed)):
        return
    for address in desired.addresses:
        if link is None or on(link, address) is None:
            if link is None or not link.problem:
                yield AddAddress(address, desired.scope)
            continue
        if may_become_source(link, address):
            yield DeprecateAddress(address)
        if desired.remove_duplicates and works(link, address):
            for other, duplicate in elsewhere(observed, address):
                if _is_removable(duplicate):
                    yield RemoveAddress(Address(duplicate.ip, duplicate.prefix_length, other.name))


def _follow_name(desired: Desired, observed: Observed) -> Iterator[RemoveAddress]:
    """Take the addresses off a link that was the interface, once they are on the one that is, or if there is none."""
    link = observed.link(desired.interface)
    for address in _left_behind(desired, observed):
        if link is None:
            moves = not creates_link(desired, observed)
        else:
            moves = any(found.ip == address.ip for found in link.addresses)
        if moves:
            yield RemoveAddress(address)


def _left_behind(desired: Desired, observed: Observed) -> Iterator[Address]:
    """Yield the addresses that are on a link which was the interface before it got another name."""
    for link in observed.links or ():
        if link.index in observed.history.renamed:
            for address in desired.addresses:
                if on(link, address, exactly=True):
                    yield Address(address.ip, address.prefix_length, link.name)


def _correct_rules(desired: Desired, observed: Observed) -> Iterator[AddRule | MoveToFront | RemoveSurplus]:
    for rule in desired.rules:
        match observed.copies.get(rule):
            case None:
                pass
            case 1:
                hindrance = observed.hindrances.get(rule)
                # Only if certain: another rule may be meant to come first, such as a list of banned hosts, and a
                # program that wants its jump to be first would move it back.
                if desired.insert and hindrance and hindrance.certain:
                    yield MoveToFront(rule, hindrance.line)
            case 0:
                yield AddRule(rule, desired.insert)
            case copies:
                yield RemoveSurplus(rule, copies - 1)


def _leave_former_backend(desired: Desired, observed: Observed) -> Iterator[RemoveFormer]:
    """Yield what completes a move to another backend. A rule is removed only after it was seen in the new one."""
    for rule in desired.rules:
        if observed.copies.get(rule) and (copies := observed.former.get(rule)):
            yield RemoveFormer(rule, copies)


def _is_removable(duplicate: LinkAddress) -> bool:
    """Whether only the address itself would go: with a network, the kernel removes other addresses and routes too."""
    return duplicate.prefix_length == duplicate.ip.max_prefixlen and not duplicate.is_peer


def _may_be_set_up(link: Link) -> bool:
    """Whether we may set a link up; others may be down for a reason. lo is down only in a new namespace."""
    return link.name == LOOPBACK or is_ours(link)


def _is_ours_alone(desired: Desired, link: Link) -> bool:
    """Whether we created a link, and it holds only desired addresses and those that the kernel added."""
    if (
        not desired.link_kind
        or link.problem
        or (link.alias, link.kind) != (MARK, desired.link_kind)
        or link.has_dependents
    ):
        return False
    expected = {(address.ip, address.prefix_length) for address in desired.addresses}
    return all(
        found.made_by_kernel or (not found.is_peer and (found.ip, found.prefix_length) in expected)
        for found in link.addresses
    )
