"""The files of klog's --log_dir and --log_file (klog_file.go; klog.go, `syncBuffer`).

klog holds its files open and buffers them. Here a file is opened for each line: lines are few, none is lost in a
crash, and a file that was moved or removed meanwhile is made anew.
"""

import contextlib
import os
import pwd
import stat
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from sidecar.settings import klog
from sidecar.settings.klog import Severity

MEGABYTE: Final = 1024 * 1024

#: Bytes; the size at which a file in --log_dir is followed by another one (klog_file.go, `MaxSize`).
LARGEST: Final = 1800 * MEGABYTE

#: O_NONBLOCK: a pipe that nobody empties must not stop the program. O_NOCTTY: nor may a terminal take it over.
_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class LogFile:
    """A file that lines are appended to, in the first directory that takes it."""

    def __init__(
        self,
        directories: Sequence[Path],
        name: Callable[[datetime], str],
        *,
        limit: int,
        has_header: bool,
        link: str = "",
    ) -> None:
        """`limit` in bytes: reached, the file of `name` at that time is started over. `link` is to point to it."""
        self._directories = directories
        self._new_name = name
        self._limit = limit
        self._has_header = has_header
        self._link = link
        self._name = ""
        self._path: str | None = None
        self._is_torn = False
        #: Why a directory before the one that took the last line did not take it.
        self.refused: OSError | None = None

    @property
    def directory(self) -> Path | None:
        """Where the last line went."""
        return Path(self._path).parent if self._path else None

    def append(self, line: str, time: datetime) -> None:
        """Write the line. Raises OSError if no directory takes it, or the disk is full."""
        data = line.encode(errors="backslashreplace")
        self._name = self._name or self._new_name(time)
        before = self._path
        descriptor = self._open()
        status = os.fstat(descriptor)
        is_new = self._path != before or (stat.S_ISREG(status.st_mode) and not status.st_size)
        if status.st_size + len(data) >= self._limit:
            os.close(descriptor)
            self._name = self._new_name(time)
            descriptor = self._open(os.O_TRUNC)
            is_new = True
        try:
            self._write(descriptor, (self._header(time) if is_new else b"") + data)
        except OSError as error:
            error.filename = self._path
            raise
        finally:
            os.close(descriptor)

    def _write(self, descriptor: int, data: bytes) -> None:
        if self._is_torn:  # the last line was cut by a full disk: this one is not to be taken for its end
            data = b"\n" + data
        while data:
            written = os.write(descriptor, data)
            self._is_torn = data[:written][-1:] != b"\n"
            data = data[written:]

    def _open(self, flags: int = 0) -> int:
        failure = OSError()
        self.refused = None
        for directory in self._directories:
            path = f"{str(directory).rstrip('/')}/{self._name}"  # a Path would let a slash at the end pass
            try:
                descriptor = os.open(path, _FLAGS | flags | (os.O_NOFOLLOW if self._link else 0), 0o666)
            except OSError as error:
                self.refused = failure = error
                continue
            if path != self._path or not os.fstat(descriptor).st_size:
                self._path = path
                self._make_link(directory)
            return descriptor
        raise failure

    def _make_link(self, directory: Path) -> None:
        if self._link:
            with contextlib.suppress(OSError):  # as in klog: it is a convenience
                (directory / self._link).unlink(missing_ok=True)
                (directory / self._link).symlink_to(self._name)

    def _header(self, time: datetime) -> bytes:
        if not self._has_header:
            return b""
        python = f"{sys.implementation.name} {sys.version.split()[0]}"
        header = klog.file_header(time, _host(), f"{python} for {sys.platform}/{os.uname().machine}")
        return header.encode(errors="backslashreplace")


def one_file(path: str, megabytes: int, *, has_header: bool) -> LogFile:
    """Return the file of --log_file; with 0 megabytes it has no limit (`CalculateMaxSize`)."""
    limit = megabytes * MEGABYTE or sys.maxsize
    directory, name = os.path.split(path)
    return LogFile([Path(directory)], lambda _: name, limit=limit, has_header=has_header)


def severity_file(program: str, directory: str, severity: Severity, *, has_header: bool) -> LogFile:
    """Return a severity's file in --log_dir, or else in the directory for temporary files.

    (`createLogDirs`; its name is made by `logName`.)
    """
    directories = [Path(name) for name in (directory, os.environ.get("TMPDIR") or "/tmp") if name]  # noqa: S108 - as Go

    def name(time: datetime) -> str:
        return f"{program}.{_host()}.{_user()}.log.{severity.name}.{time:%Y%m%d-%H%M%S}.{os.getpid()}"

    link = f"{program}.{severity.name}"
    return LogFile(directories, name, limit=LARGEST, has_header=has_header, link=link)


def _host() -> str:
    return os.uname().nodename.partition(".")[0]


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return "unknownuser"
