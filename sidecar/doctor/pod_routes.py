"""Asks the kernel for the way from the pods to each address, and for the way back."""

import contextlib
import enum
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from sidecar.doctor import detours
from sidecar.doctor.detours import Cause, Remedy
from sidecar.doctor.findings import Finding, Level, counted, unknown
from sidecar.doctor.passages import passages
from sidecar.doctor.peers import (
    Peer,
    all_neighbours,
    cut_off,
    may_have_pods,
    networks,
    own_addresses,
    peer_of,
    peers,
    routes_in_use,
)
from sidecar.doctor.view import NO_TIME, View
from sidecar.doctor.ways import CLIENT_PORT, Way, ways_between
from sidecar.errors import SidecarError
from sidecar.node.policy_rules import Packet
from sidecar.node.routes import UNICAST
from sidecar.state.model import IPV4, Address, Facts, Family

MOST_PEERS: Final = 512  # for how many interfaces the way is asked for; by default a node has at most 110 pods

_SYSCTLS: Final = Path("/proc/sys/net/ipv4/conf")
_UNKNOWN: Final = "cannot tell whether pods reach the address, and replies the pods"

_MOST_NAMES: Final = 3  # how many interfaces are named


class _Problem(enum.Enum):
    THERE = "packets from the pod do not come to the address"
    FILTERED = "they would, but the kernel does not believe their source"
    BACK = "replies do not come to the pod"


def from_pods(view: View, addresses: Sequence[Address]) -> Iterator[Finding]:
    """Yield whether packets from the pods come to each address, and the replies to them."""
    families = {each.ip.version for each in addresses}
    for ip in view.origins:
        if ip.version not in families:
            yield Finding(Level.UNKNOWN, f"not looked at from --from={ip}: none of the addresses is IPv{ip.version}")
    for family in sorted(families):
        try:
            yield from _named(view, family)
            every = peers(view, family)
            asked = list(dict.fromkeys((*every[:MOST_PEERS], *cut_off(view, family)[:MOST_PEERS])))
            for address in addresses:
                if asked and address.ip.version == family:
                    yield from _for_address(view, address, asked)
            if len(every) > MOST_PEERS:
                left = counted(len(every) - MOST_PEERS, "more interface")
                yield Finding(Level.UNKNOWN, f"not checked {NO_TIME}: pods behind {left}")
        except SidecarError as error:
            yield unknown(error, _UNKNOWN)
        except ValueError as error:  # words of `ip` that are not known here
            yield Finding(Level.UNKNOWN, f"{_UNKNOWN}: {error}")


def _named(view: View, family: Family) -> Iterator[Finding]:
    """Yield what the kernel says of the addresses that --from names, unless pods may have them."""
    for ip in view.origins:
        if ip.version != family:
            continue
        peer = peer_of(view, ip)
        if ip in own_addresses(view):
            yield Finding(Level.NOTE, f"--from={ip} is an address of this node, not of a pod")
        elif peer is None:
            found = f"--from={ip}: no route leads to it{detours.cause(view, Packet(ip)).words}"
            yield Finding(Level.FAULT, found, f"see: ip -{family} route show table all; ip -{family} rule show")
        elif not may_have_pods(view, peer):
            yield Finding(Level.NOTE, f"--from={ip} is not a pod of this node: {peer.interface} leads to it")


def _for_address(view: View, address: Address, asked: Sequence[Peer]) -> Iterator[Finding]:
    broken = defaultdict[tuple[_Problem, Cause], list[Way]](list)
    for way in ways_between(view, address, asked, _marks(view, address)):
        for found in _problems(view, way):
            broken[found].append(way)
    for (problem, cause), ways in broken.items():
        yield _fault(view, problem, cause, ways)
    if not broken:
        names = sorted({each.interface for each in asked})
        more = f" and {counted(len(names) - _MOST_NAMES, 'more interface')}" if len(names) > _MOST_NAMES else ""
        yield Finding(
            Level.OK, f"pods behind {', '.join(names[:_MOST_NAMES])}{more} are routed to {address.ip} and back"
        )


def _marks(view: View, address: Address) -> Mapping[Peer, tuple[int, int]]:
    """Return the marks that rules give to the traffic of each peer."""
    with contextlib.suppress(SidecarError):  # the check of the policies says so
        return {client.peer: client.marks for client in passages(view, address).clients if client.peer}
    return {}


