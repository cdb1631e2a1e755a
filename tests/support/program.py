"""The installed program, run as a process in a namespace."""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

PROGRAM: Final = Path(sys.executable).parent / "apiserver-proxy-sidecar"


class Sidecar:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.log = ""

    def wait_for(self, text: str, seconds: float = 15.0) -> None:
        """Read the log until it has this text in it."""
        assert self.process.stderr
        deadline = time.monotonic() + seconds
        while text not in self.log:
            left = deadline - time.monotonic()
            if not select.select([self.process.stderr], [], [], max(0, left))[0]:
                raise AssertionError(f"no {text!r} in the log after {seconds} s:\n{self.log}")
            read = os.read(self.process.stderr.fileno(), 65536).decode()
            if not read:
                raise AssertionError(f"the program ended without {text!r}:\n{self.log}")
            self.log += read

    def first_child(self) -> int:
        """Return the process id of the first child, once there is one."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        for _ in range(1000):
            if found := children.read_text().split():
                return int(found[0])
            time.sleep(0.005)
        raise AssertionError("it started nothing")

    def wait_until_it_handles(self, number: int, pid: int | None = None) -> None:
        """Wait until there is a handler for this signal."""
        status = Path(f"/proc/{pid or self.process.pid}/status")
        for _ in range(2000):
            caught = next(line for line in status.read_text().splitlines() if line.startswith("SigCgt:"))
            if int(caught.split()[1], 16) >> (number - 1) & 1:
                return
            time.sleep(0.005)
        raise AssertionError(f"no handler for signal {number}")

    def end(self, seconds: float = 30.0) -> int:
        """Wait for the end; return the exit code."""
        _, rest = self.process.communicate(timeout=seconds)
        self.log += rest
        assert "Traceback" not in self.log
        return self.process.returncode

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.end()
