"""The gate to the node, with real processes: none of these needs a privilege or touches anything."""

import contextlib
import gc
import os
import resource
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import pytest
from pytest_mock import MockerFixture

from sidecar.daemon.wakeup import Wakeup
from sidecar.errors import (
    CommandError,
    CommandMissing,
    CommandStuck,
    CommandTimeout,
    DeadlineReached,
    Interrupted,
    Stopped,
)
from sidecar.node import command
from sidecar.node.child import Child
from sidecar.node.command import Commands
from support.waiting import FOREVER, HANG, no_hang, until

if TYPE_CHECKING:
    from _typeshed import TraceFunction


@pytest.fixture
def commands() -> Commands:
    return Commands(timeout=10.0)


def test_status_and_both_streams_come_back_apart(commands: Commands) -> None:
    result = commands.run("sh", "-c", "echo out; echo err >&2; exit 7")
    assert (result.exit, result.stdout, result.stderr) == (7, "out\n", "err\n")


def test_input_arrives_and_without_any_the_command_sees_its_end(commands: Commands) -> None:
    assert commands.run("cat", stdin="two\nlines\n").stdout == "two\nlines\n"
    assert commands.run("cat").stdout == ""


def test_output_of_any_size_arrives_whole(commands: Commands) -> None:
    assert len(commands.run("head", "-c", "20000000", "/dev/zero").stdout) == 20_000_000


def test_bytes_that_are_no_text_do_not_break_anything(commands: Commands) -> None:
    assert commands.run("printf", r"a\377b").stdout == "a\udcffb"
    assert commands.run("printf", "%s", "a\udcffb").stdout == "a\udcffb"
    assert commands.run("cat", stdin="a\udcffb").stdout == "a\udcffb"


