"""Foresees what a node will be like after the actions of a plan, and so all later plans. Pure."""

from dataclasses import replace

from sidecar.state.actions import (
    Action,
    AddAddress,
    AddRule,
    CreateLink,
    DeleteLink,
    DeprecateAddress,
    MoveToFront,
    RemoveAddress,
    RemoveFormer,
    RemoveRule,
    RemoveSurplus,
    SetLinkUp,
)
from sidecar.state.model import IPV6, Desired, Link, LinkAddress, Observed
from sidecar.state.plan import MARK, plan


def whole_plan(desired: Desired, observed: Observed) -> tuple[Action, ...]:
    """Return the plan, followed by all later plans until nothing is left to do.

    A pass observes again in between; this foresees what it will observe.
    """
    actions: list[Action] = []
    while new := plan(desired, observed):
        actions += new
        for action in new:
            observed = _foresee(observed, action)
    return tuple(actions)


def _foresee(observed: Observed, action: Action) -> Observed:
    """Return the state after an action of a plan has been carried out."""
    links, former = observed.links or (), dict(observed.former)
    copies, hindrances = dict(observed.copies), dict(observed.hindrances)
    match action:
        case CreateLink(interface, kind):
            links = (*links, Link(interface, kind=kind, alias=MARK))
        case SetLinkUp(interface):
            links = tuple(replace(link, is_up=True) if link.goes_by(interface) else link for link in links)
        case DeleteLink(interface):
            links = tuple(link for link in links if not link.goes_by(interface))
        case AddAddress(address) | DeprecateAddress(address) | RemoveAddress(address):
            links = tuple(
                replace(link, addresses=_addresses_after(link.addresses, action))
                if link.goes_by(address.interface)
                else link
                for link in links
            )
        case AddRule(rule) | RemoveSurplus(rule):
            copies[rule] = 1
        case MoveToFront(rule):
            hindrances.pop(rule, None)
        case RemoveRule(rule):
            copies[rule] = 0
        case RemoveFormer(rule):
            former.pop(rule, None)
    observed = replace(observed, copies=copies, hindrances=hindrances, former=former)
    return replace(observed, links=links) if observed.links is not None else observed


def _addresses_after(
    found: tuple[LinkAddress, ...], action: AddAddress | DeprecateAddress | RemoveAddress
) -> tuple[LinkAddress, ...]:
    """Return the addresses of a link after an action has been carried out there."""
    match action:
        case AddAddress(address, scope):
            is_ipv6 = address.ip.version == IPV6
            return (*found, LinkAddress(address.ip, address.prefix_length, scope, is_deprecated=is_ipv6))
        case DeprecateAddress(address):
            return tuple(replace(each, is_deprecated=True) if each.cidr == address.cidr else each for each in found)
        case RemoveAddress(address):
            return tuple(each for each in found if each.cidr != address.cidr)
