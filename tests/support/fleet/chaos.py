"""What happens to the nodes of a fleet.

A fault is a generator: what it does at once, then the seconds until it goes on. So one thread lets many of them happen
side by side, and none waits for another.
"""

import fcntl
import heapq
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final, TypeAlias

from support.fleet.kernel import Kernel
from support.fleet.node import FAMILIES, RULES, TABLES, Node, foreign_rules, services
from support.waiting import HANG

Fault: TypeAlias = Callable[[Node, random.Random, Kernel], Iterator[float]]

SURGE: Final = 10  # nodes that a rolling update takes at a time
MIN_READY: Final = 5.0  # seconds for which a new sidecar must be ready, as the manifest's minReadySeconds
LOCKED: Final = "the lock was held"
_LOOK: Final = 0.2  # seconds between two probes of a node that is waited for
_GRACE: Final = 0.3  # seconds until the supervisor starts a sidecar again


def delete_address(node: Node, dice: random.Random, _: Kernel) -> Iterator[float]:
    address = dice.choice(list(FAMILIES.values()))
    cidr = f"{address}/{address.max_prefixlen}"
    node.namespace.run("ip", "address", "delete", cidr, "dev", "lo", check=False)
    yield from ()


def delete_rule(node: Node, dice: random.Random, kernel: Kernel) -> Iterator[float]:
    rule = dice.choice(RULES)
    node.namespace.iptables(
        node.backend, rule.family, "-w", "-t", rule.table, "-D", rule.chain, *rule.match, check=False
    )
    kernel.deleted(node)
    yield from ()


def flush_tables(node: Node, dice: random.Random, kernel: Kernel) -> Iterator[float]:
    """Delete all rules of a family; those of others come back at once."""
    family = dice.choice(list(FAMILIES))
    for table in TABLES:
        node.namespace.iptables(node.backend, family, "-w", "-t", table, "-F", check=False)
    kernel.deleted(node)
    node.restore(family, foreign_rules(family), "--noflush")
    yield from ()


def reload_firewall(node: Node, dice: random.Random, kernel: Kernel) -> Iterator[float]:
    """Write all tables as the administrator has them, without ours."""
    family = dice.choice(list(FAMILIES))
    node.restore(family, foreign_rules(family))
    kernel.deleted(node)
    yield from ()


def link_down(node: Node, _: random.Random, __: Kernel) -> Iterator[float]:
    node.namespace.run("ip", "link", "set", "lo", "down", check=False)
    yield from ()


def storm(node: Node, dice: random.Random, __: Kernel) -> Iterator[float]:
    """Let kube-proxy write its chain, ten times in a second or two."""
    family = dice.choice(list(FAMILIES))
    for _ in range(10):
        if node.hindered != LOCKED:
            node.restore(family, services(family), "--noflush")
        yield 0.1


def hold_lock(node: Node, dice: random.Random, _: Kernel) -> Iterator[float]:
    """Hold the xtables lock for a while; only legacy heeds it."""
    node.hinder(LOCKED)
    path = Path("/proc", str(node.namespace.pid), "root", "run", "xtables.lock")  # as processes of the node see it
    lock = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                yield 0.01
        yield dice.uniform(0.5, 2)
    finally:
        os.close(lock)
    node.hinder("")


def kill(node: Node, _: random.Random, __: Kernel) -> Iterator[float]:
    """Let the supervisor start it again."""
    node.hinder("it was killed")
    if newest := node.newest:
        newest.signal(signal.SIGKILL)
    yield _GRACE
    node.start()
    yield from _until_ready(node)
    node.hinder("")


def halt(node: Node, dice: random.Random, _: Kernel) -> Iterator[float]:
    node.hinder("it was stopped")
    halted = node.newest
    if halted:
        halted.signal(signal.SIGSTOP)
    yield dice.uniform(0.5, 3)
    if halted:
        halted.signal(signal.SIGCONT)
    node.hinder("")


