"""Checks of the interface and the addresses."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sidecar.doctor.findings import Finding, Level
from sidecar.doctor.scope import another_scope
from sidecar.doctor.view import View
from sidecar.errors import AddressUnusable
from sidecar.state import compare, inventory
from sidecar.state.actions import AddAddress, CreateLink, DeprecateAddress, RemoveAddress, SetLinkUp
from sidecar.state.inventory import State
from sidecar.state.model import IPV6, LOOPBACK, Address, AddressState, Facts, Link, LinkAddress
from sidecar.state.plan import creates_link, is_ours

#: Programs that manage interfaces, where they keep a file for each by its index, and what it says if they do.
_MANAGERS: Final = (
    ("systemd-networkd", Path("/run/systemd/netif/links"), "ADMIN_STATE=configured"),
    ("NetworkManager", Path("/run/NetworkManager/devices"), "managed=true"),
)


def interface(view: View) -> Iterator[Finding]:
    """Yield whether the interface is there and up, who created it, and who else manages it."""
    view.links()
    observed, desired = view.observed(), view.desired
    item, link = inventory.of_interface(desired, observed), observed.link(desired.interface)
    if item.state is State.UNKNOWN:
        reason = link.problem if link else "the interfaces could not be listed"
        yield Finding(Level.UNKNOWN, f"cannot tell whether {item.name} exists: {reason}", facts=item.facts)
        return
    if link is None:
        creates = creates_link(desired, observed)
        remedy = "" if creates else "create it, or set --interface to another one; see: ip link show"
        if desired.waits_because:
            remedy = f"the sidecar waits for it: {desired.waits_because}"
        creation = view.commands(CreateLink(desired.interface, desired.link_kind)) if creates else ()
        yield Finding(Level.FAULT, f"{item.name} does not exist", remedy, creation, item.facts)
        return
    facts: Facts = {"interface": link.name, "kind": link.kind}
    if item.state is State.DOWN:
        yield Finding(Level.FAULT, compare.is_down(link), commands=view.commands(SetLinkUp(link.name)), facts=facts)
    else:
        creator = "" if link.name == LOOPBACK else f", {'' if is_ours(link) else 'not '}created by this program"
        yield Finding(Level.OK, f"{link.name} is up{creator}", facts=facts)
    if manager := _manager(link):
        found = f"{link.name} is managed by {manager}, which may remove addresses that it did not add"
        remedy = f"keep this program running, as it adds them again at once; or configure {manager} to leave them alone"
        yield Finding(Level.NOTE, found, remedy, facts=facts)


def _manager(link: Link) -> str:
    """Return who manages a link, by the state files that they keep by its index; empty: nobody that can be seen."""
    for name, directory, words in _MANAGERS:
        with contextlib.suppress(OSError):  # it does not run here, or does not know of the link
            if words in (directory / str(link.index)).read_text():
                return name
    return ""


def address(view: View) -> Iterator[Finding]:
    """Yield where each address is, and whether it can be used there."""
    view.links()
    observed = view.observed()
    for each in view.desired.addresses:
        held, item = compare.find(observed, each), inventory.of_address(view.desired, observed, each)
        if held is None:
            is_unknown = item.state is State.UNKNOWN
            text = f"cannot tell whether {each} is there: {item.detail}"
            yield Finding(Level.UNKNOWN, text, facts=each.facts) if is_unknown else _missing(view, each)
            continue
        match item.state:
            case State.UNUSABLE:
                yield _unusable(view, each, held)
            case State.PREFERRED:
                text = f"{each} is {compare.PREFERRED}"
                yield Finding(Level.FAULT, text, commands=view.commands(DeprecateAddress(each)), facts=each.facts)
            case _:
                yield _usable(view, each, held)
        for other, found in compare.elsewhere(observed, each):
            removal = view.commands(RemoveAddress(Address(found.ip, found.prefix_length, other.name)))
            facts: Facts = {**each.facts, "interface": other.name}
            yield Finding(Level.WARNING, compare.also_on(other, found), commands=removal, facts=facts)


def _missing(view: View, address: Address) -> Finding:
    """Return the finding that an address is missing, with what is there instead, and the command that adds it."""
    commands = view.commands(AddAddress(address, view.desired.scope))
    found = f"{address.cidr} is not on {address.interface}"
    switch = Path(f"/proc/sys/net/ipv6/conf/{address.interface}/disable_ipv6")
    with contextlib.suppress(OSError):  # the interface is missing too, or the kernel has no IPv6
        if address.ip.version == IPV6 and switch.read_text().strip() == "1":
            found += ", as IPv6 is disabled there"
            commands = (f"echo 0 > {switch}", *commands)
    here = [found for link, found in view.places(address) if link.goes_by(address.interface)]
    for instead in sorted(here, key=lambda found: found.prefix_length != address.prefix_length)[:1]:
        found += f", but {instead.cidr}{' with a peer' if instead.is_peer else ''} is"
    found += "".join(f"; it is on {link.name}" for link, _ in compare.elsewhere(view.observed(), address))
    return Finding(Level.FAULT, found, commands=commands, facts=address.facts)


def _unusable(view: View, address: Address, held: LinkAddress) -> Finding:
    again = added_again(view, address)
    if held.state is AddressState.DUPLICATE:
        found = f"another host on the link has {address} (dadfailed): it is not used here"
        return Finding(Level.FAULT, found, "remove it on the other host first", again, address.facts)
    found = f"{address} is {AddressUnusable(duplicate=False)}"
    return Finding(Level.FAULT, found, commands=again, facts=address.facts)


def _usable(view: View, address: Address, held: LinkAddress) -> Finding:
    if not compare.is_exact(address, held):
        return Finding(Level.NOTE, compare.taken_as_it_is(held, address.interface), facts=address.facts)
    if not compare.has_scope(view.desired, held):
        return another_scope(view, address, held)
    return Finding(Level.OK, f"{address}, scope {held.scope}", facts=address.facts)


def added_again(view: View, address: Address) -> tuple[str, ...]:
    """Return the commands that remove an address, and add it as it should be."""
    return view.commands(RemoveAddress(address), AddAddress(address, view.desired.scope))
