"""Hears from the kernel what is gone on a node and when it is back, for all nodes in one thread.

Addresses, links and nft's rules by netlink, each node's messages by sockets that were opened in its network. The kernel
sends none about legacy's rules: there the tables' sizes are looked at from the end of a command that deleted something
until they are what they were.
"""

import contextlib
import ctypes
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from sidecar.node.netlink import attributes, messages
from sidecar.node.netlink_query import DUMP, query
from sidecar.state.model import Family
from support.fleet.node import FAMILIES, RULES, TABLES, Node

# linux/netlink.h, linux/rtnetlink.h
_ROUTE: Final = 0
_GROUPS: Final = 1 | 0x10 | 0x100  # RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
_NEWLINK: Final = 16
_NEWADDR: Final = 20
_DELADDR: Final = 21
_LOOPBACK: Final = 1  # the index of lo

# linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
_NETFILTER: Final = 12
_NFTABLES: Final = 7
_NEWRULE: Final = 0xA06
_GETRULE: Final = 0xA07
_DELRULE: Final = 0xA08
_NEWGEN: Final = 0xA0F
_TABLE: Final = 1
_CHAIN: Final = 2
_HANDLE: Final = 3
_EXPRESSIONS: Final = 4
_FAMILIES: Final[Mapping[int, Family]] = {2: 4, 10: 6}

_BUFFER: Final = (
    8 * 2**20
)  # bytes that the kernel may queue for a socket; an ordinary user gets what the machine allows
_SO_RCVBUFFORCE: Final = 33

# linux/netfilter_ipv4/ip_tables.h: the table's name goes in, the number and the size of its rules come out.
_GET_INFO: Final = 64
_INFO: Final = 84
_LIBC: Final = ctypes.CDLL(None, use_errno=True)

_PROBE: Final = 0.005  # seconds between two looks at the size of legacy's tables
_NAP: Final = 0.2

#: Where our rules are, and how many.
_EXPECTED: Final[Counter[tuple[int, str, str]]] = Counter((rule.family, rule.table, rule.chain) for rule in RULES)


@dataclass(frozen=True)
class Outage:
    """Something was gone, and came back."""

    node: str
    kind: str
    gone: float  # by the monotonic clock
    back: float
    hindered: str = ""  # why nobody could repair it meanwhile, or not at once

    @property
    def seconds(self) -> float:
        return self.back - self.gone