def _problems(view: View, way: Way) -> Iterator[tuple[_Problem, Cause]]:
    address, peer = way.address.ip, way.peer
    if way.back.interface == peer.interface and way.there.kind == "local":
        return
    back = detours.cause(view, Packet(peer.ip, address, source_port=view.port, port=CLIENT_PORT, mark=way.marks[1]))
    comes_back = _comes_back(view, way, back)
    if not comes_back:
        yield _Problem.BACK, back
    if way.there.kind != "local":
        there = detours.cause(view, Packet(address, peer.ip, peer.interface, CLIENT_PORT, view.port, way.marks[0]))
        if not there.route or there.route.kind != "local":
            yield _Problem.THERE, there
        elif comes_back:  # otherwise the source is not believed as long as replies go elsewhere
            yield _Problem.FILTERED, back


def _comes_back(view: View, way: Way, cause: Cause) -> bool:
    """Whether a reply reaches the pod: by its interface, or by another one where that is no detour."""
    if way.back.kind != UNICAST or way.back.interface == way.peer.interface:
        return way.back.kind == UNICAST
    family = way.peer.ip.version
    if way.back.interface not in networks(view, family):
        return False
    here = [each for each in routes_in_use(view, family) if each.interface == way.peer.interface]
    tables = {each.table for each in here if each.kind == UNICAST and way.peer.ip in each.network}
    if not tables:
        return True  # Cilium takes what comes from each pod's own link back by cilium_host
    seen = {name for name, ip in all_neighbours(view, family) if ip == way.peer.ip}
    is_only_here = way.peer.interface in seen and way.back.interface not in seen
    return cause.route is not None and cause.route.table in tables and not is_only_here


def _fault(view: View, problem: _Problem, cause: Cause, ways: Sequence[Way]) -> Finding:
    """Return the finding of one problem with one cause, on as many ways as it concerns."""
    first = ways[0]
    address, peer, there, back = first.address, first.peer, first.there, first.back
    others = f" (and behind {counted(len(ways) - 1, 'more interface')})" if len(ways) > 1 else ""
    facts: Facts = {**address.facts, "pod": str(peer.ip), "behind": peer.interface}
    match problem:
        case _Problem.BACK:
            found = f"replies from {address.ip} to {peer.ip} behind {peer.interface}{others} "
            found += f"leave by {back.interface}" if back.kind else f"are lost: {back.error}"
            found += cause.words
            remedies = [detours.replies_first(view, cause, address, way.peer) for way in ways]
        case _Problem.THERE:
            found = f"packets to {address.ip} from {peer.ip} behind {peer.interface}{others} "
            found += f"do not stay on this node: {there}" if there.kind else f"are lost: {there.error}"
            found += detours.local_is_behind(view, cause, address.ip.version)
            remedies = [detours.local_first(view, cause, address)]
        case _Problem.FILTERED:
            found = f"packets to {address.ip} from {peer.ip} behind {peer.interface}{others} are lost: {there.error}"
            found += _filter(peer)
            remedies = [_unfiltered(view, way.peer) for way in ways]
    commands = dict.fromkeys(command for _, some in remedies for command in some)
    return Finding(Level.FAULT, found, remedies[0][0], tuple(commands), facts)


def _filter(peer: Peer) -> str:
    """Return that the kernel does not believe the source, as it goes on after what was found."""
    values = _rp_filter(peer)
    name = max(values, key=lambda each: values[each])
    return f"; by {_sysctl(name)}={values[name]}, as the route to {peer.ip} leads elsewhere" if values[name] else ""


def _unfiltered(view: View, peer: Peer) -> Remedy:
    """Return what lets the kernel believe the source (net/ipv4/fib_frontend.c, __fib_validate_source)."""
    values = _rp_filter(peer)
    if not any(values.values()):
        return f"see: ip route get {peer.ip}", ()
    addresses = [each for link in view.links() if link.goes_by(peer.interface) for each in link.addresses]
    if any(each.ip.version == IPV4 for each in addresses):  # of the two values, the higher one counts
        return "", (f"sysctl -w {_sysctl(peer.interface)}=2",)
    remedy = f"2 is not enough for {peer.interface}, as it has no address; other interfaces keep their own value"
    return remedy, tuple(f"sysctl -w {_sysctl(name)}=0" for name, value in values.items() if value)


def _rp_filter(peer: Peer) -> dict[str, int]:
    """Return the values that count for an interface; none for IPv6."""
    values = dict.fromkeys(("all", peer.interface), 0)
    for name in values if peer.ip.version == IPV4 else ():
        with contextlib.suppress(OSError, ValueError):
            values[name] = int((_SYSCTLS / name / "rp_filter").read_text())
    return values


def _sysctl(interface: str) -> str:
    return f"net.ipv4.conf.{interface.replace('.', '/')}.rp_filter"
