"""An IPv4 address that has another scope than it should have: how to give it the right one without taking it away.

The kernel cannot change a scope: `ip address change` exits with 0, and does nothing (net/ipv4/devinet.c,
inet_rtm_newaddr). But it allows the same address once more with another prefix length, and keeps the address local for
as long as one of the two is there.
"""

from sidecar.doctor.findings import Finding, Level
from sidecar.doctor.view import View
from sidecar.errors import pasteable
from sidecar.node import iproute
from sidecar.state import compare
from sidecar.state.actions import AddAddress, RemoveAddress
from sidecar.state.model import Address, LinkAddress


def another_scope(view: View, address: Address, held: LinkAddress) -> Finding:
    """Return the finding, and what to do: the sidecar's setting comes before the address, as it would undo that."""
    found = compare.other_scope(view.desired, address, held)
    for each in view.keepers.of(address):
        if each.is_python and each.value("address-scope") != view.desired.scope:
            remedy = f"{each} has --address-scope={each.value('address-scope')}: restart it with the other one first"
            return Finding(Level.WARNING, found, remedy, facts=address.facts)
    return Finding(Level.WARNING, found, commands=_without_a_gap(view, address), facts=address.facts)


def _without_a_gap(view: View, address: Address) -> tuple[str, ...]:
    """Return commands that give the address the desired scope, while it stays there; a sidecar may add it meanwhile."""
    taken = {found.prefix_length for _, found in view.places(address)}
    longest = next(length for length in range(address.prefix_length - 1, 0, -1) if length not in taken)
    meanwhile = Address(address.ip, longest, address.interface)
    extra, _ = iproute.command(AddAddress(meanwhile, view.desired.scope))
    again, _ = iproute.command(AddAddress(address, view.desired.scope))
    removals = [iproute.command(RemoveAddress(each))[0] for each in (address, meanwhile)]
    replacement = tuple("replace" if word == "add" else word for word in again)
    return tuple(map(pasteable, ((*extra, "noprefixroute"), removals[0], replacement, removals[1])))
