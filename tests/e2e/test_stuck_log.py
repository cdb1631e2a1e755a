"""A log that nobody reads: the work goes on, what was dropped is counted, and SIGTERM ends the program."""

import contextlib
import fcntl
import os
import pty
import subprocess
import termios
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.namespace import CIDR, Namespace
from support.program import Start
from support.waiting import FOREVER, until

FILE_FLAGS = ("--logtostderr=false", "--stderrthreshold=3")


@dataclass
class Stuck:
    """A log that takes nothing, until `flow` is called; `text` returns what it took since."""

    flags: tuple[str, ...]
    redirect: str
    flow: Callable[[], object]
    text: Callable[[], str]
    shared: int = -1


@pytest.fixture(params=["pipe", "terminal", "fifo", "frozen file", "frozen standard error"])
def stuck(request: pytest.FixtureRequest, tmp_path: Path, namespace: Namespace) -> Iterator[Stuck]:
    with contextlib.ExitStack() as stack:
        if request.param == "terminal":
            yield stopped_terminal(stack)
        elif request.param in ("pipe", "fifo"):
            yield full_fifo(tmp_path / "fifo", stack, is_file=request.param == "fifo")
        else:
            yield frozen(tmp_path, namespace, stack, is_file=request.param == "frozen file")


def stopped_terminal(stack: contextlib.ExitStack) -> Stuck:
    """Return a terminal after Ctrl-S."""
    master, slave = pty.openpty()
    stack.callback(os.close, master)
    stack.callback(os.close, slave)
    termios.tcflow(slave, termios.TCOOFF)
    return Stuck(
        (),
        os.ttyname(slave),
        lambda: termios.tcflow(slave, termios.TCOON),
        lambda: os.read(master, 65536).decode(),
        slave,
    )


def full_fifo(path: Path, stack: contextlib.ExitStack, *, is_file: bool) -> Stuck:
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    stack.callback(os.close, reader)
    stack.callback(os.close, writer)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)

    def text() -> str:
        with contextlib.suppress(BlockingIOError):
            return os.read(reader, 1 << 20).decode()
        return ""

    flags = (*FILE_FLAGS, f"--log_file={path}") if is_file else ()
    return Stuck(flags, os.devnull if is_file else str(path), text, text, writer)


def frozen(tmp_path: Path, namespace: Namespace, stack: contextlib.ExitStack, *, is_file: bool) -> Stuck:
    """Return a file in a file system where every write waits, and not even SIGKILL ends the wait."""
    image, folder = tmp_path / "image", tmp_path / "folder"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    made = subprocess.run(["mkfs.ext4", "-q", "-F", image], capture_output=True, check=False)
    if made.returncode or os.geteuid():
        pytest.skip("no file system can be made here")
    try:
        namespace.run("mount", "-o", "loop", str(image), str(folder))
    except AssertionError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    path = folder / "log"
    namespace.run("touch", str(path))
    namespace.run("fsfreeze", "--freeze", str(folder))
    stack.callback(namespace.run, "fsfreeze", "--unfreeze", str(folder), check=False)
    flags = (*FILE_FLAGS, f"--log_file={path}") if is_file else ()
    return Stuck(
        flags,
        os.devnull if is_file else str(path),
        lambda: namespace.run("fsfreeze", "--unfreeze", str(folder)),
        lambda: namespace.run("cat", str(path)),
    )


def behind(redirect: str) -> tuple[str, ...]:
    return ("sh", "-c", f'exec "$@" 2>>{redirect}', "sh")


def set_up_again(namespace: Namespace, times: int = 1) -> None:
    for _ in range(times):
        until(lambda: namespace.addresses() == [CIDR])
        namespace.run("ip", "address", "delete", CIDR, "dev", "lo")
    until(lambda: namespace.addresses() == [CIDR])


def test_the_work_goes_on_and_a_signal_ends_it(execute: Start, namespace: Namespace, stuck: Stuck) -> None:
    flags = ("--ip-address=10.96.0.2", f"--sync-interval={FOREVER}s", "-v6", *stuck.flags)
    sidecar = execute(*flags, prefix=behind(stuck.redirect))
    set_up_again(namespace, 4)
    assert stuck.shared < 0 or not fcntl.fcntl(stuck.shared, fcntl.F_GETFL) & os.O_NONBLOCK
    assert sidecar.stop() == 0


def test_what_was_dropped_is_counted_and_told_when_the_log_is_read_again(
    execute: Start, namespace: Namespace, stuck: Stuck
) -> None:
    flags = ("--ip-address=10.96.0.2", "--sync-interval=100ms", "--vmodule=*=9", *stuck.flags)
    sidecar = execute(*flags, "--health-address=127.0.0.1:9180", prefix=behind(stuck.redirect))
    set_up_again(namespace)

    def dropped() -> int:
        page = namespace.run("python3", "-c", SCRAPE)
        return sum(int(float(line.split()[1])) for line in page.splitlines() if "log_lines_dropped_total{" in line)

    until(dropped)
    stuck.flow()
    seen = ""

    def told() -> bool:
        nonlocal seen
        seen += stuck.text()
        return "log lines were dropped: " in seen

    until(told, lambda: seen[-2000:])
    assert sidecar.stop() == 0


SCRAPE = "from urllib.request import urlopen; print(urlopen('http://127.0.0.1:9180/metrics').read().decode())"


@pytest.mark.parametrize("flags", [("--daemon=false",), ("--port=0",)], ids=["one pass", "bad configuration"])
def test_a_single_pass_ends(execute: Start, stuck: Stuck, flags: tuple[str, ...]) -> None:
    if "--port=0" in flags and "/folder/" in stuck.redirect:
        pytest.skip("what is wrong with a configuration is printed directly")
    sidecar = execute("--ip-address=10.96.0.2", *stuck.flags, *flags, prefix=behind(stuck.redirect))
    assert sidecar.end() == (2 if "--port=0" in flags else 0)


@pytest.mark.parametrize("command", ["status", "plan", "doctor", "cleanup"])
def test_a_signal_ends_an_answer_that_nobody_reads(execute: Start, tmp_path: Path, command: str) -> None:
    with contextlib.ExitStack() as stack:
        output = full_fifo(tmp_path / "fifo", stack, is_file=False).redirect
        sidecar = execute(command, "--ip-address=10.96.0.2", prefix=("sh", "-c", f'exec "$@" >>{output}', "sh"))
        wchan = Path(f"/proc/{sidecar.process.pid}/wchan")
        until(lambda: "pipe_w" in wchan.read_text())
        assert sidecar.stop() == 1
