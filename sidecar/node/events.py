"""Notices at once when one of our addresses or rules may be gone: by netlink and, for legacy, by the size of tables.

Takes no process and no thread. The kernel sends netlink messages about addresses, links and the rules in nftables. It
sends none about legacy's rules, but asking for the number and size of the rules in a table takes only 4 µs: each time
that the xtables lock is given back, and once a second, as some programs do not take it.
"""

import contextlib
import socket
from collections.abc import Callable, Collection, Sequence
from typing import Final

from loguru import logger

from sidecar.node.legacy_tables import table_size
from sidecar.node.netlink import Watch
from sidecar.node.xtables_lock import LockWatch
from sidecar.state.model import Part

# linux/netlink.h, linux/rtnetlink.h, linux/netfilter/nfnetlink.h
_ROUTE: Final = 0
_NETFILTER: Final = 12
_ADD_MEMBERSHIP: Final = 1
_SOL_NETLINK: Final = 270
_LINK: Final = 1
_IPV4_ADDRESS: Final = 5
_IPV6_ADDRESS: Final = 9
_NFTABLES: Final = 7

#: Bytes that the kernel may queue for a socket. kube-proxy changes thousands of rules at once.
_BUFFER: Final = 2 * 1024 * 1024
_MESSAGE: Final = 65536

PROBE_INTERVAL: Final = 1.0  # seconds between two checks of the size of legacy's tables
_KERNEL: Final = 0  # the sender's netlink port (man 7 netlink, nl_pid)

#: How many messages are read at a time: a sender that is faster than us must not keep us from the work.
_MOST_READS: Final = 10_000


class Events:
    """Watches the node for changes that may remove one of our addresses or rules."""

    def __init__(self, watch: Watch) -> None:
        #: The index of the interface, by which a new name of it is noticed; 0: it is missing, None: not known.
        self.interface_index: int | None = None
        self._watch = watch
        #: Whether the kernel reports each change that concerns us; if not, why was logged.
        self.are_whole = True
        self._legacy_families: Collection[int] = ()
        self._lock: LockWatch | None = None
        self._parts: set[Part] = set()
        self._sockets: dict[int, tuple[socket.socket, Callable[[bytes], bool], Part]] = {}
        self._tables = sorted({(family, table) for family, table, _ in watch.chains})
        self._sizes: dict[tuple[int, str], bytes] = {}
        self._open(_ROUTE, (_LINK, _IPV4_ADDRESS, _IPV6_ADDRESS), self._concerns_links, Part.LINKS)
        if watch.chains:
            self._open(_NETFILTER, (_NFTABLES,), watch.concerns_rules, Part.RULES)

    @property
    def descriptors(self) -> Sequence[int]:
        """The descriptors that become readable when the kernel has sent a message, or legacy's lock was given back."""
        return (*self._sockets, self._lock.descriptor) if self._lock else tuple(self._sockets)

    @property
    def probe_interval(self) -> float | None:
        """Seconds after which to call `probe` again; None if no family uses legacy."""
        return PROBE_INTERVAL if self._legacy_families else None

    def close(self) -> None:
        """Watch no more."""
        for receiver, _, _ in self._sockets.values():
            receiver.close()
        self._sockets.clear()

    def watch_legacy(self, families: Collection[int]) -> None:
        """From now on, notice changes of the tables of iptables-legacy of these families.

        Their sizes were not taken before: so the first probe finds a change, as there may have been one.
        """
        if families and self._lock is None:
            with contextlib.suppress(OSError):  # then the probe finds it, a second later at most
                self._lock = LockWatch()
        self._legacy_families = families

    def arrived(self, descriptor: int) -> bool:
        """Read what has arrived; return whether any of it concerns us."""
        if self._lock and descriptor == self._lock.descriptor:
            self._lock.forget()
            return self._sizes_changed()
        receiver, concerns, part = self._sockets[descriptor]
        found = False
        for _ in range(_MOST_READS):
            try:
                data, _, flags, (sender, _) = receiver.recvmsg(_MESSAGE)
            except BlockingIOError:
                break
            except OSError:  # mostly ENOBUFS: messages were lost, and may have concerned us
                found = True
                continue
            if sender == _KERNEL:  # any process with CAP_NET_ADMIN may send to us
                # Read on even if the answer is known: the rest would wake us up again.
                found = concerns(data) or bool(flags & socket.MSG_TRUNC) or found
        if found:
            self._parts.add(part)
        return found

    def probe(self) -> bool:
        """Whether legacy's tables changed; watch the file of the lock that is there now."""
        if self._lock:
            self._lock.renew()
        return self._sizes_changed()

    def take_part(self) -> Part | None:
        """Return what part of the node all that arrived since the last call was about; None for more than one."""
        parts, self._parts = self._parts, set()
        return parts.pop() if len(parts) == 1 else None

    def forget(self) -> None:
        """Discard all that has arrived so far, but for what it was about."""
        for descriptor in self._sockets:
            self.arrived(descriptor)
        if self._lock:
            self._lock.forget()

    def take_sizes(self) -> None:
        """Remember the sizes of legacy's tables."""
        self._sizes = self._ask()

    def _sizes_changed(self) -> bool:
        """Whether legacy's tables changed since `take_sizes`; the same number of rules of the same size goes unseen."""
        is_changed = self._ask() != self._sizes
        if is_changed:
            self._parts.add(Part.RULES)
        return is_changed

    def _concerns_links(self, data: bytes) -> bool:
        return self._watch.concerns_links(data, self.interface_index)

    def _ask(self) -> dict[tuple[int, str], bytes]:
        return {key: table_size(*key) for key in self._tables if key[0] in self._legacy_families}

    def _open(self, protocol: int, groups: Sequence[int], concerns: Callable[[bytes], bool], part: Part) -> None:
        try:
            receiver = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            receiver.bind((0, 0))
            for group in groups:
                receiver.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        except OSError as error:
            self.are_whole = False
            what = {Part.LINKS: "addresses", Part.RULES: "nft rules"}[part]
            logger.warning(f"cannot watch {what} ({error.strerror}): removals are repaired only every --sync-interval")
            return
        self._sockets[receiver.fileno()] = (receiver, concerns, part)
