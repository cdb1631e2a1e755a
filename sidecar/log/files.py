"""Writes the files of klog's --log_dir and --log_file (klog_file.go; klog.go, `syncBuffer`).

klog keeps its files open and buffers them. This module opens the file for each line: lines are few, a crash loses none,
and a file that was moved or removed meanwhile is created again.
"""

import contextlib
import os
import pwd
import select
import stat
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from sidecar.log.outlet import LONGEST_LOOK, has_event
from sidecar.settings import klog
from sidecar.settings.klog import Severity

MEGABYTE: Final = 1024 * 1024

LARGEST: Final = 1800 * MEGABYTE  # bytes; at this size a new file in --log_dir is started (klog_file.go, `MaxSize`)

#: O_NONBLOCK: a pipe that nobody reads must not block the program. O_NOCTTY: no terminal may take control of it.
_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class LogFile:
    """A file to append lines to, in the first directory that accepts it."""

    def __init__(
        self,
        directories: Sequence[Path],
        name: Callable[[datetime], str],
        *,
        limit: int,
        has_header: bool,
        link: str = "",
    ) -> None:
        """Start a new file, with the `name` for that time, at `limit` bytes. The symlink `link` points to the file."""
        self._directories = directories
        self._new_name = name
        self._limit = limit
        self._has_header = has_header
        self._link = link
        self._name = ""
        self._path: str | None = None
        self._is_torn = False
        #: Why an earlier directory did not accept the last line.
        self.refused: OSError | None = None

    @property
    def instead(self) -> str:
        """The directory that the last line went to."""
        return str(Path(self._path).parent) if self._path else ""

    def append(self, line: str, time: datetime) -> None:
        """Write the line. Raises OSError if no directory accepts it, or the disk is full."""
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
        if self._is_torn:  # a full disk cut the last line: this one must not look like its end
            data = b"\n" + data
        while data:
            try:
                written = os.write(descriptor, data)
            except BlockingIOError:  # a full pipe
                if not has_event(descriptor, select.POLLOUT, LONGEST_LOOK):
                    raise
                continue
            self._is_torn = data[:written][-1:] != b"\n"
            data = data[written:]

    def _open(self, flags: int = 0) -> int:
        failure = OSError()
        self.refused = None
        for directory in self._directories:
            path = f"{str(directory).rstrip('/')}/{self._name}"  # a Path would accept a slash at the end
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
            with contextlib.suppress(OSError):  # as in klog: the link is only a convenience
                (directory / self._link).unlink(missing_ok=True)
                (directory / self._link).symlink_to(self._name)

    def _header(self, time: datetime) -> bytes:
        if not self._has_header:
            return b""
        python = f"{sys.implementation.name} {sys.version.split()[0]}"
        header = klog.file_header(time, _host(), f"{python} for {sys.platform}/{os.uname().machine}")
        return header.encode(errors="backslashreplace")


def one_file(path: str, megabytes: int, *, has_header: bool) -> LogFile:
    """Return the file of --log_file; 0 megabytes means no limit (`CalculateMaxSize`)."""
    limit = megabytes * MEGABYTE or sys.maxsize
    directory, name = os.path.split(path)
    return LogFile([Path(directory)], lambda _: name, limit=limit, has_header=has_header)


def severity_file(program: str, directory: str, severity: Severity, *, has_header: bool) -> LogFile:
    """Return a severity's file in --log_dir, or else in the directory for temporary files.

    (`createLogDirs`; the name follows `logName`.)
    """
    process = os.getpid()  # not that of the child which writes the file
    directories = [Path(name) for name in (directory, os.environ.get("TMPDIR") or "/tmp") if name]  # noqa: S108 - as Go

    def name(time: datetime) -> str:
        return f"{program}.{_host()}.{_user()}.log.{severity.name}.{time:%Y%m%d-%H%M%S}.{process}"

    link = f"{program}.{severity.name}"
    return LogFile(directories, name, limit=LARGEST, has_header=has_header, link=link)


def _host() -> str:
    return os.uname().nodename.partition(".")[0]


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return "unknownuser"
