"""Follows the traffic of the clients on this node through the firewall: from the node itself, and from its pods.

Of the pods, one address behind each interface is followed, and those that a rule names.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_network
from itertools import islice
from pathlib import Path
from typing import Final

from sidecar.doctor import peers, ruleset
from sidecar.doctor.peers import Peer
from sidecar.doctor.ruleset import Ruleset
from sidecar.doctor.view import View
from sidecar.doctor.ways import ways_between
from sidecar.errors import SidecarError
from sidecar.firewall.packet import UNTRACKED, Hook, Journey, Packet, common, from_peer, from_this_node
from sidecar.firewall.walk import Met, Passage, passage
from sidecar.node import proc
from sidecar.node.nft import NftProgram
from sidecar.node.routes import IPNetwork
from sidecar.state.model import Address, Family, IPAddress

THIS_NODE: Final = "this node"
A_POD: Final = "pods"  # where no interface is known that has pods behind it

_SEVERAL: Final = 8  # more interfaces than this are looked at together first
_MOST_ROUNDS: Final = 3  # of questions for elements of sets: an answer may lead to a rule with another set
_MOST_NAMED: Final = 16  # how many addresses behind an interface are looked at because a rule names them

#: An address or a network in the text of a rule, of iptables or nft.
_NETWORK: Final = re.compile(r"(?<![\w.:])(?:\d+(?:\.\d+){3}|[0-9a-f]*:[0-9a-f:.]+)(?:/\d+)?(?![\w.:/])")


@dataclass(frozen=True, slots=True)
class Client:
    """Who sends requests to an address, and what the firewall does to them and to the replies."""

    name: str
    peer: Peer | None  # where a pod is; None: it is this node, or not known
    request: Passage
    reply: Passage
    rewritten: Met | None = None  # the rule that would give its requests another destination if they were tracked

    @property
    def marks(self) -> tuple[int, int]:
        """The marks by which a request and the reply to it are routed; 0 where they are not known."""
        routed = (self.request, Hook.PREROUTING), (self.reply, Hook.OUTPUT)
        request, reply = ((each.marks or {}).get(hook) or 0 for each, hook in routed)
        return request, reply

    @property
    def is_clear(self) -> bool:
        """Whether nothing stops its traffic, or may do so."""
        return not any((each.stopped or each.doubts) for each in (self.request, self.reply))


@dataclass(frozen=True, slots=True)
class Passages:
    """The clients of an address, and the rules that apply to them."""

    ruleset: Ruleset
    clients: tuple[Client, ...]
    other_users: Client  # this node, as a user that is not known
    left_out: int = 0  # how many pods were not looked at, for lack of time


def passages(view: View, address: Address) -> Passages:
    """Return what happens to the traffic of an address; raise a SidecarError if the rules could not be read."""
    return view.once(("passages", address), lambda: _passages(view, address))


def _passages(view: View, address: Address) -> Passages:
    """Follow the traffic, and again with the elements of sets on which it depends."""
    found = _followed(view, address)
    unread = list(found.ruleset.unread)
    for _ in range(_MOST_ROUNDS):
        if not found.ruleset.elements.questions:
            break
        failures = NftProgram(view.run).answer(found.ruleset.elements, view.walk_until)
        unread += (f"{name}: {error}" for name, error in failures.items())
        found = _followed(view, address)
    return replace(found, ruleset=replace(found.ruleset, unread=tuple(unread)))


def _followed(view: View, address: Address) -> Passages:
    ip, port = address.ip, view.port
    behind = _behind(view, ip.version)
    whole = [from_peer(ip, port, name, None, returns=None) for name in behind] or [from_peer(ip, port, A_POD, None)]
    server = view.once("server", lambda: _server(view.port))
    node = from_this_node(ip, port, server=server)
    packets = {*_common([node]), *_common(whole)}
    rules = view.once(("rules", address), lambda: ruleset.read(view, ip.version, packets))
    other_users = _client(THIS_NODE, rules, node)
    clients = [_client(THIS_NODE, rules, from_this_node(ip, port, user=os.geteuid(), server=server))]
    if len(behind) > _SEVERAL and (pods := _client(A_POD, rules, _together(whole))).is_clear:
        return Passages(rules, (*clients, pods), other_users)
    named = list(_named(rules, [network for _, networks in behind.values() for network in networks]))
    every = [
        Peer(interface, each)
        for interface, (known, networks) in behind.items()
        for each in (*known, *islice(_within(networks, named, known), _MOST_NAMED))
    ]
    if not every:
        clients.append(_client(A_POD, rules, from_peer(ip, port, A_POD, None, server=server)))
    returns = _returns(view, address, every)
    for number, peer in enumerate(every):
        if number >= _SEVERAL and view.is_late():
            return Passages(rules, tuple(clients), other_users, len(every) - number)
        journeys = from_peer(ip, port, peer.interface, peer.ip, returns=returns.get(peer), server=server)
        clients.append(_client(f"{peer.interface} ({peer.ip})", rules, journeys, peer))
    return Passages(rules, tuple(clients), other_users)


def _behind(view: View, family: Family) -> dict[str, tuple[list[IPAddress], Sequence[IPNetwork]]]:
    """Return the interfaces that have pods behind them, with an address there, and what is routed there.

    Those that --from names have only that address behind them.
    """
    try:
        known, routed = peers.peers(view, family), {} if view.origins else peers.networks(view, family)
    except SidecarError:  # the check of the routes says so
        return {}
    names = dict.fromkeys([*(each.interface for each in known), *routed])
    return {name: ([each.ip for each in known if each.interface == name], routed.get(name, ())) for name in names}


def _server(port: int) -> int | None:
    """Return the user id of the one who listens on a port; None: nobody, several, or not known."""
    with contextlib.suppress(OSError):
        owners = proc.owners([each.inode for each in proc.listeners() if each.port == port])
        uids = {Path(f"/proc/{each.pid}").stat().st_uid for each in owners.values()}
        return uids.pop() if len(uids) == 1 else None
    return None


def _returns(view: View, address: Address, here: Sequence[Peer]) -> dict[Peer, bool | None]:
    """Return whether replies to these peers go back to where they are; None: not known."""
    try:
        return {way.peer: way.returns for way in ways_between(view, address, here, {})} if here else {}
    except SidecarError:  # the check of the routes says so
        return dict.fromkeys(here)


def _common(pairs: Sequence[tuple[Journey, Journey]]) -> Iterator[tuple[Hook, Packet]]:
    """Yield what the requests have in common at each hook, and then the replies."""
    for journeys in zip(*pairs, strict=True):
        for steps in zip(*(journey.steps for journey in journeys), strict=True):
            yield steps[0][0], common([packet for _, packet in steps])


def _together(pairs: Sequence[tuple[Journey, Journey]]) -> tuple[Journey, Journey]:
    """Return journeys that stand for all of these."""
    steps = list(_common(pairs))
    half = len(steps) // 2
    first, second = (
        tuple((hook, packet.changed(mark=0)) for hook, packet in part) for part in (steps[:half], steps[half:])
    )
    return Journey(first, is_reply=False), Journey(second, is_reply=True)


def _named(rules: Ruleset, behind: Sequence[IPNetwork]) -> Iterator[IPNetwork]:
    """Yield the addresses and networks that rules name, of those that may lie within the ones behind interfaces."""
    heads = {_head(str(network)) for network in behind}
    texts = (text for each in {id(base.rules): base.rules for base in rules.chains}.values() for text in each.texts())
    for text in {found for each in texts for found in _NETWORK.findall(each)}:
        if _head(text) in heads:  # most are for others, and there can be very many
            with contextlib.suppress(ValueError):  # something else that looks like an address
                yield ip_network(text, strict=False)


def _head(network: str) -> str:
    """Return the first number of an address: one in a network of pods has the same."""
    return re.split("[.:]", network, maxsplit=1)[0]


def _within(
    networks: Sequence[IPNetwork], named: Sequence[IPNetwork], known: Sequence[IPAddress]
) -> Iterator[IPAddress]:
    """Yield an address of each named network that lies behind an interface and has none of the known addresses."""
    for each in named:
        is_there = any(each[0] in network and each[-1] in network for network in networks)
        if is_there and each.prefixlen and not any(ip in each for ip in known):
            yield each[0] if each.num_addresses == 1 else each[1]


def _client(name: str, rules: Ruleset, journeys: tuple[Journey, Journey], peer: Peer | None = None) -> Client:
    request = passage(rules.chains, journeys[0])
    reply = passage(rules.chains, journeys[1], request)
    if request.state != UNTRACKED:
        return Client(name, peer, request, reply)
    tracked = passage([each for each in rules.chains if each.is_nat], journeys[0])
    return Client(name, peer, request, reply, tracked.stopped)


def place(met: Met) -> str:
    """Return where a rule stands, for people."""
    return f"chain {met.chain} of {met.base.table}" if met.base.table.startswith("table ") else met.base.table
