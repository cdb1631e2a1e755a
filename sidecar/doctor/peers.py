"""Finds the pods' side of the node: the interfaces that pods are behind, and an address behind each.

No network plugin is asked: the routes tell, and the kind of an interface. Uplinks, physical NICs, and tunnels to
other nodes are left out.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Final

from sidecar.doctor.view import View
from sidecar.node import iproute, routes
from sidecar.node.policy_rules import PolicyRule, policy_rules
from sidecar.node.routes import DEAD, MAIN, UNICAST, IPNetwork, Route
from sidecar.state.model import Family, IPAddress, LinkAddress

#: Kinds of links that have pods behind them (`ip -details link show`).
_KINDS: Final = frozenset(("veth", "bridge", "netkit", "openvswitch", "ipvlan", "macvlan"))

_OF_ONE_POD: Final = frozenset(("veth", "netkit"))  # kinds that are one pod's, and have no network of their own

_MOST_TRIED: Final = 64  # addresses of a network that are tried, until one is found that is not this node's


@dataclass(frozen=True, slots=True)
class Peer:
    """An interface that pods may be behind, and one address there."""

    interface: str
    ip: IPAddress


def peers(view: View, family: Family) -> list[Peer]:
    """Return one address behind each interface that may have pods behind it; or those that --from names."""
    if view.origins:
        return [peer for ip in view.origins if ip.version == family and (peer := peer_of(view, ip))]
    own = own_addresses(view)
    every = routes_in_use(view, family)
    neighbours = all_neighbours(view, family)
    routed = networks(view, family)
    found = []
    for interface, behind in routed.items():
        known = [ip for name, ip in neighbours if name == interface]
        hosts = {network[0] for network in behind if network.num_addresses == 1}
        for ip in _candidates(behind, known):
            if ip not in own and (ip in hosts or not _leads_elsewhere(every, interface, ip)):
                found.append(Peer(interface, ip))
                break
    return [*found, *(Peer(name, ip) for name, ip in _unrouted(view, family).items())]


def _unrouted(view: View, family: Family) -> dict[str, IPAddress]:
    """Return an address that was seen on a link, and belongs there, but is not routed there, for each such link."""
    of_one_pod, possible = _possible(view, family, _OF_ONE_POD), _possible(view, family, _KINDS)
    routed, own = networks(view, family), own_addresses(view)
    return {
        name: ip
        for name, ip in all_neighbours(view, family)
        if name in of_one_pod or (name in possible and connected(view, Peer(name, ip)))
        if ip not in own and not ip.is_link_local and not any(ip in network for network in routed.get(name, ()))
    }


def connected(view: View, peer: Peer) -> LinkAddress | None:
    """Return the address of this node on the pod's own network, which the kernel has routed with that address."""
    addresses = (each for link in view.links() if link.goes_by(peer.interface) for each in link.addresses)
    return next((each for each in addresses if peer.ip in ip_network(each.cidr, strict=False)), None)


def cut_off(view: View, family: Family) -> list[Peer]:
    """Return addresses of networks behind an interface to which a narrower route says that nobody is there."""
    if view.origins:
        return []
    neighbours = all_neighbours(view, family)
    found = []
    for interface, behind in networks(view, family).items():
        for dead in routes_in_use(view, family):
            first, length = dead.network[0], dead.network.prefixlen
            if dead.kind in DEAD and any(first in each and length > each.prefixlen for each in behind):
                ips = [ip for name, ip in neighbours if name == interface and ip in dead.network]
                ips += [first] if dead.network.num_addresses == 1 else []
                found += [Peer(interface, ip) for ip in ips[:1]]
    return found


def peer_of(view: View, ip: IPAddress) -> Peer | None:
    """Return the interface that an address is behind, as far as is known; None: it is this node's, or nowhere."""
    family = ip.version
    if ip in own_addresses(view):
        return None
    routed = [(each.prefixlen, name) for name, some in networks(view, family).items() for each in some if ip in each]
    length, interface = max(routed, default=(0, ""))
    links = _possible(view, family, _OF_ONE_POD)
    seen = [name for name, neighbour in all_neighbours(view, family) if neighbour == ip and name in links]
    if length == ip.max_prefixlen or (routed and not seen):
        return Peer(interface, ip)
    if seen:
        return Peer(seen[0], ip)
    shown = view.run(iproute.COMMAND, "-json", "route", "get", str(ip))
    if shown.exit:
        return None
    (leads,) = routes.leads(1, shown.stdout, "")
    return Peer(leads.interface, ip) if leads.kind == UNICAST else None


