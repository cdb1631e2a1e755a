"""The gate to the node, with real processes: none of these needs a privilege or touches anything."""

import contextlib
import gc
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from sidecar import command
from sidecar.command import Commands
from sidecar.errors import CommandError, CommandMissing, CommandTimeout, DeadlineReached, Interrupted, Stopped


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


def test_the_environment_is_fixed(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("SECRET", "x")
    lines = commands.run("env").stdout.splitlines()
    assert "LC_ALL=C" in lines
    assert not [line for line in lines if line.startswith("SECRET")]


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
    started = time.monotonic()
    with pytest.raises(CommandTimeout, match=r"`sh -c .*` was killed after 0.2s: thinking") as caught:
        Commands(timeout=0.2).run("sh", "-c", "echo thinking >&2; exec sleep 60")
    assert time.monotonic() - started < 2
    assert caught.value.transient


def test_a_hung_grandchild_is_killed_too(tmp_path: Path) -> None:
    script = tmp_path / "wrapper"
    script.write_text(f"#!/bin/sh\nsleep 60 &\necho $! > {tmp_path}/pid\nwait\n")
    script.chmod(0o755)
    started = time.monotonic()
    with pytest.raises(CommandTimeout):
        Commands(timeout=0.3).run(str(script))
    assert time.monotonic() - started < 1
    grandchild = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    for _ in range(100):
        if not grandchild.exists() or ") Z " in grandchild.read_text():
            return
        time.sleep(0.05)
    pytest.fail("it still runs")


def test_a_grandchild_that_keeps_everything_open_holds_nobody_up() -> None:
    started = time.monotonic()
    result = Commands(timeout=5).run("sh", "-c", "setsid sleep 1.5 & echo done; exit 3")
    assert (result.exit, result.stdout) == (3, "done\n")
    assert time.monotonic() - started < 1


def test_what_was_begun_runs_side_by_side(commands: Commands) -> None:
    started = time.monotonic()
    for word in ("one", "two", "three"):
        commands.begin("sh", "-c", f"sleep 0.5; cat; echo {word}", stdin=word)
    answers = [commands.run("sh", "-c", f"sleep 0.5; cat; echo {word}", stdin=word) for word in ("three", "one", "two")]
    assert [answer.stdout for answer in answers] == ["threethree\n", "oneone\n", "twotwo\n"]
    assert time.monotonic() - started < 1.2


def test_what_was_begun_is_bounded_in_time_from_its_own_start() -> None:
    commands = Commands(timeout=0.4)
    commands.begin("sleep", "60")
    commands.begin("sleep", "61")
    started = time.monotonic()
    for seconds in ("60", "61"):
        with pytest.raises(CommandTimeout, match=r"killed after 0\.4s"):
            commands.run("sleep", seconds)
    assert time.monotonic() - started < 0.7


def test_what_cannot_be_begun_is_told_when_it_is_run(commands: Commands) -> None:
    commands.begin("no-such-program")
    with pytest.raises(CommandMissing, match="no-such-program"):
        commands.run("no-such-program")


@pytest.mark.parametrize(("end", "error"), [(Commands.stop, Stopped), (Commands.interrupt, Interrupted)])
def test_told_to_end_nothing_that_was_begun_goes_on(
    commands: Commands, end: Callable[[Commands], None], error: type[Exception]
) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for seconds in ("60", "61", "62"):
        commands.begin("sleep", seconds)
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    assert len(children.read_text().split()) == 3
    started = time.monotonic()
    end(commands)
    with pytest.raises(error):
        commands.run("sleep", "61")
    assert time.monotonic() - started < 2.5  # one second of grace for all of them
    while children.read_text().split():  # dead; sh's own threads see to the rest
        assert time.monotonic() - started < 4
        time.sleep(0.05)
    assert set(os.listdir("/proc/self/fd")) == before


def test_death_by_a_signal_is_a_failure(commands: Commands) -> None:
    with pytest.raises(CommandError, match="was ended by SIGSEGV"):
        commands.run("sh", "-c", "kill -SEGV $$")


def test_a_missing_command_names_its_package(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "SEARCH_PATH", "/nonexistent")
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
    started = time.monotonic()
    with pytest.raises(CommandTimeout):
        Commands(timeout=0.3).run("sh", "-c", "exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-; sleep 60")
    assert time.monotonic() - started < 2


def test_a_stop_while_a_command_is_being_started_is_not_lost(commands: Commands, mocker: MockerFixture) -> None:
    start = command._start  # noqa: SLF001 - the very window that is meant

    def stopped_meanwhile(*args: object) -> object:
        running = start(*args)  # type: ignore[arg-type] # passed on as they come
        commands.stop()
        return running

    mocker.patch.object(command, "_start", stopped_meanwhile)
    started = time.monotonic()
    with pytest.raises(Stopped):
        commands.run("sleep", "60")
    assert time.monotonic() - started < command.GRACE + 1


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


def test_a_stop_lets_a_quick_command_finish(commands: Commands) -> None:
    threading.Timer(0.1, commands.stop).start()
    assert commands.run("sh", "-c", "sleep 0.5; echo finished").stdout == "finished\n"


def test_a_stop_ends_a_hung_command(commands: Commands) -> None:
    threading.Timer(0.1, commands.stop).start()
    started = time.monotonic()
    with pytest.raises(Stopped):
        commands.run("sleep", "60")
    assert time.monotonic() - started < command.GRACE + 1


def run_until_it_is_refused(commands: Commands) -> None:
    while True:
        with pytest.raises(CommandTimeout):
            commands.run("sleep", "60")


def test_an_interrupt_kills_the_running_command_and_no_other_is_started(commands: Commands) -> None:
    threading.Timer(0.1, commands.interrupt).start()
    started = time.monotonic()
    with pytest.raises(Interrupted):
        commands.run("sleep", "60")
    assert time.monotonic() - started < 1
    commands.finish_by(time.monotonic() + 10)
    with pytest.raises(Interrupted):
        commands.run("true")


def test_with_a_deadline_hung_commands_leave_time_for_others() -> None:
    commands = Commands(timeout=10.0)
    commands.finish_by(time.monotonic() + 2)
    started = time.monotonic()
    with pytest.raises(CommandTimeout):
        commands.run("sleep", "60")
    assert time.monotonic() - started < 1.5
    assert commands.run("true").exit == 0
    with pytest.raises(DeadlineReached, match="no time left to run `sleep 60`"):
        run_until_it_is_refused(commands)
    assert time.monotonic() - started < 2.5


def test_nothing_is_left_over(commands: Commands) -> None:
    def held() -> tuple[int, int, str]:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
        return len(os.listdir("/proc/self/fd")), threading.active_count(), children

    def held_in_the_end() -> tuple[int, int, str]:
        time.sleep(1.5)  # sh's threads of a command look once a second whether they are still needed
        return held()

    commands.run("true")
    before = held_in_the_end()
    for _ in range(200):
        commands.run("true")
    assert held_in_the_end() == before


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
    with contextlib.suppress(CommandError):
        commands.run("sh", "-c", f"sleep 0.5; touch {tmp_path}/done")
        assert (tmp_path / "done").exists()
        return
    time.sleep(0.8)
    assert not (tmp_path / "done").exists()


def test_without_pidfds_it_looks_often(commands: Commands, mocker: MockerFixture) -> None:
    mocker.patch("os.pidfd_open", side_effect=OSError(38, "Function not implemented"))
    assert commands.run("sh", "-c", "sleep 0.1; exit 3").exit == 3
    started = time.monotonic()
    with pytest.raises(CommandTimeout):
        Commands(timeout=0.2).run("sleep", "60")
    threading.Timer(0.1, commands.interrupt).start()
    with pytest.raises(Interrupted):
        commands.run("sleep", "60")
    assert time.monotonic() - started < 1


def test_a_process_that_does_not_die_holds_nobody_up(commands: Commands, mocker: MockerFixture) -> None:
    mocker.patch.object(command, "_kill")
    threading.Timer(0.1, commands.stop).start()
    threading.Timer(0.3, commands.interrupt).start()
    started = time.monotonic()
    with pytest.raises(Interrupted):
        commands.run("sleep", "4")
    assert time.monotonic() - started < 1


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
        commands.run("sleep", "60")
    assert told == [("sh", 4), ("sh", -9), ("sleep", None)]
    threading.Timer(0.1, commands.interrupt).start()
    with pytest.raises(Interrupted):
        commands.run("sleep", "60")  # nothing is wrong with a command that a signal of the operator's ended
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