def update(node: Node) -> Iterator[float]:
    """Start a new sidecar, and stop the one before once the new one is ready."""
    while node.hindered:
        yield _LOOK
    before = [each for each in node.processes if each.is_wanted]
    node.is_updated = True
    node.start()
    yield MIN_READY
    yield from _until_ready(node)
    for each in before:
        each.signal(signal.SIGTERM)
    while any(each.is_alive() for each in before):
        yield _LOOK
    node.is_updated = False


def _until_ready(node: Node) -> Iterator[float]:
    """Wait for it; one that never becomes ready is judged at the end."""
    deadline = time.monotonic() + HANG
    while not node.is_ready() and time.monotonic() < deadline:
        yield _LOOK


@dataclass(frozen=True)
class Kind:
    """A kind of fault."""

    happens: Fault
    weight: int  # how often beside the others
    is_hindrance: bool = False  # until it is over nothing can be repaired
    needs_lock: bool = False


#: By what the report calls them.
FAULTS: Final = {
    "address deleted": Kind(delete_address, 6),
    "rule deleted": Kind(delete_rule, 6, needs_lock=True),
    "tables flushed": Kind(flush_tables, 2, needs_lock=True),
    "firewall reloaded": Kind(reload_firewall, 2, needs_lock=True),
    "link down": Kind(link_down, 2),
    "kube-proxy's storm": Kind(storm, 2),
    "xtables lock held": Kind(hold_lock, 1, is_hindrance=True),
    "sidecar killed": Kind(kill, 1, is_hindrance=True),
    "sidecar stopped": Kind(halt, 1, is_hindrance=True),
}


class Chaos:
    """Lets faults happen by a seed, and the fleet be updated meanwhile."""

    def __init__(self, nodes: Sequence[Node], kernel: Kernel, seed: int, faults_per_second: float) -> None:
        self.happened: Counter[str] = Counter()
        self.updated = 0
        self.update_began = self.update_ended = 0.0  # by the monotonic clock
        self._nodes = nodes
        self._kernel = kernel
        self._dice = random.Random(seed)
        self._rate = faults_per_second
        self._todo: list[tuple[float, int, Iterator[float]]] = []
        self._done: list[Node] = []
        self._numbers = count()  # among what is due at the same time, the order

    def run(self, seconds: float, update_at: float, tell: Callable[[], object]) -> None:
        """Let faults happen for so long, with an update of all from that share of it on; end what was begun."""
        began = time.monotonic()
        self._add(self._faults(began + seconds))
        self._add(self._roll(), began + seconds * update_at)
        while self._todo:
            due, _, doing = heapq.heappop(self._todo)
            while (left := due - time.monotonic()) > 0:
                time.sleep(min(left, 0.1))
                tell()
            tell()
            pause = next(doing, None)
            if pause is not None:
                self._add(doing, time.monotonic() + pause)

    def _add(self, doing: Iterator[float], due: float | None = None) -> None:
        heapq.heappush(self._todo, (time.monotonic() if due is None else due, next(self._numbers), doing))

    def _faults(self, end: float) -> Iterator[float]:
        weights = [each.weight for each in FAULTS.values()]
        while time.monotonic() < end:
            (name,) = self._dice.choices(list(FAULTS), weights)
            kind, node, dice = FAULTS[name], self._dice.choice(self._nodes), random.Random(self._dice.random())
            is_busy = kind.is_hindrance and (node.hindered or node.is_updated)  # one at a time
            if not is_busy and not (kind.needs_lock and node.hindered == LOCKED):
                self.happened[name] += 1
                self._add(kind.happens(node, dice, self._kernel))
            yield 1 / self._rate

    def _roll(self) -> Iterator[float]:
        """Update all nodes, so many at a time."""
        self.update_began = time.monotonic()
        waiting = list(self._nodes)
        running: list[Node] = []
        at_a_time = min(SURGE, -(-len(waiting) // 2))
        while waiting or running:
            running = [each for each in running if each not in self._done]
            while waiting and len(running) < at_a_time:
                running.append(waiting.pop())
                self._add(self._update(running[-1]))
            yield _LOOK
        self.update_ended = time.monotonic()

    def _update(self, node: Node) -> Iterator[float]:
        yield from update(node)
        self._done.append(node)
        self.updated += 1
