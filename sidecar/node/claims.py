"""Claims on what an instance needs, so that no instance removes what another one needs.

A rolling update starts the new instance before it stops the old one. Each running instance holds a shared lock for
each of its claims: on a byte of one file, chosen by the network namespace and the claim, so that any number of claims
takes one descriptor. A cleanup asks for exclusive locks: it gets one only if no other instance has the claim, and an
instance that starts meanwhile waits until the cleanup is over. The locks end with the process that holds them (man 2
fcntl, open file description locks).
"""

import contextlib
import fcntl
import os
import struct
import time
import zlib
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

from loguru import logger

from sidecar.state.model import Address, Claim, Foreign, Interface, RulesBackend, RuleSet

DIRECTORY: Final = Path("/run/apiserver-proxy-sidecar")

#: Seconds that a starting instance waits for another instance's cleanup, and seconds between two tries.
PATIENCE: Final = 60.0
PAUSE: Final = 0.02

_FLOCK: Final = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux: type, whence, start, length, process id

#: What an instance lets others see by a lock that reserves nothing.
Shown: TypeAlias = RulesBackend | Foreign

_Shown = TypeVar("_Shown", Claim, RulesBackend, Foreign)


class Claims:
    """The claims that this process holds, as locks."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self._directory = directory
        self._path = directory / "claims"
        self._file: int | None = None
        self._claims: list[Claim] = []
        self._shown: set[RulesBackend] = set()
        self._missing: list[Claim] = []  # claims that another instance's cleanup did not give back in time

    def take(self, claims: Iterable[Claim], *, is_over: Callable[[], bool]) -> None:
        """Make these claims; wait while another instance cleans them up, unless `is_over`.

        If no file can be locked, log a warning and claim nothing.
        """
        deadline = time.monotonic() + PATIENCE
        try:
            self._directory.mkdir(mode=0o755, exist_ok=True)
            self._file = self._open()
            for claim in claims:
                self._claims.append(claim)
                self._wait_for(self._file, claim, deadline, is_over)
        except OSError as error:
            self.give_back()
            logger.warning(
                f"cannot use {self._directory} ({error.strerror}): a cleanup by this or another instance on the node "
                "cannot tell who else needs the address; mount this directory from the node"
            )

    def take_missing(self) -> None:
        """Try again, without waiting, to make the claims that `take` went on without."""
        if self._file is None:
            return
        for claim in tuple(self._missing):
            with contextlib.suppress(OSError):  # as it was before
                if _lock(self._file, claim, fcntl.F_RDLCK):
                    self._missing.remove(claim)
                    logger.info(f"the other instance's cleanup of {claim} has ended: claimed")

    def claimed_by_others(self) -> frozenset[Claim]:
        """Give up all claims before a cleanup; return those that other instances hold. We may remove the rest.

        If the locks fail, it is unknown what others hold: log a warning and return all claims.
        """
        if self._file is None:
            return frozenset()
        try:
            return self._held_by_others(self._file)
        except OSError as error:
            logger.warning(
                f"cannot lock {self._path} ({error.strerror}): cannot tell whether another instance needs what this "
                "one has set up, so it stays; remove it with `cleanup`"
            )
            return frozenset(self._claims)

    def _held_by_others(self, file: int) -> frozenset[Claim]:
        files = [file]
        if not self._is_current(file):  # the file was removed, and others may have created a new one
            with contextlib.suppress(OSError):
                files.append(self._open())
        # Release the locks first: if two instances clean up at the same moment, one must get each claim.
        for claim in self._claims:
            _lock(file, claim, fcntl.F_UNLCK)
        return frozenset(
            claim for claim in self._claims if not all(_lock(each, claim, fcntl.F_WRLCK) for each in files)
        )

    def give_back(self) -> None:
        """Claim nothing any more: closing the file ends its locks."""
        if self._file is not None:
            os.close(self._file)
        self._file = None
        self._claims, self._missing = [], []

    def show(self, backends: Collection[RulesBackend]) -> None:
        """Let others see that this process uses these backends, instead of others of the family. It reserves nothing.

        It is a lock like a claim, and ends with the process as well.
        """
        if self._file is None:
            return
        families = {each.family for each in backends}
        with contextlib.suppress(OSError):
            for each in backends:
                _lock(self._file, each, fcntl.F_RDLCK)
            for each in self._shown - set(backends):
                if each.family in families:
                    _lock(self._file, each, fcntl.F_UNLCK)
        self._shown = {each for each in self._shown if each.family not in families} | set(backends)

    def show_foreign(self, *, is_foreign: bool) -> None:
        """Let others see whether the interface is one that somebody else created, and so is waited for if missing."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            for each in self._claims:
                if isinstance(each, Interface):
                    _lock(self._file, Foreign(each.name), fcntl.F_RDLCK if is_foreign else fcntl.F_UNLCK)

    def is_shown_by_others(self, backends: Iterable[RulesBackend]) -> bool:
        """Whether another instance uses one of these backends."""
        if self._file is None:
            return False
        with contextlib.suppress(OSError):
            return any(_is_locked(self._file, each) for each in backends)
        return True  # to leave a rule where nobody needs it does less harm than to take it away

    def _open(self) -> int:
        return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def _is_current(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), self._path.stat())
        except OSError:
            return False

    def _wait_for(self, file: int, claim: Claim, deadline: float, is_over: Callable[[], bool]) -> None:
        is_logged = False
        while not _lock(file, claim, fcntl.F_RDLCK):
            if is_over():
                return
            if time.monotonic() > deadline:
                logger.warning(f"another instance is still cleaning up {claim}: continuing without waiting for it")
                self._missing.append(claim)
                return
            if not is_logged:
                is_logged = True
                logger.info(f"another instance is cleaning up {claim}: waiting for it")
            time.sleep(PAUSE)


