"""Reads from /proc which other processes hold a lock, listen, or run this program. Changes nothing.

Much of it is readable only by root, or only for this pid namespace; results leave out the rest, and say so.
"""

import contextlib
import errno
import os
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

from sidecar.node import proc_formats
from sidecar.node.proc_formats import Listener

#: The inode of the node's own pid namespace (linux/proc_ns.h, PROC_PID_INIT_INO).
_INITIAL_PID_NAMESPACE: Final = "pid:[4026531836]"

#: Where the files of this network namespace are. A mount with subset=pid (systemd's ProcSubset=pid) lacks the first.
_NETWORK: Final = (Path("/proc/net"), Path("/proc/self/net"))

PATIENCE: Final = 0.5  # seconds spent at most on searching the files of other processes, or on reading a large file

_Content = TypeVar("_Content")


@dataclass(frozen=True, slots=True)
class Process:
    """Another process; without arguments if they cannot be read."""

    pid: int
    name: str
    argv: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.name})"


def process(pid: int) -> Process | None:
    """Return the process with this id, or None if there is none, or it cannot be seen."""
    try:
        name = Path(f"/proc/{pid}/comm").read_text(errors="surrogateescape").rstrip("\n")
        argv = Path(f"/proc/{pid}/cmdline").read_text(errors="surrogateescape").rstrip("\0").split("\0")
    except OSError:
        return None
    return Process(pid, name, tuple(argv))


def sees_all_processes() -> bool:
    """Whether this process is in the node's own pid namespace, not in a container's."""
    return _link("/proc/self/ns/pid") == _INITIAL_PID_NAMESPACE


def holders(path: Path) -> list[Process | None]:
    """Return the processes that hold a lock on a file; None stands for one that cannot be seen from here."""
    status = path.stat()
    key = (os.major(status.st_dev), os.minor(status.st_dev)), status.st_ino
    locks = proc_formats.held_locks(Path("/proc/locks").read_text())
    return [process(lock.pid) if lock.pid > 0 else None for lock in locks if (lock.device, lock.inode) == key]


def listeners() -> list[Listener]:
    """Return all sockets of this network namespace that listen for TCP connections."""
    found: list[Listener] = []
    for name in ("tcp", "tcp6"):
        found += proc_formats.listeners(of_network(name, Path.read_text) or "")  # without IPv6, tcp6 does not exist
    return found


def owners(inodes: Collection[int]) -> dict[int, Process]:
    """Return the processes that have these sockets open, by inode, as far as they can be seen."""
    deadline = time.monotonic() + PATIENCE
    names = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[int, Process] = {}
    for pid in _pids() if inodes else ():
        if time.monotonic() > deadline:
            break
        try:
            targets = _open_files(pid)
        except OSError:  # it has ended, or belongs to another user
            continue
        for target in targets & names.keys():
            if owner := process(pid):
                found.setdefault(names[target], owner)
    return found


def _open_files(pid: int) -> set[str]:
    directory = f"/proc/{pid}/fd"
    found = set()
    with os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found.add(_link(entry.path))
    return found


def neighbours() -> Iterator[tuple[Process, bool | None]]:
    """Yield all other processes, and whether they share our network namespace; None if that cannot be seen."""
    ours = _link("/proc/self/ns/net")
    for pid in _pids():
        found = process(pid) if pid != os.getpid() else None
        if not found or not found.argv[0]:  # ended, or a kernel thread
            continue
        try:
            yield found, _link(f"/proc/{pid}/ns/net") == ours
        except PermissionError:
            yield found, None
        except OSError:
            continue


def variables(pid: int) -> dict[str, str]:
    """Return the initial environment of a process."""
    text = Path(f"/proc/{pid}/environ").read_text(errors="surrogateescape")
    return dict(pair.split("=", 1) for pair in text.split("\0") if "=" in pair)


def of_network(name: str, read: Callable[[Path], _Content]) -> _Content | None:
    """Read a file of /proc/net; return None if the kernel does not have it. Raises OSError if that cannot be known.

    Only a file that is missing from a directory that is there proves that the kernel lacks something.
    """
    for directory in _NETWORK:
        try:
            return read(directory / name)
        except FileNotFoundError:
            if directory.is_dir():
                return None
    raise FileNotFoundError(errno.ENOENT, "/proc/net cannot be seen here", str(_NETWORK[0] / name))


def lines(path: Path) -> tuple[list[str], bool]:
    """Return the lines of a file that can be very long, and whether they are complete."""
    found: list[str] = []
    deadline = time.monotonic() + PATIENCE
    with path.open() as file:
        while chunk := list(islice(file, 5000)):
            found += chunk
            if time.monotonic() > deadline:
                return found, False
    return found, True


def _link(path: str) -> str:
    return os.readlink(path)  # noqa: PTH115 - a Path for each open file of the node would be slow


def _pids() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208 - only the names matter
