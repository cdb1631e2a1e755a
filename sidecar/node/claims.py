"""Which addresses, rules and links several instances on one node want, so that none cleans up what another one needs.

A rolling update starts the new instance before it stops the old one. Each running instance holds a shared lock for
each thing it wants: on a byte of one file, chosen by the thing's name, so that any number of things takes one
descriptor. Who cleans up asks for those locks alone: it gets one only if nobody else wants the thing, and whoever
starts meanwhile waits until the cleanup is over. The locks end with the process that holds them (man 2 fcntl, open
file description locks).
"""

import contextlib
import fcntl
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from loguru import logger

DIRECTORY: Final = Path("/run/apiserver-proxy-sidecar")

#: Seconds for which a start waits for somebody's cleanup, and between two tries.
PATIENCE: Final = 60.0
PAUSE: Final = 0.02

#: struct flock of 64-bit Linux: type, whence, start, length, process id.
_FLOCK: Final = struct.Struct("hhqqi4x")


class Claims:
    """The locks that this process holds."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self._directory = directory
        self._path = directory / "claims"
        self._file: int | None = None
        self._names: list[str] = []

    def take(self, names: Iterable[str], *, is_over: Callable[[], bool]) -> None:
        """Claim these things; wait while somebody cleans them up, unless `is_over`.

        Where no file can be locked this says so, and nothing is claimed.
        """
        deadline = time.monotonic() + PATIENCE
        try:
            self._directory.mkdir(mode=0o755, exist_ok=True)
            self._file = self._open()
        except OSError as error:
            logger.warning(
                f"cannot use {self._directory} ({error.strerror}): a cleanup by this or another instance on the node "
                "does not know who else needs the address; mount this directory from the node"
            )
            return
        for name in names:
            self._names.append(name)
            self._wait_for(self._file, name, deadline, is_over)

    def wanted_by_others(self) -> frozenset[str]:
        """Give up all claims, for a cleanup; return what others claim as well. The rest is ours to remove."""
        if self._file is None:
            return frozenset()
        files = [self._file]
        if not self._is_current(self._file):  # somebody removed the file, and others may have made another one
            with contextlib.suppress(OSError):
                files.append(self._open())
        # First of all let go: of two that clean up at the same moment, one must get it.
        for name in self._names:
            _lock(self._file, name, fcntl.F_UNLCK)
        return frozenset(name for name in self._names if not all(_lock(file, name, fcntl.F_WRLCK) for file in files))

    def _open(self) -> int:
        return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def _is_current(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), self._path.stat())
        except OSError:
            return False

    def _wait_for(self, file: int, name: str, deadline: float, is_over: Callable[[], bool]) -> None:
        said = False
        while not _lock(file, name, fcntl.F_RDLCK):
            if is_over():
                return
            if time.monotonic() > deadline:
                logger.warning(f"another instance does not end its cleanup of {name}: going on without waiting for it")
                return
            if not said:
                said = True
                logger.info(f"another instance is cleaning up {name}: waiting for it")
            time.sleep(PAUSE)


def held(names: Iterable[str], directory: Path = DIRECTORY) -> frozenset[str]:
    """Return those of the names that a running instance claims, in whatever container; take nothing.

    Raises OSError where that cannot be looked at; FileNotFoundError: no instance has run here.
    """
    file = os.open(directory / "claims", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return frozenset(name for name in names if _is_locked(file, name))
    finally:
        os.close(file)


def _is_locked(file: int, name: str) -> bool:
    question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _place(name), 1, 0)
    kind, *_ = _FLOCK.unpack(fcntl.fcntl(file, fcntl.F_OFD_GETLK, question))
    return bool(kind != fcntl.F_UNLCK)


def _place(name: str) -> int:
    """Return the byte that stands for a name."""
    return zlib.crc32(name.encode(errors="surrogateescape"))


def _lock(file: int, name: str, kind: int) -> bool:
    """Lock the byte that stands for a name, or unlock it; return whether that could be done at once."""
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, _place(name), 1, 0))
    except BlockingIOError:
        return False
    return True