def test_the_environment_is_fixed(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("SECRET", "x")
    lines = commands.run("env").stdout.splitlines()
    assert "LC_ALL=C" in lines
    assert not [line for line in lines if line.startswith("SECRET")]


def test_nothing_warns_that_a_thread_forks() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        Commands(timeout=10.0).run("true")
        # As Python 3.12 and later do, where this runs on an older one.
        text = "This process (pid=1) is multi-threaded, use of fork() may lead to deadlocks in the child."
        warnings.warn(text, DeprecationWarning, stacklevel=1)
    assert not told


def test_a_command_has_a_process_group_of_its_own(commands: Commands) -> None:
    stat = commands.run("cat", "/proc/self/stat").stdout
    assert int(stat.rsplit(")", 1)[1].split()[2]) != os.getpgrp()


def test_a_command_inherits_no_descriptor_of_ours() -> None:
    ours = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(ours, True)  # noqa: FBT003 - takes no keyword; as one that whoever started us left open
    try:
        commands = Commands(timeout=10.0)
        open_files = commands.run("ls", "-l", "/proc/self/fd").stdout
        assert "/dev/null" not in open_files
        assert open_files.count("->") == 4  # its three, and the folder that ls reads
    finally:
        os.close(ours)


def test_a_hung_command_is_killed_in_time_and_what_it_said_is_kept() -> None:
    with no_hang(), pytest.raises(CommandTimeout, match=r"`sh -c .*` was killed after 1s: thinking") as caught:
        Commands(timeout=1.0).run("sh", "-c", f"echo thinking >&2; exec sleep {FOREVER}")
    assert caught.value.transient


def test_a_hung_grandchild_is_killed_too(tmp_path: Path) -> None:
    script = tmp_path / "wrapper"
    script.write_text(f"#!/bin/sh\nsleep {FOREVER} &\necho $! > {tmp_path}/pid\nwait\n")
    script.chmod(0o755)
    with no_hang(), pytest.raises(CommandTimeout):
        Commands(timeout=1.0).run(str(script))
    grandchild = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    until(lambda: not grandchild.exists() or ") Z " in grandchild.read_text())


def test_a_grandchild_that_keeps_everything_open_holds_nobody_up() -> None:
    ended = "trap 'exit 0' TERM; while :; do sleep 0.1; done"
    result = Commands(timeout=FOREVER).run("sh", "-c", f'setsid sh -c "{ended}" & echo $!; exit 3')
    assert result.exit == 3
    os.kill(int(result.stdout), signal.SIGTERM)


def test_death_by_a_signal_is_a_failure(commands: Commands) -> None:
    with pytest.raises(CommandError, match="was ended by SIGSEGV"):
        commands.run("sh", "-c", "kill -SEGV $$")


def test_a_missing_command_names_its_package(commands: Commands, mocker: MockerFixture) -> None:
    mocker.patch("shutil.which", return_value=None)
    with pytest.raises(CommandMissing, match="ip is not installed: apt-get install iproute2"):
        commands.run("ip", "address")
    with pytest.raises(CommandMissing, match="ip6tables-nft is not installed: apt-get install iptables"):
        commands.require(["ip6tables-nft"])


def test_a_file_that_cannot_be_executed_is_a_failure(commands: Commands, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("no program")
    broken.chmod(0o755)
    with pytest.raises(CommandError, match=r"could not be started: .*Exec format error"):
        commands.run(str(broken))


@pytest.mark.parametrize(
    ("function", "error"),
    [
        ("os.fork", BlockingIOError(11, "Resource temporarily unavailable")),
        ("os.memfd_create", OSError(24, "Too many open files")),
        ("threading.Thread.start", RuntimeError("can't start new thread")),
    ],
)
def test_a_system_at_its_limits_is_a_failure_and_nothing_is_left_over(
    commands: Commands, mocker: MockerFixture, function: str, error: Exception
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    mocker.patch(function, side_effect=error)
    for _ in range(5):
        with pytest.raises(CommandError, match=f"could not be started: .*{error.args[-1]}"):
            commands.run("true")
    mocker.stopall()
    assert len(os.listdir("/proc/self/fd")) == before
    assert gc.isenabled()
    assert commands.run("true").exit == 0


def test_a_pipe_in_the_place_of_a_program_is_a_failure(commands: Commands, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ip", 0o755)
    with pytest.raises(CommandError, match="could not be started"):
        commands.run(str(tmp_path / "ip"))


def test_a_program_that_closes_what_it_inherits_is_bounded_all_the_same() -> None:
    with no_hang(), pytest.raises(CommandTimeout):
        Commands(timeout=0.5).run("sh", "-c", f"exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-; sleep {FOREVER}")


def test_a_stop_while_a_command_is_being_started_is_not_lost(commands: Commands, mocker: MockerFixture) -> None:
    launch = Child.run

    def stopped_meanwhile(process: Child) -> None:
        commands.stop()
        launch(process)

    mocker.patch.object(Child, "run", stopped_meanwhile)
    with no_hang(), pytest.raises(Stopped):
        commands.run("sleep", str(FOREVER))


def test_after_a_stop_nothing_is_started(commands: Commands) -> None:
    commands.stop()
    with pytest.raises(Stopped):
        commands.run("true")
    commands.finish_by(time.monotonic() + 10)
    assert commands.run("true").exit == 0


def test_once_something_is_to_be_finished_a_stop_has_no_effect(commands: Commands) -> None:
    commands.finish_by(time.monotonic() + 10)
    commands.stop()
    assert commands.run("true").exit == 0


def test_a_stop_lets_a_quick_command_finish(commands: Commands, mocker: MockerFixture, tmp_path: Path) -> None:
    mocker.patch.object(command, "GRACE", HANG)
    threading.Thread(target=stop_once, args=(commands, tmp_path / "runs")).start()
    script = f"touch {tmp_path}/runs; while [ ! -e {tmp_path}/runs.stopped ]; do sleep 0.01; done; echo finished"
    assert commands.run("sh", "-c", script).stdout == "finished\n"


def stop_once(commands: Commands, file: Path) -> None:
    """Stop the commands once this file is there, and say so by another one."""
    until(file.exists)
    commands.stop()
    file.with_suffix(".stopped").touch()


def test_a_stop_ends_a_hung_command(commands: Commands) -> None:
    threading.Timer(0.1, commands.stop).start()
    with no_hang(), pytest.raises(Stopped):
        commands.run("sleep", str(FOREVER))


def run_until_it_is_refused(commands: Commands) -> None:
    while True:
        with pytest.raises(CommandTimeout):
            commands.run("sleep", str(FOREVER))


def test_an_interrupt_kills_the_running_command_and_no_other_is_started(commands: Commands) -> None:
    threading.Timer(0.1, commands.interrupt).start()
    with no_hang(), pytest.raises(Interrupted):
        commands.run("sleep", str(FOREVER))
    commands.finish_by(time.monotonic() + 10)
    with pytest.raises(Interrupted):
        commands.run("true")


def test_with_a_deadline_hung_commands_leave_time_for_others() -> None:
    commands = Commands(timeout=FOREVER)
    commands.finish_by(time.monotonic() + 4)
    with pytest.raises(CommandTimeout):
        commands.run("sleep", str(FOREVER))
    assert commands.run("true").exit == 0
    with no_hang(), pytest.raises(DeadlineReached, match=f"no time left to run `sleep {FOREVER}`"):
        run_until_it_is_refused(commands)


def test_nothing_is_left_over(commands: Commands) -> None:
    def held() -> tuple[int, int, str]:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
        return len(os.listdir("/proc/self/fd")), threading.active_count(), children

    before = held()
    for _ in range(200):
        commands.run("true")
    until(lambda: held() == before, held)  # sh's threads of a command look once a second whether they are needed


@pytest.mark.parametrize("failing", range(4))
def test_a_thread_that_cannot_be_started_leaves_no_command_running(
    commands: Commands, mocker: MockerFixture, tmp_path: Path, failing: int
) -> None:
    """sh starts threads after it has started the command."""
    start, calls = threading.Thread.start, iter(range(100))

    def sometimes(thread: threading.Thread) -> None:
        if next(calls) == failing:
            raise RuntimeError("can't start new thread")
        start(thread)

    mocker.patch("threading.Thread.start", sometimes)
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    with contextlib.suppress(CommandError):
        commands.run("sh", "-c", f"sleep 0.2; touch {tmp_path}/done")
        assert (tmp_path / "done").exists()
        return
    until(lambda: not children.read_text().split())
    assert not (tmp_path / "done").exists()


def test_without_pidfds_it_looks_often(commands: Commands, mocker: MockerFixture) -> None:
    mocker.patch("os.pidfd_open", side_effect=OSError(38, "Function not implemented"))
    assert commands.run("sh", "-c", "sleep 0.1; exit 3").exit == 3
    with no_hang(), pytest.raises(CommandTimeout):
        Commands(timeout=0.2).run("sleep", str(FOREVER))
    threading.Timer(0.1, commands.interrupt).start()
    with no_hang(), pytest.raises(Interrupted):
        commands.run("sleep", str(FOREVER))


def test_while_a_killed_command_has_not_ended_no_other_is_started(mocker: MockerFixture, tmp_path: Path) -> None:
    """As of one that waits in the kernel; tests/node/test_hung_starts.py has real ones."""
    kill = mocker.patch.object(Child, "kill")
    commands = Commands(timeout=0.5)
    with no_hang(), pytest.raises(CommandTimeout, match=r"was killed after 0.5s and does not end.*see /proc/\d+/stack"):
        commands.run("sh", "-c", f"echo $$ > {tmp_path}/pid; while :; do sleep 0.1; done")
    pid = int((tmp_path / "pid").read_text())
    for _ in range(2):
        with pytest.raises(
            CommandStuck, match=rf"`touch .*` was not started: `sh -c .*see /proc/{pid}/stack"
        ) as caught:
            commands.run("touch", f"{tmp_path}/started")
        assert caught.value.transient
    assert not (tmp_path / "started").exists()
    os.kill(pid, signal.SIGKILL)
    assert kill.called

    def runs() -> bool:
        with contextlib.suppress(CommandStuck):
            return commands.run("true").exit == 0
        return False

    until(runs)


def test_no_descriptors_left_is_a_failure(commands: Commands) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    commands.run("true")
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")), hard))
    try:
        with pytest.raises(CommandError, match=r"could not be started: .*Too many open files"):
            commands.run("true")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_sigchld_of_others_is_not_eaten(commands: Commands) -> None:
    other = os.posix_spawn("/bin/sleep", ["sleep", "0.1"], {})
    commands.run("sleep", "0.3")
    assert os.waitpid(other, 0) == (other, 0)
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL


def test_of_each_end_somebody_is_told() -> None:
    told: list[tuple[str, int | None]] = []
    commands = Commands(timeout=0.3)
    commands.on_end = lambda argv, exit_status, seconds: told.append((argv[0], exit_status)) if seconds > 0 else None
    commands.run("sh", "-c", "exit 4")
    with pytest.raises(CommandError):
        commands.run("sh", "-c", "kill -9 $$")
    with pytest.raises(CommandTimeout):
        commands.run("sleep", str(FOREVER))
    assert told == [("sh", 4), ("sh", -9), ("sleep", None)]
    threading.Timer(0.1, commands.interrupt).start()
    with pytest.raises(Interrupted):
        commands.run("sleep", str(FOREVER))  # nothing is wrong with a command that a signal of the operator's ended
    assert len(told) == 3


def test_a_failed_start_closes_no_socket_of_another_thread(commands: Commands, mocker: MockerFixture) -> None:
    accepted: list[socket.socket] = []

    def fail() -> None:
        accepted.append(socket.socket())
        raise OSError(11, "Resource temporarily unavailable")

    mocker.patch("os.fork", side_effect=fail)
    with pytest.raises(CommandError, match="could not be started"):
        commands.run("true")
    accepted[0].getsockname()
    accepted[0].close()


@pytest.fixture
def handlers() -> Iterator[None]:
    """Put back what a Wakeup changes."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    signal.set_wakeup_fd(-1)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("is_first", [False, True])
def test_a_signal_in_the_instant_before_the_wait_is_not_lost(is_first: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """As in that instant, poll(2) is not interrupted if another thread gets the signal; handlers run in this one."""
    commands = Commands(timeout=FOREVER)
    wakeup = Wakeup(commands.wakeup_fd, on_stop=commands.stop, on_interrupt=commands.interrupt)
    if not is_first:
        signal.raise_signal(signal.SIGHUP)
    until_it_waits = partial(until, lambda: commands._is_running)  # noqa: SLF001 - the very window that is meant

    def get_the_signal() -> None:
        until_it_waits()
        time.sleep(0.3)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    threading.Thread(target=get_the_signal).start()
    with no_hang(), pytest.raises(Stopped):
        commands.run("sleep", str(FOREVER))
    assert wakeup.stopping


@pytest.mark.parametrize("line", range(4))
def test_a_stop_at_any_moment_of_the_turn_to_the_cleanup_has_no_effect(commands: Commands, line: int) -> None:
    lines = iter(range(100))

    def trace(frame: FrameType, event: str, _: object) -> "TraceFunction":
        if frame.f_code is Commands.finish_by.__code__ and event in ("line", "return") and next(lines) == line:
            commands.stop()
        return trace

    sys.settrace(trace)
    try:
        commands.finish_by(time.monotonic() + 10)
    finally:
        sys.settrace(None)
    assert commands.run("true").exit == 0


def test_so_many_signals_that_the_pipe_is_full_do_no_harm(commands: Commands) -> None:
    for _ in range(70_000):
        commands.stop()
    commands.interrupt()
    with pytest.raises(Interrupted):
        commands.run("true")
