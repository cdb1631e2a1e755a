"""What the kernel offers around a child process: files for its streams, word of its end, and what it left behind."""

import contextlib
import gc
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def memory_file(content: str = "") -> BinaryIO:
    """Return an anonymous file with this content, to be read from its start."""
    file = os.fdopen(os.memfd_create("sidecar"), "w+b", buffering=0)
    if content:
        file.write(content.encode())
        file.seek(0)
    return file


def text(file: BinaryIO) -> str:
    """Return what was written; bytes that are not UTF-8, as in an interface's name, are kept (surrogateescape)."""
    file.seek(0)
    return file.read().decode(errors="surrogateescape")


@contextlib.contextmanager
def pidfd(pid: int) -> Iterator[int | None]:
    """Open what becomes readable when the process ends; None if it has ended, or the kernel is older than 5.3."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        yield None
        return
    try:
        yield pidfd
    finally:
        os.close(pidfd)


def tidy_up(descriptors: set[int], children: set[int]) -> None:
    """Undo what sh leaves behind when it fails to start a command: gc disabled, open pipes, perhaps a child.

    Sockets stay: the thread that answers probes opened them meanwhile.
    """
    gc.enable()
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                os.close(descriptor)
    for child in children:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def open_files() -> set[int]:
    """Return our open descriptors, as /proc lists them, except the one that reads the list."""
    listed = os.listdir("/proc/self/fd")  # noqa: PTH208 - quick, as it runs before every command
    return {int(descriptor) for descriptor in listed if os.path.lexists(f"/proc/self/fd/{descriptor}")}


def children() -> set[int]:
    """Return the process ids of our children."""
    try:
        return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))
    except OSError:  # a kernel without CONFIG_PROC_CHILDREN
        return set()
