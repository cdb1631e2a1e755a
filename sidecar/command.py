"""The gate to the node: every command this program starts goes through `Commands.run`, the one user of `sh`.

Each command gets a fixed environment, a process group of its own (Ctrl-C must not cut a change in half), and no
terminal. Input and output are anonymous files rather than pipes: nothing has to be pumped while it runs, output
of any size arrives whole, and a grandchild that keeps them open holds nobody up.
"""

import contextlib
import os
import select
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final, Protocol

import sh

from sidecar.errors import CommandError, CommandMissing, CommandTimeout, DeadlineReached, Interrupted, Stopped

#: Debian keeps `ip` and `iptables` in /usr/sbin, which an ordinary user's PATH lacks.
SEARCH_PATH: Final = ":".join(filter(None, (os.environ.get("PATH"), "/usr/sbin:/usr/bin:/sbin:/bin")))

#: LC_ALL: messages in English whatever the node speaks. The others are iptables' own (man iptables).
ENVIRONMENT: Final = {
    "PATH": SEARCH_PATH,
    "LC_ALL": "C",
    **{name: os.environ[name] for name in ("XTABLES_LOCKFILE", "XTABLES_LIBDIR") if name in os.environ},
}

#: Seconds that a running command is given when the program is asked to stop. They usually need 0.01.
GRACE: Final = 1.0

#: Seconds that a command is given before a deadline, if as much is left at all.
SHORTEST: Final = 0.5

#: No exit status is an exception to sh: what each means, only the caller knows.
_ANY_STATUS: Final = tuple(range(256))

#: What `apt-get install` calls the package that holds a command.
_PACKAGES: Final = {"ip": "iproute2"}


@dataclass(frozen=True, slots=True)
class Result:
    """What a command answered. The exit status is data: what it means, its caller knows."""

    exit: int
    stdout: str
    stderr: str
    seconds: float


class Run(Protocol):
    """Runs a command and returns what it answered; raises a SidecarError when there is no answer."""

    def __call__(self, *argv: str, stdin: str = "") -> Result: ...


class Commands:
    """Runs commands one after the other, each bounded in time, until asked to stop.

    Meant for the main thread; `stop` and `interrupt` may be called from a signal handler there.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._deadline: float | None = None
        self._stopping = False
        self._interrupted = False
        self._running: sh.RunningCommand | None = None

    def require(self, names: Sequence[str]) -> None:
        """Raise CommandMissing for the first of these that is not installed."""
        for name in names:
            _find(name)

    def stop(self) -> None:
        """Let the running command finish within GRACE seconds, then kill it; start no other."""
        self._stopping = True
        if self._running is not None:
            timer = threading.Timer(GRACE, self._abandon, (self._running,))
            timer.daemon = True
            timer.start()

    def interrupt(self) -> None:
        """Kill the running command and never start another."""
        self._interrupted = True
        if self._running is not None:
            _kill(self._running)

    def _abandon(self, running: sh.RunningCommand) -> None:
        if self._running is running:
            _kill(running)

    def resume(self, deadline: float) -> None:
        """Run commands again after `stop`, but none beyond `deadline` (of the monotonic clock)."""
        self._stopping = False
        self._deadline = deadline

    def run(self, *argv: str, stdin: str = "") -> Result:
        """Run the command to its end and return what it answered.

        Raises CommandMissing, CommandTimeout, DeadlineReached, Stopped, Interrupted, or CommandError where it
        could not be started or was killed by somebody else.
        """
        self._raise_if_told_to_end()
        timeout = self._timeout
        if self._deadline is not None:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise DeadlineReached(argv, stdin)
            # Half of what is left: a command that hangs must not take the time that the others need.
            timeout = min(timeout, max(left / 2, min(left, SHORTEST)))
        program = _find(argv[0])
        with _memory_file(stdin) as standard_input, _memory_file() as stdout, _memory_file() as stderr:
            started = time.monotonic()
            try:
                exit_status = self._run(program, argv[1:], timeout, (standard_input, stdout, stderr))
            except _TimeUp as error:
                raise CommandTimeout(argv, stdin, f"was killed after {timeout:.3g}s", _text(stderr)) from error
            except (sh.ForkException, OSError) as error:
                reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
                raise CommandError(argv, stdin, "could not be started", reason[0]) from error
            seconds = time.monotonic() - started
            if exit_status < 0:
                self._raise_if_told_to_end()
                outcome = f"was ended by {_signal_name(-exit_status)}"
                raise CommandError(argv, stdin, outcome, _text(stderr))
            return Result(exit_status, _text(stdout), _text(stderr), seconds)

    def _raise_if_told_to_end(self) -> None:
        if self._interrupted:
            raise Interrupted
        if self._stopping:
            raise Stopped

    def _run(
        self, program: str, arguments: Sequence[str], timeout: float, files: tuple[BinaryIO, BinaryIO, BinaryIO]
    ) -> int:
        """Return the exit status, negative for the signal that ended it.

        sh offers `_timeout` and `wait(timeout=)`, but both look only every 0.1 s. Here the end is seen at once:
        the child alone holds the writing end of a pipe, and the kernel closes it when the child ends.
        """
        alive, held_by_child = os.pipe()
        try:
            os.set_inheritable(held_by_child, True)  # noqa: FBT003 - takes no keyword
            try:
                self._running = sh.Command(program)(
                    *arguments,
                    _in=files[0],
                    _out=files[1],
                    _err=files[2],
                    _env=ENVIRONMENT,
                    _pass_fds={held_by_child},
                    _new_group=True,
                    _bg=True,
                    _bg_exc=False,
                    _ok_code=_ANY_STATUS,
                    _return_cmd=True,
                )
            finally:
                os.close(held_by_child)
            return self._await(self._running, alive, timeout)
        finally:
            self._running = None
            os.close(alive)

    def _await(self, running: sh.RunningCommand, alive: int, timeout: float) -> int:
        if select.select([alive], [], [], timeout)[0] or not running.is_alive():
            return _reap(running)
        _kill(running)
        # A process that waits inside the kernel (state D) does not die: it is left alone, not waited for.
        if select.select([alive], [], [], GRACE)[0]:
            _reap(running)
        raise _TimeUp


class _TimeUp(Exception):
    """The command had to be killed."""


def _find(name: str) -> str:
    path = shutil.which(name, path=SEARCH_PATH)
    if path is None:
        raise CommandMissing(name, _PACKAGES.get(name, "iptables"))
    return path


def _memory_file(content: str = "") -> BinaryIO:
    file = os.fdopen(os.memfd_create("sidecar"), "w+b", buffering=0)
    if content:
        file.write(content.encode())
        file.seek(0)
    return file


def _text(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode(errors="backslashreplace")


def _reap(running: sh.RunningCommand) -> int:
    try:
        running.wait()
    except sh.SignalException as error:
        return error.exit_code
    return running.exit_code


def _kill(running: sh.RunningCommand) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended by itself in this very moment
        running.process.kill_group()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