class _View:
    """What the kernel has told of one node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.gone: dict[tuple[object, ...], float] = {}
        self.outages: list[Outage] = []
        self._rules: dict[tuple[int, bytes, bytes], tuple[int, str, str]] = {}  # ours, by family, table and handle
        self._changed: set[tuple[int, str, str]] = set()  # places, by the transaction that is being told
        self._sizes: list[bytes] = []
        with node.inside():
            self.route = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _ROUTE)
            self.nft = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETFILTER)
            self._raw = {
                4: (socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW), socket.IPPROTO_IP),
                6: (socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW), socket.IPPROTO_IPV6),
            }
        self.route.bind((0, _GROUPS))
        self.nft.bind((0, 0))
        self.nft.setsockopt(270, 1, _NFTABLES)  # SOL_NETLINK, NETLINK_ADD_MEMBERSHIP
        for each in (self.route, self.nft):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            with contextlib.suppress(PermissionError):
                each.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)

    def close(self) -> None:
        for each in (self.route, self.nft, *(raw for raw, _ in self._raw.values())):
            each.close()

    def sizes(self) -> list[bytes]:
        """Return what legacy's tables hold."""
        return [self._size(family, table) for family in FAMILIES for table in TABLES]

    def _size(self, family: int, table: str) -> bytes:
        raw, level = self._raw[family]
        info, length = ctypes.create_string_buffer(table.encode(), _INFO), ctypes.c_uint32(_INFO)
        failed = _LIBC.getsockopt(raw.fileno(), level, _GET_INFO, info, ctypes.byref(length))
        return b"" if failed else info.raw[-8:]

    def in_sync(self) -> None:
        """From now on, all is there."""
        self.gone.clear()
        self._sizes = self.sizes()

    def deleted(self) -> None:
        """Some of legacy's rules were just deleted."""
        if self.node.backend == "legacy" and self.sizes() != self._sizes:
            self.gone.setdefault(("rule, legacy",), time.monotonic())

    def probe(self) -> None:
        """Whether legacy's tables are back."""
        if ("rule, legacy",) in self.gone and self.sizes() == self._sizes:
            self._is("rule, legacy", present=True, key=("rule, legacy",))

    def read(self, receiver: socket.socket) -> int:
        """Read what has arrived; return how often messages were lost."""
        while True:
            try:
                data = receiver.recv(2**20)
            except BlockingIOError:
                return 0
            except OSError:  # ENOBUFS
                if receiver is self.nft:
                    self._look_again()
                return 1
            for kind, _, payload in messages(data):
                if receiver is self.route:
                    self._about_links(kind, payload)
                elif kind in (_NEWRULE, _DELRULE, _NEWGEN):
                    self._about_rules(kind, payload)

    def _about_links(self, kind: int, payload: bytes) -> None:
        if kind == _NEWLINK and struct.unpack_from("=i", payload, 4)[0] == _LOOPBACK:
            self._is("link", present=bool(struct.unpack_from("=I", payload, 8)[0] & 1))
        elif kind in (_NEWADDR, _DELADDR) and struct.unpack_from("=I", payload, 4)[0] == _LOOPBACK:
            values = {value for _, value in attributes(payload, 8)}
            for family, address in FAMILIES.items():
                if address.packed in values:
                    self._is(f"address, IPv{family}", present=kind == _NEWADDR)

    def _about_rules(self, kind: int, payload: bytes) -> None:
        if kind == _NEWGEN:  # a transaction ends: what it takes away and puts back was never gone
            there = Counter(self._rules.values())
            for each in self._changed:
                self._is("rule, nft", present=there[each] >= _EXPECTED[each], key=each)
            self._changed.clear()
            return
        found = dict(attributes(payload, 4))
        key = _key(payload, found)
        place = self._rules.pop(key, None) if kind == _DELRULE else _place(payload, found)
        if place:
            self._changed.add(place)
            if kind == _NEWRULE:
                self._rules[key] = place

    def _look_again(self) -> None:
        """Look at all rules, as messages were lost; how long something was gone then is not measured."""
        with self.node.inside(), contextlib.suppress(OSError):
            self._rules = {}
            for payload in query(_NETFILTER, _GETRULE, DUMP, bytes(4)):
                found = dict(attributes(payload, 4))
                if place := _place(payload, found):
                    self._rules[_key(payload, found)] = place
        there = Counter(self._rules.values())
        for place, number in _EXPECTED.items():
            if there[place] >= number:
                self.gone.pop(place, None)

    def _is(self, kind: str, *, present: bool, key: tuple[object, ...] = ()) -> None:
        """Take note that something is there, or not."""
        key, now = key or (kind,), time.monotonic()
        if not present:
            self.gone.setdefault(key, now)
        elif (since := self.gone.pop(key, None)) is not None:
            self.outages.append(Outage(self.node.name, kind, since, now, self._hindrance(since, now)))

    def _hindrance(self, since: float, now: float) -> str:
        return next((why for begin, end, why in self.node.hindrances if begin < now and end > since), "")


def _key(payload: bytes, found: dict[int, bytes]) -> tuple[int, bytes, bytes]:
    return payload[0], found.get(_TABLE, b""), found.get(_HANDLE, b"")


def _place(payload: bytes, found: dict[int, bytes]) -> tuple[int, str, str] | None:
    """Return where our rule is; nothing if it is not ours."""
    family = _FAMILIES.get(payload[0])
    if family is None or FAMILIES[family].packed not in found.get(_EXPRESSIONS, b""):
        return None
    place = (family, found[_TABLE].rstrip(b"\0").decode(), found[_CHAIN].rstrip(b"\0").decode())
    return place if place in _EXPECTED else None


class Kernel:
    """Hears all nodes, in a thread."""

    def __init__(self, nodes: list[Node]) -> None:
        self.views = {node.name: _View(node) for node in nodes}
        self.lost = 0  # how often the kernel had more to say than a socket holds
        self._lock = threading.Lock()
        self._ends = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends = True
        self._thread.join()
        for each in self.views.values():
            each.close()

    def in_sync(self) -> None:
        """From now on, all is there; forget what was before."""
        with self._lock:
            for each in self.views.values():
                each.in_sync()
                each.outages.clear()

    def deleted(self, node: Node) -> None:
        """Some rules of the node were just deleted."""
        with self._lock:
            self.views[node.name].deleted()

    def outages(self) -> list[Outage]:
        with self._lock:
            return sorted((each for view in self.views.values() for each in view.outages), key=lambda each: each.gone)

    def gone(self) -> list[str]:
        """Return the nodes on which something is missing now."""
        with self._lock:
            return [name for name, view in self.views.items() if view.gone]

    def _run(self) -> None:
        poll = select.epoll()
        receivers = {each.fileno(): (view, each) for view in self.views.values() for each in (view.route, view.nft)}
        for descriptor in receivers:
            poll.register(descriptor, select.EPOLLIN)
        legacy = [view for view in self.views.values() if view.node.backend == "legacy"]
        while not self._ends:
            waiting = [view for view in legacy if view.gone]
            ready = poll.poll(_PROBE if waiting else _NAP)
            with self._lock:
                for descriptor, _ in ready:
                    view, receiver = receivers[descriptor]
                    self.lost += view.read(receiver)
                for view in waiting:
                    view.probe()
        poll.close()
