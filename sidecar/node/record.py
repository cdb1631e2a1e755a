"""The record of what instances keep in place, so that a successor with other settings can remove what it replaces.

One file for each network namespace, in a directory that is empty after a boot, as the node is. Whoever starts adds what
it will keep, before it sets anything up. Root acts on what is written there, so it is read only if nobody but its owner
could have written it, and nothing is taken from it that the settings would not accept.
"""

import contextlib
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sidecar.errors import reason
from sidecar.node.claims import DIRECTORY, PAUSE
from sidecar.settings import values
from sidecar.settings.options import Options
from sidecar.state.model import Address, Claim, IPAddress, RuleSet

#: Version of the format: it changes when a field is removed or its meaning changes.
SCHEMA: Final = "set-up/v1"

#: How many objects are remembered, the newest, and how many bytes a file may have to be read.
MOST: Final = 4096
MOST_BYTES: Final = 2**20

PATIENCE: Final = 1.0  # seconds to wait while another instance writes

_OF_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
_SO_NETNS_COOKIE: Final = 71  # since Linux 5.14 (asm-generic/socket.h)


class RecordUnusable(Exception):
    """The record cannot be read or written; the text says why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An address that an instance keeps, and its rules."""

    ip: IPAddress
    interface: str
    port: int  # of the rules; 0: it has none
    health_port: int  # where the instance answers probes; 0: nowhere

    @property
    def claims(self) -> frozenset[Claim]:
        """What it stands for, but the interface, which may hold other addresses."""
        address = Address(self.ip, self.ip.max_prefixlen, self.interface)
        return frozenset({address, RuleSet(self.ip, self.port)} if self.port else {address})

    def may_be_replaced_by(self, health_port: int) -> bool:
        """Whether a successor that answers probes there may remove it.

        Two installations on a node answer at different ports, and neither is the other's successor.
        """
        return not (self.health_port and health_port) or self.health_port == health_port


def entries(options: Options) -> frozenset[Entry]:
    """Return what an instance with these options keeps."""
    port = options.port if options.setup_iptables else 0
    return frozenset(Entry(ip, options.interface, port, options.health_address.port) for ip in options.ip_address)


class Record:
    """The record of this network namespace."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self._directory = directory
        self._name = f"set-up.{_namespace()}"
        self.path = directory / self._name

    def version(self) -> object:
        """Return a value that differs after each change, without reading the file."""
        with contextlib.suppress(OSError):
            found = self.path.stat(follow_symlinks=False)
            return found.st_ino, found.st_mtime_ns, found.st_size
        return None

    def read(self) -> tuple[Entry, ...]:
        """Return all entries, oldest first. Raises RecordUnusable."""
        if not os.path.lexists(self._directory):  # no instance has run here
            return ()
        with self._opened() as folder:
            return self._read(folder)

    def change(self, *, added: Collection[Entry] = (), removed: Collection[Entry] = ()) -> None:
        """Add and remove entries, as one change. Raises RecordUnusable; one that cannot be understood is replaced."""
        with self._opened(creates=True) as folder:
            self._lock(folder)
            fault = None
            try:
                before = self._read(folder)
            except RecordUnusable as error:
                before, fault = (), error
            new = [each for each in added if each not in before]
            after = (*(each for each in before if each not in removed), *new)[-MOST:]
            if after != before or fault:
                self._write(folder, after)
            if fault:
                raise fault

    @contextlib.contextmanager
    def _opened(self, *, creates: bool = False) -> Iterator[int]:
        """Open the directory: what is done below it then is not misled if somebody replaces it."""
        try:
            if creates:
                self._directory.mkdir(mode=0o755, exist_ok=True)
            folder = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                _require_safe(folder, self._directory)
                yield folder
            finally:
                os.close(folder)
        except OSError as error:
            raise RecordUnusable(reason(error)) from error

    @staticmethod
    def _lock(folder: int) -> None:
        """Keep other instances from writing until the directory is closed (man 2 flock)."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RecordUnusable("another instance is writing it, and does not end") from None
                time.sleep(PAUSE)
            else:
                return

    def _read(self, folder: int) -> tuple[Entry, ...]:
        try:
            file = os.open(self._name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except FileNotFoundError:
            return ()
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise RecordUnusable(f"{self.path} is not a regular file")
            _require_safe(file, self.path)
            text = os.read(file, MOST_BYTES + 1)
        finally:
            os.close(file)
        try:
            return _parse(text)
        except (ValueError, RecursionError) as error:
            raise RecordUnusable(f"{self.path} cannot be understood: {error}") from error

    def _write(self, folder: int, after: Collection[Entry]) -> None:
        """Replace the file as a whole: whoever reads it sees all of it, or the one before."""
        shown = [
            {"address": str(each.ip), "interface": each.interface, "port": each.port, "health_port": each.health_port}
            for each in after
        ]
        made = f"{self._name}.new"
        file = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
        with open(file, "w", encoding="ascii") as stream:  # noqa: PTH123 - a descriptor
            json.dump({"schema": SCHEMA, "set_up": shown}, stream)
        os.replace(made, self._name, src_dir_fd=folder, dst_dir_fd=folder)


def _require_safe(file: int, path: Path) -> None:
    """Raise RecordUnusable if another user can write a file or directory."""
    found = os.fstat(file)
    if found.st_uid != os.geteuid():
        raise RecordUnusable(f"{path} belongs to user {found.st_uid}, not to this one")
    if found.st_mode & _OF_OTHERS:
        raise RecordUnusable(f"others can write {path} (mode {stat.S_IMODE(found.st_mode):03o}): `chmod go-w {path}`")


def _parse(text: bytes) -> tuple[Entry, ...]:
    """Read the entries; raise ValueError unless all of it is what this program writes."""
    if len(text) > MOST_BYTES:
        raise ValueError("it is too large")
    match json.loads(text):
        case {"schema": schema, "set_up": [*shown]} if schema == SCHEMA:
            return tuple(map(_entry, shown[-MOST:]))
    raise ValueError(f"it is not of the form {SCHEMA}")


def _entry(shown: object) -> Entry:
    match shown:
        case {"address": str(address), "interface": str(interface), "port": int(port), "health_port": int(health_port)}:
            (ip,) = values.addresses(address)
            numbers = [number and values.port(str(number)) for number in (port, health_port)]
            return Entry(ip, values.interface(interface), *numbers)
    raise ValueError("an entry lacks a field, or it has another type")


def _namespace() -> int:
    """Return what identifies this network namespace: a number that the kernel never gives again, or else the inode."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as asked:
        return int.from_bytes(asked.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")
    return Path("/proc/self/ns/net").stat().st_ino
