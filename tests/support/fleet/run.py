"""Starts a fleet, lets chaos happen to it, and judges what is left."""

import contextlib
import os
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from support.fleet.chaos import Chaos
from support.fleet.kernel import Kernel
from support.fleet.node import Node
from support.fleet.report import Report
from support.fleet.scrapes import Scrapes
from support.namespace import Namespace
from support.waiting import HANG, until

LEGACY_EVERY: Final = 4  # nodes
UNREAD_EVERY: Final = 7  # nodes; nobody reads its log
FAULTS_PER_NODE: Final = 0.08  # a second
FEWEST_FAULTS: Final = 3.0  # a second
UPDATE_AT: Final = 0.2  # of the time
SETTLED: Final = 10.0  # seconds that the starts of 100 sidecars and the looks after them take two cores, at most
FULL: Final = 100  # nodes
_PAUSE: Final = 0.2  # seconds between two looks
_DESCRIPTORS: Final = 16  # for each node

#: Is called again and again while a fleet runs.
Tell = Callable[[str], object]


class NotStarted(Exception):
    """The fleet was never in sync; the text says which nodes are not."""


def legacy_works() -> bool:
    """Whether iptables-legacy works in a namespace of ours: an ordinary user may not, on some machines."""
    with Namespace() as namespace:
        return "-P INPUT" in namespace.iptables("legacy", 4, "-w", "-S", check=False)


@contextmanager
def fleet(backends: Sequence[str], unread: Collection[int] = (), tell: Tell = lambda _: None) -> Iterator[list[Node]]:
    """Make a node for each backend, with what others have on it; what was started ends with the block.

    `unread` are the numbers of those whose log nobody reads.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 256 + _DESCRIPTORS * len(backends))), hard))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        nodes = []
        for number, backend in enumerate(backends):
            tell(f"making nodes: {number} of {len(backends)}")
            node = Node(number, backend, Path(folder), is_log_read=number not in unread)
            stack.callback(node.close)
            nodes.append(node)
            node.prepare()
        yield nodes


def backends(number: int, *, legacy: bool) -> list[str]:
    return ["legacy" if legacy and each % LEGACY_EVERY == LEGACY_EVERY - 1 else "nft" for each in range(number)]


def run(nodes: Sequence[Node], seconds: float, seed: int, tell: Tell) -> Report:
    """Start a sidecar on each node, let faults happen for so long, and return what came of it."""
    with Kernel(list(nodes)) as kernel:
        load = os.getloadavg()[0]
        start(nodes, tell)
        start_cpu = _cpu(nodes) / len(nodes)
        tell("waiting until the starts and the looks after them are over")
        time.sleep(SETTLED * min(1, len(nodes) / FULL))
        kernel.in_sync()
        with Scrapes(nodes) as scrapes:
            chaos = Chaos(nodes, kernel, seed, max(FEWEST_FAULTS, FAULTS_PER_NODE * len(nodes)))
            cpu, processes, began = _cpu(nodes), _processes(nodes), time.monotonic()
            chaos.run(
                seconds, UPDATE_AT, lambda: tell(_progress(nodes, chaos, kernel, scrapes, time.monotonic() - began))
            )
            tell("waiting until all is repaired")
            with contextlib.suppress(AssertionError):  # it is judged below
                until(lambda: not kernel.gone())
            cpu = _cpu(nodes) - cpu
            scrapes.stop()
        outages = [replace(each, gone=each.gone - began, back=each.back - began) for each in kernel.outages()]
        tell("judging")
        deadline = time.monotonic() + HANG
        judged = {node.name: _judge(node, deadline) for node in nodes}
        changed = {node.name: node.foreign_changes() for node in nodes}
        return Report(
            seed=seed,
            nodes=Counter(node.backend for node in nodes),
            seconds=seconds,
            load=(load, os.getloadavg()[0]),
            faults=chaos.happened,
            update=(chaos.update_began - began, chaos.update_ended - began),
            outages=outages,
            lost=kernel.lost,
            scrapes={"made": scrapes.made, "without an answer": scrapes.unanswered, **scrapes.totals},
            cpu=round(cpu, 2),
            starts=_processes(nodes) - processes,
            start_cpu=round(start_cpu, 2),
            memory=[round(each.pss(), 1) for node in nodes for each in node.processes if each.is_alive()],
            wrong={name: lines for name, lines in judged.items() if lines},
            foreign_changes={name: lines for name, lines in changed.items() if lines},
        )


def start(nodes: Sequence[Node], tell: Tell = lambda _: None, flags: Sequence[Sequence[str]] = ()) -> None:
    """Start a sidecar on each node, with more flags if there are any; return once all are ready."""
    for node, more in zip(nodes, flags or [()] * len(nodes), strict=True):
        node.start(*more)
    waiting, last = list(nodes), time.monotonic()
    while waiting:
        left = [node for node in waiting if not node.is_ready()]
        if len(left) < len(waiting):
            last = time.monotonic()
        elif time.monotonic() - last > HANG or any(node.died() for node in left):
            logs = "".join(node.log.read_text() for node in left)
            raise NotStarted(f"not in sync: {', '.join(node.name for node in left)}\n{logs}")
        waiting = left
        tell(f"starting: {len(nodes) - len(waiting)} of {len(nodes)} nodes are in sync")
        time.sleep(_PAUSE)


def _judge(node: Node, deadline: float) -> list[str]:
    """Return what is wrong with a node, and stays so until then."""
    while (wrong := node.wrong()) and time.monotonic() < deadline:
        time.sleep(_PAUSE)
    return wrong


def _progress(nodes: Sequence[Node], chaos: Chaos, kernel: Kernel, scrapes: Scrapes, seconds: float) -> str:
    repaired = sorted(each.seconds for each in kernel.outages())
    median = f"{repaired[len(repaired) // 2] * 1000:.0f} ms" if repaired else "-"
    return (
        f"{seconds:.0f} s: {chaos.happened.total()} faults, {len(repaired)} repairs (median {median}), "
        f"{scrapes.ready} of {len(nodes)} ready, {chaos.updated} updated"
    )


def _cpu(nodes: Sequence[Node]) -> float:
    return sum(each.cpu() for node in nodes for each in node.processes)


def _processes(nodes: Sequence[Node]) -> int:
    return sum(len(node.processes) for node in nodes)
