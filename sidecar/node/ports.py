"""Finds out who listens on a TCP port of this network namespace, and which of them are sidecars."""

import os
import socket
from array import array
from collections.abc import Collection, Iterator
from ipaddress import ip_address
from struct import Struct, pack
from typing import Final

from sidecar import PROGRAM
from sidecar.node import instances, proc
from sidecar.node.netlink_query import DUMP, query
from sidecar.node.proc_formats import Listener
from sidecar.state.model import IPV4

#: linux/socket.h (man 7 socket), and the instruction `return a constant` (linux/bpf_common.h, BPF_RET | BPF_K).
_SO_ATTACH_REUSEPORT_CBPF: Final = 51
_RETURN: Final = 0x06

#: Seconds that an unknown program on the port may take to answer, and the bytes of its answer that are read.
_PATIENCE: Final = 1.0
_ENOUGH: Final = 4096

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h, net/tcp_states.h
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_LISTEN: Final = 10
_REQUEST: Final = Struct("=BBBxI2s46x")  # struct inet_diag_req_v2: family, protocol, what else, states, source port
_ANSWER: Final = Struct("=4x2s2x16s44xI")  # struct inet_diag_msg: source port, source address, inode

#: Stands for a program that cannot be seen from here.
UNSEEN: Final = "a process that cannot be seen from here (other user, or other container)"


def listening(port: int) -> list[Listener]:
    """Return the sockets that listen on a port, as far as they can be seen."""
    try:
        return [each for family in (socket.AF_INET, socket.AF_INET6) for each in _dump(family, port)]
    except OSError:  # a kernel without inet_diag; there it takes 30 ms and more, as the kernel shows all connections
        return [each for each in proc.listeners() if each.port == port]


def _dump(family: int, port: int) -> Iterator[Listener]:
    """Ask the kernel for the sockets of a family that listen on a port (man 7 sock_diag)."""
    request_port = port.to_bytes(2, "big")
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 1 << _LISTEN, request_port)
    for payload in query(_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, DUMP, request):
        its_port, source, inode = _ANSWER.unpack_from(payload)
        packed = source if family == socket.AF_INET6 else source[:4]
        if its_port == request_port:  # to ask for port 0 is to ask for all
            yield Listener(ip_address(packed), port, inode)


def inode(listener: socket.socket) -> int:
    """Return the number by which /proc names a socket."""
    return os.fstat(listener.fileno()).st_ino


def direct_to(place: int, listener: socket.socket) -> None:
    """Let the kernel direct all connections of a listener's group to the socket that has this place in it.

    If the group has no such place, the kernel spreads the connections over all of the group.
    """
    program = array("B", pack("=HBBI", _RETURN, 0, 0, place))  # struct sock_filter
    address, _ = program.buffer_info()
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, pack("@HP", 1, address))  # struct sock_fprog


def sign(inode: int) -> socket.socket | None:
    """Mark a socket as a sidecar's, until the returned one is closed: for those who cannot see this process.

    The mark is a name among the abstract UNIX sockets of the network namespace (man 7 unix).
    """
    signature = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        signature.bind(f"\0{PROGRAM}/{inode}")
    except OSError:
        signature.close()
        return None
    return signature


def programs(found: Collection[Listener]) -> frozenset[str]:
    """Return the programs that have these sockets, as far as they can be seen."""
    return frozenset(str(owner) for owner in proc.owners([each.inode for each in found]).values())


def strangers(found: Collection[Listener]) -> dict[int, str]:
    """Return which of these sockets are not marked as a sidecar's: inode and program, or UNSEEN."""
    unsigned = [each.inode for each in found if not _is_signed(each.inode)]
    owners = proc.owners(unsigned) if unsigned else {}
    return {each: str(owners.get(each, UNSEEN)) for each in unsigned if not instances.is_sidecar(owners.get(each))}


def answer(listener: Listener) -> bytes:
    """Return what a program answers to a request for /; empty if it does not answer soon."""
    loopback = "127.0.0.1" if listener.ip.version == IPV4 else "::1"
    host = loopback if listener.ip.is_unspecified else str(listener.ip)
    try:
        with socket.create_connection((host, listener.port), timeout=_PATIENCE) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return connection.recv(_ENOUGH)
    except OSError:
        return b""


def _is_signed(inode: int) -> bool:
    signature = sign(inode)
    if signature is None:  # the name is in use
        return True
    signature.close()
    return False
