"""The gate to the node: every command this program starts goes through `Commands.run`, the one user of `sh`.

Each command gets a fixed environment, a process group of its own (Ctrl-C must not cut a change in half), and no
terminal. Input and output are anonymous files rather than pipes: nothing has to be read while it runs, output
of any size is complete, and a grandchild that keeps them open does not block us.

sh has timeouts of its own, but checks only every 0.1 s whether a command has ended. Here the kernel reports the end
(man 2 pidfd_open), and signal handlers write to a pipe: no thread, no timer, no polling.
"""

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final, Protocol, TypeAlias, cast

import sh
from loguru import logger

from sidecar.errors import CommandError, CommandTimeout, DeadlineReached, Interrupted, Stopped, pasteable
from sidecar.log import levels
from sidecar.node import child
from sidecar.node.programs import environment, find

GRACE: Final = 1.0  # seconds that a running command is given when the program is asked to stop. They usually need 0.01
WITHOUT_PIDFD: Final = 0.01  # seconds between two checks of a command on a kernel without pidfd_open
SHORTEST: Final = 0.5  # seconds that a command gets at least before a deadline, if that much is left
_ANY_STATUS: Final = tuple(
    range(256)
)  # sh raises no exception for any exit status: only the caller knows what it means


@dataclass(frozen=True, slots=True)
class Result:
    """What a command answered. Only the caller knows what the exit status means."""

    exit: int
    stdout: str
    stderr: str


#: What to run, and its standard input.
Command: TypeAlias = tuple[tuple[str, ...], str]


#: Called when a command has ended: with its arguments, its exit status (negative for the signal that ended it, None if
#: it was killed when its time was up), and the seconds it took.
OnEnd: TypeAlias = Callable[[tuple[str, ...], int | None, float], None]


class Run(Protocol):
    """Runs a command and returns what it answered; raises a SidecarError when there is no answer."""

    def __call__(self, *argv: str, stdin: str = "") -> Result: ...