def _candidates(behind: Sequence[IPNetwork], known: Sequence[IPAddress]) -> Iterator[IPAddress]:
    """Yield addresses of networks: those that one host has for sure, then neighbours, then any."""
    yield from (network[0] for network in behind if network.num_addresses == 1)
    yield from (ip for ip in known if any(ip in network for network in behind))
    for network in behind:
        # The first and the last one belong to the network itself, but between two hosts (RFC 3021).
        inner = range(1, network.num_addresses - 1) or range(network.num_addresses)
        yield from (network[number] for number in inner[:_MOST_TRIED])


def networks(view: View, family: Family) -> Mapping[str, tuple[IPNetwork, ...]]:
    """Return what is routed to each interface that may have pods behind it."""
    every = routes_in_use(view, family)
    possible = _possible(view, family, _KINDS)
    own = own_addresses(view)
    found: defaultdict[str, list[IPNetwork]] = defaultdict(list)
    for each in every:
        if each.interface in possible and _has_pods(each, own) and each.network not in found[each.interface]:
            found[each.interface].append(each.network)
    return {interface: tuple(behind) for interface, behind in found.items() if behind}


def may_have_pods(view: View, peer: Peer) -> bool:
    """Whether an interface is of a kind that has pods behind it, and not an uplink."""
    return peer.interface in _possible(view, peer.ip.version, _KINDS)


def _possible(view: View, family: Family, kinds: frozenset[str]) -> set[str]:
    """Return the interfaces of these kinds that are no uplinks."""
    # A default route can be two halves.
    uplinks = {each.interface for each in all_routes(view, family) if each.network.prefixlen <= 1}
    return {link.name for link in view.links() if link.is_up and link.kind in kinds} - uplinks


def _has_pods(route: Route, own: frozenset[IPAddress]) -> bool:
    network = route.network
    if route.kind != UNICAST or route.is_down or network.is_link_local or network.is_multicast:
        return False
    # Cilium routes the pods of this node and those of the others by an address of this node.
    if route.gateway and (gateway := ip_address(route.gateway)) in own:
        return gateway in network
    return network.num_addresses > 1 or network[0] not in own  # IPv6 has such a route for each address of the node


def _leads_elsewhere(every: Sequence[Route], interface: str, ip: IPAddress) -> bool:
    """Whether the most specific route to an address leads by another interface, whatever the table."""
    leading = [each for each in every if each.kind == UNICAST and ip in each.network]
    longest = max((each.network.prefixlen for each in leading), default=0)
    return all(each.interface != interface for each in leading if each.network.prefixlen == longest)


def routes_in_use(view: View, family: Family) -> tuple[Route, ...]:
    """Return the routes of the tables that a policy rule looks up; not those of a VRF, which is a world of its own."""
    tables = {MAIN, *(rule.table for rule in all_rules(view, family))}
    return tuple(each for each in all_routes(view, family) if each.table in tables)


def all_rules(view: View, family: Family) -> tuple[PolicyRule, ...]:
    """Return the policy rules, in their order."""
    return view.parsed((iproute.COMMAND, f"-{family}", "-json", "-N", "rule", "show"), policy_rules)


def all_routes(view: View, family: Family) -> tuple[Route, ...]:
    """Return the routes of all tables."""
    options = (f"-{family}", "-json", "-N")
    return view.parsed(
        (iproute.COMMAND, *options, "route", "show", "table", "all"), lambda text: routes.routes(text, family)
    )


def all_neighbours(view: View, family: Family) -> tuple[tuple[str, IPAddress], ...]:
    """Return the hosts that this node has talked to on its links."""
    return view.parsed((iproute.COMMAND, f"-{family}", "-json", "neighbour", "show"), routes.neighbours)


def own_addresses(view: View) -> frozenset[IPAddress]:
    """Return the addresses of this node."""
    return frozenset(found.ip for link in view.links() for found in link.addresses)
