"""Takes the port of --health-address over from older instances, and gives it back.

In a rolling update two instances share a node's network, and so the port. The newest has to answer all requests
there, whatever the older ones do: they may hang, or be release 0.1.0, which knows nothing of this. So nothing is
agreed upon. All listen with SO_REUSEPORT (man 7 socket), which makes a group of their sockets, and the newest lets the
kernel direct all connections to its own socket. When a process ends, however it ends, its socket leaves the group.

What the kernel does (net/core/sock_reuseport.c; tests/node/test_takeover.py holds it to that):
- A new socket gets the last place in its group. When one leaves, the last one moves to the place that is free.
- If connections are directed to a place that does not exist, they are spread over the group.

So when one of two leaves, the other one gets everything at once. When one of three leaves, the newest of those that
stay has to act, and looks for that five times a second. It cannot ask for its place, but a socket that joins is last.
"""

import errno
import random
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from loguru import logger

from sidecar.errors import CannotListen
from sidecar.node import ports
from sidecar.node.proc_formats import Listener
from sidecar.settings.values import Endpoint
from sidecar.state.model import IPV4, IPV6, IPAddress

#: Connections that may wait to be accepted. The kernel drops further ones, and their clients retry after 1 s.
_BACKLOG: Final = 1024

#: Seconds from one look at the port to the next: beside other sockets, and alone.
_OFTEN: Final = 0.2
_RARELY: Final = 5.0

#: How often to join a group, if another socket joins or leaves at the same moment: for 0.25 s in all.
_TRIES: Final = 8

#: The inode of no socket. A member that has it among the older ones does not know its own place, and joins again.
_UNKNOWN: Final = 0

#: What the answer of a sidecar to a request for / has in it, in all releases.
_SIDECAR: Final = b"/healthz, /readyz, /metrics"

_REMEDIES: Final = {
    errno.EADDRNOTAVAIL: "this node has no such address: use one that `ip address` shows, or :PORT for all",
    errno.EACCES: "a port below 1024 needs CAP_NET_BIND_SERVICE: choose a higher one",
}


@dataclass(slots=True)
class Member:
    """A socket of this instance in a group: the sockets that listen on the same address and port."""

    ip: IPAddress
    listener: socket.socket
    inode: int
    signature: socket.socket | None
    older: frozenset[int] = frozenset()
    """The sockets that were in the group before; their number is this one's place until one of them leaves."""

    def take_over(self) -> None:
        """Let this socket get all connections of the group."""
        try:
            ports.direct_to(len(self.older), self.listener)
        except OSError as error:
            logger.warning(f"another instance may answer this one's probes: the kernel refuses ({error.strerror})")

    def close(self) -> None:
        self.listener.close()
        if self.signature:
            self.signature.close()


@dataclass(slots=True)
class Port:
    """The sockets of this instance on the port of --health-address."""

    endpoint: Endpoint
    members: list[Member]
    strangers: frozenset[int] = frozenset()  # sockets of other programs that came later

    @property
    def number(self) -> int:
        return self.endpoint.port

    def look(self, leave: Callable[[socket.socket], None], attend: Callable[[socket.socket], None]) -> float:
        """Take over again where that is needed, and return the seconds until the next look.

        `leave` is called with a socket before it is closed, `attend` with the one that replaces it.
        """
        found = ports.listening(self.number)
        self._name_strangers(found)
        groups = [frozenset(each.inode for each in found if each.ip == member.ip) for member in self.members]
        for place, (member, group) in enumerate(zip(self.members, groups, strict=True)):
            if _is_in_place(member, group, self.strangers):
                continue
            if member.listener.fileno() >= 0:
                leave(member.listener)
                member.close()
            self.members[place] = _join(member.ip, self.number)
            attend(self.members[place].listener)
        return _OFTEN if any(len(group) > 1 for group in groups) else _RARELY

    def _name_strangers(self, found: list[Listener]) -> None:
        known = self.strangers.union(*({member.inode, *member.older} for member in self.members))
        came = ports.strangers([each for each in found if each.inode not in known and self._shares(each)])
        for program in came.values():
            logger.warning(
                f"another program listens on the port of --health-address={self.endpoint}, too: {program}: "
                "give one of the two another port"
            )
        self.strangers |= came.keys()

    def _shares(self, other: Listener) -> bool:
        return any(_overlap(member.ip, other.ip) for member in self.members)


