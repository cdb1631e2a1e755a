"""The packets whose way through the firewall is followed, and the hooks that they pass.

Every field may be unknown (None). Then a condition on it holds perhaps, and a walk covers all packets that fit.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Final, Self

from sidecar.state.desired import end_of
from sidecar.state.model import LOOPBACK, Family, IPAddress, Rule

#: Stands for the port of a client: the first of net.ipv4.ip_local_port_range, as the kernel sets it.
CLIENT_PORT: Final = 32768

NEW: Final = "NEW"
ESTABLISHED: Final = "ESTABLISHED"
INVALID: Final = "INVALID"
UNTRACKED: Final = "UNTRACKED"
TRACKED: Final = "TRACKED"  # before connection tracking has seen it: it will be, nothing can exempt it any more

TTL: Final = 64  # of a packet that a host has just sent, as almost every system has it

_REQUEST: Final = frozenset(("syn",))
_REPLY: Final = frozenset(("syn", "ack"))


class Hook(enum.Enum):
    """A place at which the kernel calls the firewall (linux/netfilter.h, linux/netfilter_netdev.h)."""

    INGRESS = "ingress"
    PREROUTING = "prerouting"
    INPUT = "input"
    OUTPUT = "output"
    POSTROUTING = "postrouting"
    EGRESS = "egress"


@dataclass(frozen=True, slots=True)
class Packet:
    """A TCP packet at one of the hooks; None: not known."""

    family: Family
    source: IPAddress | None
    destination: IPAddress | None
    source_port: int | None
    destination_port: int | None
    flags: frozenset[str] | None = None  # those of TCP that are set, in lower case
    came_in: str | None = None  # the interface by which it came in; empty: it was made on this node
    goes_out: str | None = None  # the interface by which it goes out; empty: that is not decided yet, or it stays here
    state: str | None = None  # what connection tracking says of it, as --ctstate spells it
    mark: int | None = None
    owner: int | None = None  # the user id of the socket that sent it
    is_from_here: bool | None = None  # whether its source is an address of this node
    is_to_here: bool | None = None  # whether its destination is
    returns: bool | None = None  # whether the route to its source leads out by the interface by which it came in

    def changed(self, **changes: int | str | None) -> Self:
        """Return the packet with another mark, or another state of connection tracking."""
        return replace(self, **changes)  # type: ignore[arg-type]  # each field has its type

    @classmethod
    def of(cls, rule: Rule) -> Self:
        """Return what is known of the packets that one of our rules is for."""
        ip, port, is_inward = end_of(rule)
        # In raw nothing is tracked yet; after raw, our NOTRACK rules have exempted it.
        state = None if rule.table == "raw" else UNTRACKED
        if is_inward:
            return cls(rule.family, None, ip, None, port, state=state)
        return cls(rule.family, ip, None, port, None, state=state)


def common(packets: Sequence[Packet]) -> Packet:
    """Return what packets have in common, without mark and state: these change on the way."""
    first, *others = packets
    differing = {
        each.name: None
        for each in fields(Packet)
        if any(getattr(other, each.name) != getattr(first, each.name) for other in others)
    }
    return replace(first, **{**differing, "mark": None, "state": None})  # type: ignore[arg-type]  # never the family


@dataclass(frozen=True, slots=True)
class Journey:
    """The hooks that a packet passes, in order, with what is known of it at each before any rule changes it."""

    steps: tuple[tuple[Hook, Packet], ...]
    is_reply: bool


def from_peer(  # noqa: PLR0913 - both ends, and by keyword what is known besides
    ip: IPAddress,
    port: int,
    interface: str,
    client: IPAddress | None,
    *,
    returns: bool | None = True,
    server: int | None = None,
) -> tuple[Journey, Journey]:
    """Return the journeys of a request from behind an interface, and of the reply to it; None: from any address there.

    `returns` is whether the route to the client leads out by that interface; `server` the user id of who listens.
    """
    request = Packet(
        ip.version, client, ip, CLIENT_PORT, port, _REQUEST, interface, "", mark=0, is_from_here=False, is_to_here=True,
        returns=returns,
    )  # fmt: skip
    reply = Packet(
        ip.version, ip, client, port, CLIENT_PORT, _REPLY, "", interface, mark=0, owner=server, is_from_here=True,
        is_to_here=False,
    )  # fmt: skip
    return (
        Journey(tuple((hook, request) for hook in (Hook.INGRESS, Hook.PREROUTING, Hook.INPUT)), is_reply=False),
        Journey(tuple((hook, reply) for hook in (Hook.OUTPUT, Hook.POSTROUTING, Hook.EGRESS)), is_reply=True),
    )


def from_this_node(
    ip: IPAddress, port: int, *, user: int | None = None, server: int | None = None
) -> tuple[Journey, Journey]:
    """Return the journeys of a request from this node to itself, and of the reply: over lo, from and to the address.

    `user` and `server` are the user ids of those at its ends.
    """

    def journey(ports: tuple[int, int], flags: frozenset[str], *, is_reply: bool) -> Journey:
        packet = Packet(ip.version, ip, ip, *ports, flags, mark=0, is_from_here=True, is_to_here=True, returns=True)
        out = replace(packet, came_in="", goes_out=LOOPBACK, owner=server if is_reply else user)
        back = replace(packet, came_in=LOOPBACK, goes_out="")
        outward = ((hook, out) for hook in (Hook.OUTPUT, Hook.POSTROUTING))
        inward = ((hook, back) for hook in (Hook.INGRESS, Hook.PREROUTING, Hook.INPUT))
        return Journey((*outward, *inward), is_reply=is_reply)

    return (
        journey((CLIENT_PORT, port), _REQUEST, is_reply=False),
        journey((port, CLIENT_PORT), _REPLY, is_reply=True),
    )
