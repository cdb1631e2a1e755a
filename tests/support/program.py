"""The program as its user meets it: a process in a namespace, its flags, its signals, its log, its exit code."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

import sidecar.__main__
from support.namespace import Namespace
from support.waiting import HANG, until

#: As it is installed.
PROGRAM: Final = Path(sys.executable).parent / "apiserver-proxy-sidecar"


def fork(namespace: Namespace, *flags: str, env: Mapping[str, str] | None = None) -> "subprocess.Popen[str]":
    """Run the program in a forked child: for most tests, as it is ten times as quick (support/forked.py)."""
    return namespace.fork(partial(_run, flags), env)


def execute(
    namespace: Namespace, *flags: str, prefix: tuple[str, ...] = (), env: Mapping[str, str] | None = None
) -> "subprocess.Popen[str]":
    """Run the installed program: where the process itself is the subject, or has to be found in /proc."""
    return namespace.start(*prefix, str(PROGRAM), *flags, env=env)


def _run(flags: tuple[str, ...]) -> None:
    sys.argv = [str(PROGRAM), *flags]
    sidecar.__main__.main()


class Sidecar:
    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.log = ""

    def wait_for(self, text: str, times: int = 1) -> None:
        """Read the log until it has this text in it, so many times."""
        assert self.process.stderr
        while self.log.count(text) < times:
            if not select.select([self.process.stderr], [], [], HANG)[0]:
                raise AssertionError(f"no {text!r} in the log, nor anything else for {HANG} s:\n{self.log}")
            read = os.read(self.process.stderr.fileno(), 65536).decode()
            if not read:
                raise AssertionError(f"the program ended without {text!r}:\n{self.log}")
            self.log += read

    def first_child(self) -> int:
        """Return the process id of the first child, once there is one."""
        return int(until(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text).split()[0])

    def wait_until_it_handles(self, number: int, pid: int | None = None) -> None:
        """Wait until there is a handler for this signal."""
        status = Path(f"/proc/{pid or self.process.pid}/status")

        def handled() -> int:
            caught = next(line for line in status.read_text().splitlines() if line.startswith("SigCgt:"))
            return int(caught.split()[1], 16) >> (number - 1) & 1

        until(handled)

    def end(self) -> int:
        """Wait for the end; return the exit code."""
        _, rest = self.process.communicate(timeout=HANG)
        self.log += rest
        assert "Traceback" not in self.log, self.log
        return self.process.returncode

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.end()

    def kill(self) -> None:
        """End it, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


#: Starts the program with flags, and with variables by keyword.
Start: TypeAlias = Callable[..., Sidecar]

#: Puts a shell script in the place of a command; returns the environment in which it is found.
Fake: TypeAlias = Callable[[str, str], dict[str, str]]
