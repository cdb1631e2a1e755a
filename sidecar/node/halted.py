"""Finds out whether a process is kept from running: by a signal, a debugger, or the freezer of its control group."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CGROUPS: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Halt:
    """Why a process does not run, and what lets it run again: in words, or by a command."""

    why: str
    remedy: str = ""
    command: str = ""


def halted(pid: int) -> Halt | None:
    """Return what keeps a process from running; None: nothing that can be seen."""
    status = dict(line.split(":\t", 1) for line in _lines(Path(f"/proc/{pid}/status")) if ":\t" in line)
    match status.get("State", "")[:1]:
        case "T":
            return Halt("is stopped (SIGSTOP)", command=f"kill -CONT {pid}")
        case "t":
            return Halt(f"is stopped by a debugger, pid {status.get('TracerPid')}", "detach the debugger from it")
    if any(_frozen(pid)):
        resume = "`docker unpause CONTAINER`, `ctr -n k8s.io tasks resume ID`, or what has frozen it"
        return Halt("is frozen by its control group (a paused container)", f"resume it: {resume}")
    return None


def _frozen(pid: int) -> Iterator[bool]:
    """Yield whether the freezer of each of its control groups has stopped it (man 7 cgroups)."""
    for line in _lines(Path(f"/proc/{pid}/cgroup")):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            for root in (_CGROUPS, _CGROUPS / "unified"):
                yield "frozen 1" in _lines(root / path[1:] / "cgroup.events")
        elif controllers == "freezer":
            yield "FROZEN" in _lines(_CGROUPS / "freezer" / path[1:] / "freezer.state")


def _lines(file: Path) -> list[str]:
    with contextlib.suppress(OSError):  # it has ended, or there is no such hierarchy
        return file.read_text(errors="surrogateescape").splitlines()
    return []
