"""The ways between addresses and pods, as the kernel says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sidecar.doctor.peers import Peer
from sidecar.doctor.view import View
from sidecar.errors import OutputUnreadable
from sidecar.node import iproute
from sidecar.node.routes import Leads, leads
from sidecar.state.model import Address

CLIENT_PORT: Final = 40000

_UNMARKED: Final = (0, 0)

_ASK: Final = (iproute.COMMAND, "-json", "-force", "-batch", "-")


@dataclass(frozen=True, slots=True)
class Way:
    """The way from a pod to an address, and back, as the kernel says."""

    address: Address
    peer: Peer
    there: Leads
    back: Leads
    marks: tuple[int, int]  # those that rules give to packets to the address, and to replies

    @property
    def returns(self) -> bool:
        """Whether replies go back by the interface by which the packets come in."""
        return self.back.interface == self.peer.interface


def ways_between(
    view: View, address: Address, asked: Sequence[Peer], marks: Mapping[Peer, tuple[int, int]]
) -> list[Way]:
    """Ask the kernel for the ways of all these peers, in one process; raise a SidecarError if that fails."""
    lines = ""
    for peer in asked:
        marked, marked_back = (f" mark {mark}" if mark else "" for mark in marks.get(peer, _UNMARKED))
        there = f"from {peer.ip} iif {peer.interface} ipproto tcp sport {CLIENT_PORT} dport {view.port}"
        lines += f"route get {address.ip} {there}{marked}\n"
        back = f"from {address.ip} ipproto tcp sport {view.port} dport {CLIENT_PORT}"
        lines += f"route get {peer.ip} {back}{marked_back}\n"
    result = view.run(*_ASK, stdin=lines)
    try:
        told = leads(2 * len(asked), result.stdout, result.stderr)
    except ValueError as error:
        raise OutputUnreadable(_ASK, lines, error, result.stderr) from error
    return [
        Way(address, peer, told[2 * number], told[2 * number + 1], marks.get(peer, _UNMARKED))
        for number, peer in enumerate(asked)
    ]