def _is_in_place(member: Member, group: frozenset[int], strangers: frozenset[int]) -> bool:
    """Let the newest member of a group take over again; return whether it could, or need not."""
    if member.inode not in group:
        return member.listener.fileno() >= 0  # /proc does not show it
    others = group - {member.inode}
    if others - member.older - strangers:
        return True  # a newer instance has taken over
    if others and not member.older <= others:
        return False  # an older one has left: the place is unknown
    if others or member.older:
        member.older &= others
        member.take_over()  # again: a newer one may have come and gone since the last look
    return True


def listen(endpoint: Endpoint) -> Port:
    """Listen on the endpoint, and take it over from other instances; raise CannotListen."""
    try:
        return _listen(endpoint, ip_address(endpoint.host or "::"))
    except OSError as error:
        if not endpoint.host and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):  # without IPv6
            return listen(Endpoint("0.0.0.0", endpoint.port))  # noqa: S104 - the user asked for it
        reason = _REMEDIES.get(error.errno or 0, error.strerror or str(error))
        raise CannotListen(f"cannot listen on --health-address={endpoint}: {reason}") from error


def _listen(endpoint: Endpoint, ip: IPAddress) -> Port:
    others = [each for each in ports.listening(endpoint.port) if _overlap(ip, each.ip)]
    _refuse_strangers(endpoint, others)
    # The kernel prefers the most specific address: where older instances listen on one, take it over as well.
    more = {each.ip for each in others if _covers(ip, each.ip)} - {ip}
    members: list[Member] = []
    try:
        for each in (ip, *more):
            members.append(_join(each, endpoint.port))  # noqa: PERF401 - those that were made have to be closed
    except OSError as error:
        for member in members:
            member.close()
        if error.errno == errno.EADDRINUSE:
            raise _taken(endpoint, ports.programs(others)) from error
        raise
    return Port(Endpoint(endpoint.host, members[0].listener.getsockname()[1]), members)


def _refuse_strangers(endpoint: Endpoint, others: list[Listener]) -> None:
    """Raise CannotListen if another program listens there: its connections are not to be taken over."""
    found = ports.strangers(others)
    hidden = {each for each, program in found.items() if program == ports.UNSEEN}
    if named := [program for each, program in found.items() if each not in hidden]:
        raise _taken(endpoint, named)
    if not hidden:
        return
    # Beside a newer sidecar, that one would answer in its place.
    answer = ports.answer(next(each for each in others if each.inode in hidden)) if len(hidden) == len(others) else b""
    if answer and _SIDECAR not in answer:
        raise _taken(endpoint, [ports.UNSEEN])
    if not answer:
        logger.warning(
            f"a sidecar of release 0.1.0 or another program listens on the port of --health-address={endpoint}, too: "
            f"{ports.UNSEEN}"
        )


def _taken(endpoint: Endpoint, programs: Iterable[str]) -> CannotListen:
    who = ", ".join(sorted(set(programs))) or ports.UNSEEN
    return CannotListen(
        f"cannot listen on --health-address={endpoint}: in use by {who}: choose another port, or see `ss -ltnp`"
    )


def _covers(ip: IPAddress, other: IPAddress) -> bool:
    """Whether a socket that listens on one address would get connections to the other one."""
    return ip == other or (ip.is_unspecified and (ip.version == IPV6 or other.version == IPV4))


def _overlap(ip: IPAddress, other: IPAddress) -> bool:
    return _covers(ip, other) or _covers(other, ip)


def _join(ip: IPAddress, port: int) -> Member:
    """Join a group as its last member, and take over."""
    for attempt in range(_TRIES):
        before = _group(ip, port)
        member = _open(ip, port)
        after = _group(ip, member.listener.getsockname()[1])
        if after == before | {member.inode}:
            member.older = before
            member.take_over()
            return member
        if attempt < _TRIES - 1:
            member.close()  # another one joined or left at the same moment: the place is unknown
            time.sleep(random.uniform(0.0, 0.002 * 2**attempt))  # noqa: S311 - not a secret
    if member.inode in after:
        member.older = after - {member.inode} | {_UNKNOWN}
    else:
        logger.warning("another instance may answer this one's probes: /proc/net does not show who shares the port")
    return member


def _group(ip: IPAddress, port: int) -> frozenset[int]:
    return frozenset(each.inode for each in ports.listening(port) if each.ip == ip)


def _open(ip: IPAddress, port: int) -> Member:
    family = socket.AF_INET6 if ip.version == IPV6 else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6 and ip.is_unspecified:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((str(ip), port))
        inode = ports.inode(listener)
        signature = ports.sign(inode)  # before it listens: nobody is to take it for a stranger's
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return Member(ip, listener, inode, signature)
