"""What keeps a process from running."""

import errno
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from sidecar.node.halted import halted
from support.waiting import FOREVER, until

RUNS = "Name:\tpython3\nState:\tS (sleeping)\nTracerPid:\t0\n"


def reader(files: dict[str, str]) -> Callable[..., str]:
    def read(path: Path, **_: object) -> str:
        if str(path) not in files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return files[str(path)]

    return read


def test_a_signal_and_its_remedy() -> None:
    process = subprocess.Popen(["sleep", str(FOREVER)])
    assert halted(process.pid) is None
    process.send_signal(signal.SIGSTOP)
    found = until(lambda: halted(process.pid))
    assert found
    assert (found.why, found.command) == ("is stopped (SIGSTOP)", f"kill -CONT {process.pid}")
    subprocess.run(found.command.split(), check=True)
    until(lambda: halted(process.pid) is None)
    process.kill()
    process.wait()
    assert halted(process.pid) is None


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"/proc/7/status": "State:\tt (tracing stop)\nTracerPid:\t12\n"}, "is stopped by a debugger, pid 12"),
        ({"/proc/7/cgroup": "0::/pod/a\n", "/sys/fs/cgroup/pod/a/cgroup.events": "populated 1\nfrozen 1\n"}, "frozen"),
        ({"/proc/7/cgroup": "0::/a\n", "/sys/fs/cgroup/unified/a/cgroup.events": "frozen 1\n"}, "frozen"),
        ({"/proc/7/cgroup": "6:freezer:/a\n0::/\n", "/sys/fs/cgroup/freezer/a/freezer.state": "FROZEN\n"}, "frozen"),
        ({"/proc/7/cgroup": "6:freezer:/a\n0::/\n", "/sys/fs/cgroup/freezer/a/freezer.state": "THAWED\n"}, ""),
        ({"/proc/7/cgroup": "0::/a\n", "/sys/fs/cgroup/a/cgroup.events": "populated 1\nfrozen 0\n"}, ""),
        ({}, ""),
    ],
)
def test_a_debugger_and_a_freezer(mocker: MockerFixture, files: dict[str, str], why: str) -> None:
    mocker.patch.object(Path, "read_text", reader({"/proc/7/status": RUNS, **files}))
    found = halted(7)
    assert why in (found.why if found else "")
    assert bool(found) == bool(why)
    assert not found or found.remedy
