"""The check of connections that the kernel tracks."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from sidecar.doctor.findings import Finding, Level, counted
from sidecar.doctor.view import NO_TIME, View
from sidecar.errors import CommandError, SidecarError, reason
from sidecar.node import proc, proc_formats
from sidecar.node.proc_formats import Tracked
from sidecar.node.programs import is_installed
from sidecar.state.model import Address

#: Seconds between two looks: the kernel tells the whole seconds that are left of an entry's time.
PAUSE: Final = 1.05

_SYSCTLS: Final = Path("/proc/sys/net")
_COUNT: Final = _SYSCTLS / "netfilter/nf_conntrack_count"


@dataclass(frozen=True, slots=True)
class Look:
    """What the kernel's table of tracked connections held."""

    at: float  # on the monotonic clock
    tracked: dict[Address, Tracked] = field(default_factory=dict)
    lines: int = 0
    is_complete: bool = True
    failure: str = ""


def conntrack(view: View, first: Look | None = None) -> Iterator[Finding]:
    """Yield whether connections to each address are in the kernel's table of tracked connections.

    `first` is an earlier look, if there is one: what has no traffic is known by two.
    """
    first = first or look(view)
    second = None
    if view.desired.rules and any(first.tracked.values()):
        second = look(view) if view.pause(max(first.at + PAUSE - time.monotonic(), 0)) else None
    last = second or first
    if last.failure:
        yield Finding(Level.UNKNOWN, f"the tracked connections could not be listed: {last.failure}")
        return
    for address, before in first.tracked.items():
        if not before and last.is_complete:
            yield Finding(Level.OK, f"no connection to {view.where(address)} is tracked")
        elif before and not view.desired.rules:
            yield _found(view, address, len(before), Level.NOTE, "tracked, as expected without --setup-iptables")
        elif before and not second:
            why = f"tracked; whether there is traffic of theirs, was not checked {NO_TIME}"
            yield _found(view, address, len(before), Level.UNKNOWN, why)
        elif before:
            idle = proc_formats.unrefreshed(before, last.tracked[address], last.at - first.at)
            yield from _of_one(view, address, idle, last.tracked[address])
    if not last.is_complete:
        yield Finding(Level.UNKNOWN, f"only the first {last.lines} tracked connections were checked, {NO_TIME}")


def look(view: View) -> Look:
    """Look at the table; never raises anything."""
    at = time.monotonic()
    try:
        lines, is_complete = _connections(view)
        tracked = {each: proc_formats.tracked(lines, each.ip, view.port) for each in view.desired.addresses}
    except (OSError, ValueError, SidecarError) as error:
        return Look(at, failure=reason(error) if isinstance(error, OSError) else str(error))
    return Look(at, tracked, len(lines), is_complete)


def _of_one(view: View, address: Address, idle: int, tracked: Tracked) -> Iterator[Finding]:
    """Yield what is tracked in spite of our rules, and what is left from the time before them.

    Traffic refreshes the time of an entry, which is five days for an open connection. Untracked traffic does not.
    """
    if active := len(tracked) - idle:
        deletion = f"conntrack -D -p tcp -d {address.ip} --dport {view.port}"
        found = _found(view, address, active, Level.WARNING, "tracked, though our rules should prevent that")
        yield replace(found, commands=(deletion,))
    if idle:
        yield _found(view, address, idle, Level.NOTE, "still listed from before our rules, but not tracked any more")
    if not tracked:
        yield Finding(Level.OK, f"no connection to {view.where(address)} is tracked any more")


def _found(view: View, address: Address, number: int, level: Level, what: str) -> Finding:
    where = view.where(address)
    connections = counted(number, f"connection to {where} is", f"connections to {where} are")
    return Finding(level, f"{connections} {what}", facts={**address.facts, "connections": number})


def _connections(view: View) -> tuple[list[str], bool]:
    """Return a line for each tracked connection, and whether these are all."""
    with contextlib.suppress(FileNotFoundError):  # without the whole of /proc, the program conntrack knows
        if listed := proc.of_network("nf_conntrack", proc.lines):
            return listed
    if is_installed("conntrack"):
        argv = ("conntrack", "-L", "-p", "tcp")
        result = view.run(*argv)
        if result.exit:
            raise CommandError(argv, "", f"exited with {result.exit}", result.stderr)
        return result.stdout.splitlines(), True
    if _SYSCTLS.is_dir() and not _COUNT.exists():
        return [], True  # the kernel tracks nothing at all
    raise OSError(0, "there is no /proc/net/nf_conntrack, and conntrack is not installed: apt-get install conntrack")
