"""Checks of the routes: whether packets to each address stay on this node, from the pods as well."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from sidecar.doctor import detours, pod_routes
from sidecar.doctor.addresses import added_again
from sidecar.doctor.findings import Finding, Level, counted
from sidecar.doctor.peers import all_routes
from sidecar.doctor.view import NO_TIME, View
from sidecar.errors import SidecarError
from sidecar.node import iproute, proc_formats
from sidecar.node.policy_rules import Packet
from sidecar.node.routes import LOCAL
from sidecar.state.compare import GLOBAL
from sidecar.state.model import IPV4, IPV6, Address, AddressState

MOST_ADDRESSES: Final = 16  # how many routes are looked up, one by one; more would take too long


def route(view: View) -> Iterator[Finding]:
    """Yield whether packets to each address stay on this node, and which others leave it with one as their source."""
    given = set[str]()
    for each in _routes(view):
        commands = tuple(command for command in each.commands if command not in given)
        given.update(commands)
        # A rule cannot be added twice.
        remedy = each.remedy if commands or not each.commands else "what is to be done above mends this, too"
        yield replace(each, commands=commands, remedy=remedy)


def _routes(view: View) -> Iterator[Finding]:
    present = [
        each
        for each in view.desired.addresses
        if any(found.state is AddressState.USABLE for _, found in view.places(each))
    ]
    local = []
    for each in present[:MOST_ADDRESSES]:
        result = view.run(iproute.COMMAND, "-json", "route", "get", str(each.ip))
        if result.exit:
            reason = result.stderr.strip().splitlines()
            found, kind = f"{each.ip} cannot be reached: {reason[0] if reason else ''}", ""
        else:
            kind, leads = proc_formats.route(result.stdout)
            found = f"{each.ip} does not stay on this node: {kind} {leads}"
        if kind == "local":
            local.append(each)
            yield Finding(Level.OK, f"{each.ip} is local")
        else:
            yield _astray(view, each, found)
    if len(present) > MOST_ADDRESSES:
        left = counted(len(present) - MOST_ADDRESSES, "more address", "more addresses")
        yield Finding(Level.UNKNOWN, f"not checked {NO_TIME}: {left}")
    yield from pod_routes.from_pods(view, local)
    yield from _sources(view)


def _astray(view: View, address: Address, found: str) -> Finding:
    """Return the finding that an address is not local: a policy rule comes first, or the route to it is missing."""
    see = f"ip -{address.ip.version} route show table all {address.ip}"
    remedy, commands = f"if that does not help, see: {see}", tuple[str, ...]()
    try:
        kinds = [
            each.kind
            for each in all_routes(view, address.ip.version)
            if each.table == LOCAL and str(each.network) == address.cidr
        ]
        if kinds and all(kind == "local" for kind in kinds):
            cause = detours.cause(view, Packet(address.ip, port=view.port))
            remedy, commands = detours.local_first(view, cause, address)
            found += detours.local_is_behind(view, cause, address.ip.version)
        else:
            commands = tuple(_routed_again(view, address, kinds))
    except (SidecarError, ValueError) as error:
        return Finding(Level.FAULT, f"{found}; {error}", f"see: {see}", facts=address.facts)
    return Finding(Level.FAULT, found, remedy, commands, address.facts)


def _routed_again(view: View, address: Address, kinds: Sequence[str]) -> Iterator[str]:
    """Yield the commands after which the table local has the route to an address, and none of another kind."""
    for kind in kinds:
        if kind != "local":
            yield f"ip -{address.ip.version} route delete {kind} {address.cidr} table local"
    if address.ip.version == IPV6:  # such a route would stay if the address goes, so let the kernel make it
        yield from added_again(view, address)
    elif "local" not in kinds:
        route = f"{address.cidr} dev {address.interface} table local proto kernel scope host src {address.ip}"
        yield f"ip route replace local {route}"


def _sources(view: View) -> Iterator[Finding]:
    """Yield for which destinations the kernel chooses one of the addresses as the source; every node has them."""
    # The kernel never chooses an IPv4 address with scope host, but IPv6 has no such scope.
    eligible = {
        str(each.ip): each
        for each in view.desired.addresses
        if any(each.ip.version == IPV6 or found.scope == GLOBAL for _, found in view.places(each))
    }
    for family in sorted({each.ip.version for each in eligible.values()}):
        routes = view.run(iproute.COMMAND, f"-{family}", "-json", "route", "show").stdout
        for destination in proc_formats.destinations(routes, family)[:MOST_ADDRESSES]:
            result = view.run(iproute.COMMAND, "-json", "route", "get", destination)
            chosen = None if result.exit else eligible.get(proc_formats.source(result.stdout))
            if chosen:
                found = f"the source address for {destination} is {chosen.ip} (ip route get {destination})"
                other = ", or set --address-scope=host" if family == IPV4 else ""
                remedy = f"replies do not come back to this node: give the route another source (`src`){other}"
                yield Finding(Level.WARNING, found, remedy, facts=chosen.facts)
