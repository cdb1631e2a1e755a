"""A child process: its start, the files for its streams, word of its end, and what it leaves behind.

sh waits until the child executes the program. A file system that hangs, or a scanner of files, can put that off for
ever, and a signal that kills the child may have no effect meanwhile (state D). So a thread waits in sh, and the
main thread does not.
"""

import contextlib
import gc
import os
import signal
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final, Protocol

MEMORY_FILE: Final = "sidecar-command"  # what /proc calls the files for the streams of a command, after `memfd:`


class Word(str):
    """An argument that may have bytes which are not UTF-8, as the name of an interface: sh encodes it strictly."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", _errors: str = "") -> bytes:
        return super().encode(encoding, "surrogateescape")


class Started(Protocol):
    """A process that was started, as sh presents it."""

    pid: int
    exit_code: int | None

    def is_alive(self) -> tuple[bool, int | None]: ...

    def kill_group(self) -> None: ...

    def wait(self) -> int: ...


class Child(threading.Thread):
    """A command, from its start to its end."""

    def __init__(
        self,
        argv: Sequence[str],
        launch: Callable[[set[int]], Started],
        streams: Sequence[BinaryIO],
        wake: Callable[[], None],
    ) -> None:
        """`launch` starts it with these streams, without our open files; that may take for ever. Then comes `wake`."""
        super().__init__(daemon=True)
        self.argv = tuple(argv)
        self.running: Started | None = None
        self.error: Exception | None = None
        self.stdout = self.stderr = self.outcome = ""
        self._launch = launch
        self._streams = streams
        self._wake = wake
        self._is_launched = False
        self._is_killed = False

    def run(self) -> None:
        """Start the command; this runs in the thread."""
        try:
            held = open_files()
            try:
                self.running = self._launch(held - {0, 1, 2})
            except Exception:
                # After `kill` others open files, too: then the few that sh leaves behind stay.
                _tidy_up(set() if self._is_killed else open_files() - held, self._children())
                raise
        except Exception as error:  # noqa: BLE001 - sh raises errors of many kinds; the caller finds it in `error`
            self.error = error
        self._is_launched = True
        if self._is_killed:
            self.kill()  # the start went on after all
        self._wake()

    def is_over(self) -> bool:
        """Whether nothing of it is left: it has ended, or could not be started."""
        return self._is_launched and not (self.running and self.running.is_alive()[0])

    def kill(self) -> None:
        """Kill it, and what it has started."""
        self._is_killed = True
        with contextlib.suppress(ProcessLookupError):  # it ended by itself in this very moment
            if self.running:
                self.running.kill_group()
            else:
                for pid in self._children():
                    os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """Read what it wrote; if it has ended, put away what it took."""
        _, *outputs = self._streams
        self.stdout, self.stderr = map(_text, outputs)
        if not self.is_over():
            return
        if self.running:
            # It ends sh's own threads. The exit status is known by now, even if sh cannot start one more thread for
            # its last words.
            with contextlib.suppress(RuntimeError, ChildProcessError):
                self.running.wait()
        for stream in self._streams:
            stream.close()

    @property
    def exit_status(self) -> int | None:
        """The exit status, negative for the signal that ended it; None as long as it runs."""
        return self.running.exit_code if self.running else None

    @property
    def state(self) -> str:
        """Why it has not ended after it was killed, and where to look."""
        pids = {self.running.pid} if self.running else self._children()
        place = f"/proc/{min(pids)}" if pids else f"/proc/{os.getpid()}/task/{self.native_id}"
        return f"does not end, as it waits in the kernel, perhaps for a file system that hangs: see {place}/stack"

    def _children(self) -> set[int]:
        """Return the children of the thread: the command, or none."""
        try:
            return set(map(int, Path(f"/proc/self/task/{self.native_id}/children").read_text().split()))
        except OSError:  # the thread has ended, or a kernel without CONFIG_PROC_CHILDREN
            return set()


def outcome(exit_status: int | None, timeout: float) -> str:
    """Return in words how it ended."""
    if exit_status is None:
        return f"was killed after {timeout:.3g}s"
    return f"was ended by {_signal_name(-exit_status)}" if exit_status < 0 else f"exited with {exit_status}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def memory_file(content: str = "") -> BinaryIO:
    """Return an anonymous file with this content, to be read from its start."""
    file = os.fdopen(os.memfd_create(MEMORY_FILE), "w+b", buffering=0)
    if content:
        file.write(content.encode(errors="surrogateescape"))
        file.seek(0)
    return file


def _text(file: BinaryIO) -> str:
    """Return what was written up to now; bytes that are not UTF-8, as in an interface's name, are kept.

    A grandchild may still write, and shares the position with us: so read by size and offset, not to the end.
    """
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="surrogateescape")


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


def _tidy_up(descriptors: set[int], children: set[int]) -> None:
    """Undo what sh leaves behind when it fails to start a command: gc disabled, pipes, perhaps a child.

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


def close_all(descriptors: Iterable[int]) -> None:
    """Close these, in a child process."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def open_files() -> set[int]:
    """Return our open descriptors, as /proc lists them, except the one that reads the list."""
    listed = os.listdir("/proc/self/fd")  # noqa: PTH208 - quick, as it runs before every command
    return {int(descriptor) for descriptor in listed if os.path.lexists(f"/proc/self/fd/{descriptor}")}