class Commands:
    """Runs commands, each bounded in time, until asked to stop.

    Meant for the main thread; `stop` and `interrupt` may be called from a signal handler there.
    """

    def __init__(self, timeout: float, variables: Mapping[str, str] = os.environ) -> None:
        """`timeout` is what one command may take, in seconds; `variables` is the environment of this process."""
        self.on_end: OnEnd | None = None
        self._environment = environment(variables)
        self._programs: dict[str, sh.Command] = {}
        self._timeout = timeout
        self._deadline: float | None = None
        self._stopping_since: float | None = None
        self._interrupted = False
        self._told, self._tell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # Files that Python opens are closed in a child (PEP 446); those inherited at our start may not be.
        for descriptor in child.open_files() - {0, 1, 2}:
            os.set_inheritable(descriptor, False)  # noqa: FBT003 - takes no keyword

    def require(self, names: Sequence[str]) -> None:
        """Raise CommandMissing for the first of these that is not installed."""
        for name in names:
            find(name, self._environment["PATH"])

    def stop(self) -> None:
        """Let what runs finish within GRACE seconds, then kill it; start no other.

        After `finish_by` this has no effect: a cleanup is not stopped half-way.
        """
        if self._deadline is None:
            self._stopping_since = time.monotonic()
            os.write(self._tell, b"!")

    def interrupt(self) -> None:
        """Kill what runs and never start another."""
        self._interrupted = True
        os.write(self._tell, b"!")

    def finish_by(self, deadline: float) -> None:
        """Run commands again after `stop`, but none beyond `deadline` (of the monotonic clock)."""
        self._stopping_since = None
        self._deadline = deadline

    def run(self, *argv: str, stdin: str = "") -> Result:
        """Run the command to its end and return what it answered.

        Raises CommandMissing, CommandTimeout, DeadlineReached, Stopped, Interrupted, or CommandError where it
        could not be started or was killed by somebody else.
        """
        self._raise_if_told_to_end()
        started = time.monotonic()
        timeout = self._time_for(argv, stdin)
        try:
            files = contextlib.ExitStack()
            with files, child.memory_file(stdin) as standard_input:
                stdout, stderr = files.enter_context(child.memory_file()), files.enter_context(child.memory_file())
                running = _start(self._program(argv[0]), argv[1:], (standard_input, stdout, stderr))
                files = files.pop_all()
        except (OSError, sh.CommandNotFound, _StartError) as error:
            self._programs.clear()  # it may have been moved
            find(argv[0], self._environment["PATH"])
            raise CommandError(argv, stdin, "could not be started", str(error)) from error
        with files:
            exit_status = self._end(running, started + timeout)
            out, err = child.text(stdout), child.text(stderr)
        seconds = time.monotonic() - started
        outcome = _outcome(exit_status, timeout)
        _log(pasteable(argv, stdin), outcome, exit_status, seconds, {"stdout": out, "stderr": err})
        if exit_status is None or exit_status < 0:
            self._raise_if_told_to_end()
        if self.on_end:
            self.on_end(argv, exit_status, seconds)
        if exit_status is not None and exit_status >= 0:
            return Result(exit_status, out, err)
        raise (CommandTimeout if exit_status is None else CommandError)(argv, stdin, outcome, err)

    def _time_for(self, argv: tuple[str, ...], stdin: str) -> float:
        """Return the seconds that a command may take now."""
        if self._deadline is None:
            return self._timeout
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise DeadlineReached(argv, stdin)
        # Half of what is left: a command that hangs must not take the time that the others need.
        return min(self._timeout, max(left / 2, min(left, SHORTEST)))

    def _program(self, name: str) -> sh.Command:
        """Return the program, with all options that are the same for each call.

        sh need not close our descriptors in the child one by one: they close by themselves (see __init__).
        """
        if name not in self._programs:
            self._programs[name] = sh.Command(find(name, self._environment["PATH"])).bake(
                _env=self._environment,
                _new_group=True,
                _close_fds=False,
                _bg=True,
                _bg_exc=False,
                _ok_code=_ANY_STATUS,
                _return_cmd=True,
            )
        return self._programs[name]

    def _raise_if_told_to_end(self) -> None:
        if self._interrupted:
            raise Interrupted
        if self._stopping_since is not None:
            raise Stopped

    def _end(self, running: sh.RunningCommand, deadline: float) -> int | None:
        """Return the exit status, negative for the signal that ended it; None if its time was up, and it was killed."""
        with child.pidfd(running.process.pid) as pidfd:
            ended = self._await(running, pidfd, deadline)
            if not ended:
                _kill(running)
                # A process that waits inside the kernel (state D) does not die: it is left alone.
                self._await(running, pidfd, time.monotonic() + GRACE, killed=True)
        if not running.is_alive():
            # This ends sh's own threads. The exit status is known by now, so neither an exception for it nor sh's
            # failure to start one more thread matters.
            with contextlib.suppress(sh.ErrorReturnCode, RuntimeError):
                running.wait()
        return running.process.exit_code if ended else None

    def _await(self, running: sh.RunningCommand, pidfd: int | None, deadline: float, *, killed: bool = False) -> bool:
        """Wait for the command to end: until `deadline`, GRACE once told to stop, no longer once interrupted."""
        poll = select.poll()
        poll.register(self._told, select.POLLIN)
        if pidfd is not None:
            poll.register(pidfd, select.POLLIN)
        while running.is_alive():
            if self._stopping_since is not None and not killed:
                deadline = min(deadline, self._stopping_since + GRACE)
            left = deadline - time.monotonic()
            if left <= 0 or self._interrupted:
                return False
            ready = poll.poll((left if pidfd is not None else min(left, WITHOUT_PIDFD)) * 1000)
            if any(descriptor == self._told for descriptor, _ in ready):
                os.read(self._told, 1024)
        return True


class _StartError(Exception):
    """sh could not start a command; the text says why."""


def _start(
    command: sh.Command, arguments: Sequence[str], files: tuple[BinaryIO, BinaryIO, BinaryIO]
) -> sh.RunningCommand:
    held, children = child.open_files(), child.children()
    try:
        running = cast("sh.RunningCommand", command(*arguments, _in=files[0], _out=files[1], _err=files[2]))
    except Exception as error:
        # sh raises many kinds of exceptions here: ForkException, CommandNotFound, OSError, RuntimeError for a thread,
        # ValueError for a child that died early.
        child.tidy_up(child.open_files() - held, child.children() - children)
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise _StartError(reason[0]) from error
    return running


def _outcome(exit_status: int | None, timeout: float) -> str:
    if exit_status is None:
        return f"was killed after {timeout:.3g}s"
    return f"was ended by {_signal_name(-exit_status)}" if exit_status < 0 else f"exited with {exit_status}"


def _log(command: str, outcome: str, exit_status: int | None, seconds: float, output: dict[str, str]) -> None:
    facts = logger.bind(command=command, exit=exit_status, seconds=round(seconds, 6))
    facts.log(levels.COMMAND, f"`{command}` {outcome} in {seconds * 1000:.1f} ms")
    for name, text in output.items():
        if text:
            facts.bind(**{name: text}).log(levels.OUTPUT, f"`{command}` to {name}: {text}")


def _kill(running: sh.RunningCommand) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended by itself in this very moment
        running.process.kill_group()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