def held(claims: Iterable[_Shown], directory: Path = DIRECTORY) -> frozenset[_Shown]:
    """Return those of the claims that a running instance holds, in whatever container; take no lock.

    Raises OSError if the file cannot be read; FileNotFoundError means that no instance has run here.
    """
    file = os.open(directory / "claims", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return frozenset(claim for claim in claims if _is_locked(file, claim))
    finally:
        os.close(file)


def are_shared_with(pid: int, directory: Path = DIRECTORY) -> bool:
    """Whether a process uses the same file for its claims: it may have a /run of its own."""
    try:
        return Path(f"/proc/{pid}/root{directory}/claims").samefile(directory / "claims")
    except OSError:  # there is no such file, or the process has ended
        return False


def _is_locked(file: int, claim: Claim | Shown) -> bool:
    question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _place(claim), 1, 0)
    kind, *_ = _FLOCK.unpack(fcntl.fcntl(file, fcntl.F_OFD_GETLK, question))
    return bool(kind != fcntl.F_UNLCK)


def _lock(file: int, claim: Claim | Shown, kind: int) -> bool:
    """Lock or unlock the byte that stands for a claim, without waiting; return whether it succeeded."""
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, _place(claim), 1, 0))
    except BlockingIOError:
        return False
    return True


def _place(claim: Claim | Shown) -> int:
    """Return the byte that stands for a claim in this network namespace (man 7 namespaces: its inode identifies it)."""
    match claim:
        case Address(ip, _, interface):
            name = f"{ip}@{interface}"
        case RuleSet(ip, port):
            name = f"{ip}:{port}"
        case Interface(name):
            name = f"link {name}"
        case Foreign(interface):
            name = f"foreign {interface}"
        case RulesBackend(family, backend, rules):
            name = f"IPv{family} by {backend}: {rules}"
    namespace = Path("/proc/self/ns/net").stat().st_ino
    return zlib.crc32(f"{namespace} {name}".encode(errors="surrogateescape"))
