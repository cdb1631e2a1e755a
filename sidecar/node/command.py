"""The gate to the node: every command this program starts goes through `Commands.run`, the one user of `sh`.

Each command gets a fixed environment, a process group of its own (Ctrl-C must not cut a change in half), and no
terminal. Input and output are anonymous files rather than pipes: nothing has to be read while it runs, output
of any size is complete, and a grandchild that keeps them open does not block us.

sh can bound a command's time itself, but looks only every 0.1 s whether it has ended, and waits without a bound until
the child executes the program. So each start runs in a thread (child.py). Its end, a signal, and the end of the command
(man 2 pidfd_open) wake up the main thread: no timer, no polling.
"""

import contextlib
import os
import select
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, Final, Protocol, TypeAlias, cast

import sh
from loguru import logger

from sidecar.errors import (
    CommandError,
    CommandMissing,
    CommandStuck,
    CommandTimeout,
    DeadlineReached,
    Interrupted,
    SidecarError,
    Stopped,
    pasteable,
)
from sidecar.log import levels
from sidecar.node import child, programs
from sidecar.node.child import Child, Started
from sidecar.node.programs import environment, find
from sidecar.node.signals import signal_pipe

GRACE: Final = 1.0  # seconds that a running command is given when the program is asked to stop. They usually need 0.01
WITHOUT_PIDFD: Final = 0.01  # seconds between two checks of a command on a kernel without pidfd_open
SHORTEST: Final = 0.5  # seconds that a command gets at least before a deadline, if that much is left
_ANY_STATUS: Final = tuple(range(256))  # sh raises no exception for any of them: only the caller knows what it means


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
    """Runs commands, one at a time, each bounded in time, until asked to stop.

    Meant for the main thread; `stop`, `interrupt` and `reap` may be called from a signal handler there.
    """

    def __init__(self, timeout: float, variables: Mapping[str, str] = os.environ, *, grace: float = GRACE) -> None:
        """`timeout` is what one command may take, in seconds; `variables` is the environment of this process.

        `grace` is how long to wait for the end of one that was killed.
        """
        self.on_end: OnEnd | None = None
        #: Readable once a signal came, or a command was started: for `poll`, after which it is to be read empty.
        self.wakeup_fd, self._wakeup_end = signal_pipe()
        self._environment = environment(variables)
        self._programs: dict[str, sh.Command] = {}
        self._timeout = timeout
        self._grace = grace
        self._deadline: float | None = None
        self._stopping_since: float | None = None
        self._interrupted = False
        child.open_files()  # raises OSError without /proc, which each start needs
        # Python 3.12 and later warn where one of several threads forks, as the child could wait for a lock that another
        # one held; but the child of sh takes no lock before it executes the program.
        warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
        self._is_running = False
        self._has_orphans = False
        self._stuck: Child | None = None

    def require(self, names: Sequence[str]) -> None:
        """Raise CommandMissing for the first of these that is not installed; NodeError if that cannot be found out."""
        programs.require(names, self._environment["PATH"], self._timeout)

    def stop(self) -> None:
        """Let what runs finish within GRACE seconds, then kill it; start no other.

        After `finish_by` this has no effect: a cleanup is not stopped half-way.
        """
        if self._deadline is None:
            self._stopping_since = time.monotonic()
            self._wake()

    def interrupt(self) -> None:
        """Kill what runs and never start another."""
        self._interrupted = True
        self._wake()

    def finish_by(self, deadline: float) -> None:
        """Run commands again after `stop`, but none beyond `deadline` (of the monotonic clock)."""
        self._deadline = deadline  # first: from here on `stop`, which may come at any moment, has no effect
        self._stopping_since = None

    def reap(self) -> None:
        """Reap children that are not commands, now or when the running command ends.

        Orphans become children of the first process of a container (man 7 pid_namespaces).
        """
        self._has_orphans = self._is_running  # the status of a command is for sh to read
        with contextlib.suppress(ChildProcessError):
            while not self._is_running and os.waitpid(-1, os.WNOHANG)[0]:
                pass

    def run(self, *argv: str, stdin: str = "") -> Result:
        """Run the command to its end and return what it answered.

        Raises CommandMissing, CommandTimeout, CommandStuck, DeadlineReached, Stopped, Interrupted, or CommandError
        where it could not be started or was killed by somebody else.
        """
        self._raise_if_told_to_end()
        self._raise_if_stuck(argv, stdin)
        started, timeout = time.monotonic(), self._time_for(argv, stdin)
        self._is_running = True
        try:
            process = self._start(argv, stdin)
            ended = self._end(process, started + timeout)
        finally:
            self._is_running = False
            if self._has_orphans:
                self.reap()
        if ended and process.error:
            raise _not_started(argv, stdin, process.error) from process.error
        exit_status = process.exit_status if ended else None
        seconds = time.monotonic() - started
        outcome = child.outcome(exit_status, timeout) + (f" and {process.state}" if self._stuck else "")
        process.outcome = outcome
        _log(
            pasteable(argv, stdin), outcome, exit_status, seconds, {"stdout": process.stdout, "stderr": process.stderr}
        )
        if exit_status is None or exit_status < 0:
            self._raise_if_told_to_end()
        if self.on_end:
            self.on_end(argv, exit_status, seconds)
        if exit_status is not None and exit_status >= 0:
            return Result(exit_status, process.stdout, process.stderr)
        raise (CommandTimeout if exit_status is None else CommandError)(argv, stdin, outcome, process.stderr)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it is readable
            os.write(self._wakeup_end, b"!")

    def _time_for(self, argv: tuple[str, ...], stdin: str) -> float:
        """Return the seconds that a command may take now."""
        if self._deadline is None:
            return self._timeout
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise DeadlineReached(argv, stdin)
        # Half of what is left: a command that hangs must not take the time that the others need.
        return min(self._timeout, max(left / 2, min(left, SHORTEST)))

    def _raise_if_told_to_end(self) -> None:
        if self._interrupted:
            raise Interrupted
        if self._stopping_since is not None:
            raise Stopped

    def _raise_if_stuck(self, argv: tuple[str, ...], stdin: str) -> None:
        """Raise CommandStuck as long as a command that was killed has not ended: the next one would join it."""
        if not self._stuck:
            return
        if not self._stuck.is_over():
            raise CommandStuck(argv, stdin, f"was not started: `{pasteable(self._stuck.argv)}` {self._stuck.outcome}")
        self._stuck.close()
        self._stuck = None

    def _start(self, argv: tuple[str, ...], stdin: str) -> Child:
        """Begin to start a command. Raises CommandError if that fails at once."""
        try:
            with contextlib.ExitStack() as files:
                streams = [files.enter_context(child.memory_file(text)) for text in (stdin, "", "")]
                process = Child(argv, partial(self._launch, argv, streams), streams, self._wake)
                process.start()
                files.pop_all()
        except (OSError, RuntimeError) as error:
            raise _not_started(argv, stdin, error) from error
        return process

    def _launch(self, argv: tuple[str, ...], streams: Sequence[BinaryIO], held: Collection[int]) -> Started:
        """Start a command, and wait until the child executes it. Raises CommandMissing, and what sh raises.

        The child closes what it inherits before it executes the program: if it hangs there, it must not hold locks. sh
        would list the descriptors for that, in the child; to name them takes a twentieth of a command's time less.
        """
        name, arguments = argv[0], list(map(child.Word, argv[1:]))  # in a list, sh takes them as they are
        stdin, stdout, stderr = streams
        begin = partial(child.close_all, held)
        try:
            program = self._program(name)(arguments, _in=stdin, _out=stdout, _err=stderr, _preexec_fn=begin)
            running = cast("sh.RunningCommand", program)
        except Exception:
            self._programs.clear()  # it may have been moved
            find(name, self._environment["PATH"])
            raise
        return cast("Started", running.process)

    def _program(self, name: str) -> sh.Command:
        """Return the program, with all options that are the same for each call."""
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

    def _end(self, process: Child, deadline: float) -> bool:
        """Return whether the command ended by itself. If its time was up, kill it."""
        ended = self._await(process, deadline)
        if not ended:
            process.kill()
            # A process that waits inside the kernel (state D) does not die: it is left alone.
            if not self._await(process, time.monotonic() + self._grace, killed=True):
                self._stuck = process
        process.close()
        return ended

    def _await(self, process: Child, deadline: float, *, killed: bool = False) -> bool:
        """Wait for the command to end: until `deadline`, GRACE once asked to stop, no longer once interrupted."""
        poll = select.poll()
        poll.register(self.wakeup_fd, select.POLLIN)
        with contextlib.ExitStack() as stack:
            end: int | None = None
            while not process.is_over():
                if self._stopping_since is not None and not killed:
                    deadline = min(deadline, self._stopping_since + GRACE)
                left = deadline - time.monotonic()
                if left <= 0 or (self._interrupted and not killed):
                    return False
                if end is None and process.running:
                    end = stack.enter_context(child.pidfd(process.running.pid))
                    if end is not None:
                        poll.register(end, select.POLLIN)
                wakes_up = process.running is None or end is not None
                ready = poll.poll((left if wakes_up else min(left, WITHOUT_PIDFD)) * 1000)
                if any(descriptor == self.wakeup_fd for descriptor, _ in ready):
                    os.read(self.wakeup_fd, 1024)
        return True


def _not_started(argv: Sequence[str], stdin: str, error: Exception) -> SidecarError:
    if isinstance(error, CommandMissing):
        return error
    # What sh raises is of many kinds: ForkException, CommandNotFound, OSError, RuntimeError for a thread, ValueError
    # for a child that died early. The last line says it.
    reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
    return CommandError(argv, stdin, "could not be started", reason[0])


def _log(command: str, outcome: str, exit_status: int | None, seconds: float, output: dict[str, str]) -> None:
    facts = logger.bind(command=command, exit=exit_status, seconds=round(seconds, 6))
    facts.log(levels.COMMAND, f"`{command}` {outcome} in {seconds * 1000:.1f} ms")
    for name, text in output.items():
        if text:
            facts.bind(**{name: text}).log(levels.OUTPUT, f"`{command}` to {name}: {text}")
