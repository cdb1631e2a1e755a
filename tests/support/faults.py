"""What can go wrong on a node while clients use the address, and how many of their requests it costs."""

import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeAlias

from support.cluster import APISERVERS, Cluster, Outcome
from support.namespace import IPV4, IPV6
from support.program import Sidecar
from support.waiting import until

#: Does it to a cluster whose sidecar was started with these flags.
Fault: TypeAlias = Callable[[Cluster, Sidecar, tuple[str, ...]], None]

#: Seconds of load before a fault and after it.
BEFORE: Final = 0.5
AFTER: Final = 1.2

#: Seconds after which a request has failed: that TCP repeats a lost first packet after 1 s makes an answer late, and is
#: no failure to a client.
PATIENCE: Final = 2.0

#: Requests a second of each of the two clients.
RATE: Final = 100


def _backend(flags: tuple[str, ...]) -> str:
    return next(flag.partition("=")[2] for flag in flags if flag.startswith("--iptables-backend="))


def none(_: Cluster, __: Sidecar, ___: tuple[str, ...]) -> None:
    pass


def delete_address(cluster: Cluster, _: Sidecar, __: tuple[str, ...]) -> None:
    cluster.node.run("ip", "address", "delete", f"{IPV4}/32", "dev", "lo")


def delete_address_without_a_way_out(cluster: Cluster, sidecar: Sidecar, flags: tuple[str, ...]) -> None:
    """Let what goes to an unknown address be refused at once; a network that drops it makes clients wait and retry."""
    cluster.node.run("ip", "route", "delete", "default")
    delete_address(cluster, sidecar, flags)


def reload_firewall(cluster: Cluster, _: Sidecar, flags: tuple[str, ...]) -> None:
    cluster.firewall(_backend(flags), "DROP")


def kill_and_restart(cluster: Cluster, sidecar: Sidecar, flags: tuple[str, ...]) -> None:
    sidecar.process.send_signal(signal.SIGKILL)
    sidecar.process.communicate()
    cluster.start_sidecar(*flags)


def stop_and_restart(cluster: Cluster, sidecar: Sidecar, flags: tuple[str, ...]) -> None:
    sidecar.stop()
    cluster.start_sidecar(*flags)


def roll(cluster: Cluster, sidecar: Sidecar, flags: tuple[str, ...]) -> None:
    cluster.start_sidecar(*flags)
    sidecar.stop()


#: By what a reader of the table calls them.
FAULTS: Final[Mapping[str, Fault]] = {
    "none": none,
    "the address is deleted": delete_address,
    "the address is deleted, and the node has no default route": delete_address_without_a_way_out,
    "the firewall is reloaded, without our rules": reload_firewall,
    "the sidecar is killed, and started again": kill_and_restart,
    "a new sidecar starts, then the old one stops, with --cleanup": roll,
    "the only sidecar stops, with --cleanup, and is started again": stop_and_restart,
}


#: Which of them with which backend: with legacy those in which rules come and go.
CASES: Final = (
    *((name, "nft") for name in FAULTS),
    *((name, "legacy") for name, fault in FAULTS.items() if fault in (reload_firewall, roll, stop_and_restart)),
)


def measure(name: str, backend: str, rate: float = RATE, patience: float = PATIENCE) -> Outcome:
    """Let a fault happen under load, behind a firewall that drops what no rule lets in; return what came of it.

    Raises AssertionError if nobody answers the node or the pod once it is over.
    """
    flags = ("--setup-iptables", "--cleanup", f"--iptables-backend={backend}")
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder), IPV4, IPV6) as cluster:
        cluster.firewall(backend, "DROP")
        sidecar = cluster.start_sidecar(*flags)
        cluster.start_haproxy()
        outcome = under_load(cluster, lambda: FAULTS[name](cluster, sidecar, flags), rate, patience)
        server = next(iter(APISERVERS))
        for where in (cluster.node, cluster.pod):
            until(lambda: cluster.ask(where, IPV4, server).startswith(server))  # noqa: B023 - it is asked now
        return outcome


def under_load(
    cluster: Cluster, happens: Callable[[], object], rate: float = RATE, patience: float = PATIENCE
) -> Outcome:
    with cluster.load(rate, patience) as outcome:
        time.sleep(BEFORE)
        happens()
        time.sleep(AFTER)
    return outcome[0]


def row(*cells: str) -> str:
    """Return a row of the table."""
    what, backend, *numbers = cells
    return f"| {what:60} | {backend:7} | {' | '.join(f'{number:>8}' for number in numbers)} |"


HEADING: Final = row("under load", "backend", "requests", "failed", "late", "gap", "kept")


def as_row(name: str, backend: str, outcome: Outcome) -> str:
    kept = "yes" if not outcome.broken else f"{outcome.broken} broke"
    numbers = (outcome.requests, outcome.failed, outcome.late)
    return row(name, backend, *map(str, numbers), f"{outcome.gap * 1000:.0f} ms", kept)
