"""A sidecar that makes pass after pass, and whether what it holds of the machine grows."""

import contextlib
import fcntl
import os
import re
import select
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from http.client import HTTPConnection
from itertools import cycle, pairwise
from pathlib import Path
from typing import Final, Self

from support import program
from support.namespace import CIDR, Namespace
from support.table import Row
from support.waiting import HANG, until

PORT: Final = 9180
FLAGS: Final = (
    "--ip-address=10.96.0.2",
    "--setup-iptables",
    "--cleanup",
    "--sync-interval=10ms",
    "-v=2",
    f"--health-address=:{PORT}",
)

PAUSE: Final = 0.03  # seconds between two looks at /proc
SAMPLES: Final = 60  # in a long run; each has the least of what its looks have seen, as a pass comes and goes
LOOKS: Final = 30  # in a sample at least, so that one of them falls between two passes
FEWEST: Final = 4  # samples, one for each quarter
FAULT_EVERY: Final = 1.0  # seconds
UNREAD: Final = 3.0  # seconds for which nobody reads the log
PIPE: Final = 4096  # bytes that the log's pipe holds, so that it is full soon
TAIL: Final = 100  # reads of the log that are kept
WARM_UP: Final = 100  # passes before the first sample

MIB: Final = 1 << 10  # KiB, the unit of /proc


@dataclass(frozen=True)
class Held:
    """What a process holds of the machine."""

    descriptors: int
    threads: int
    children: int  # the zombies among them
    zombies: int
    rss: float  # MiB


#: How much more it may be in the last quarter of a run than in the second. Python's allocator takes 1 MiB at a time.
ALLOWED: Final[Mapping[str, float]] = {"rss": 1.0}


def held(pid: int) -> Held:
    """Look into /proc (man 5 proc)."""
    folder = Path(f"/proc/{pid}")
    status = (folder / "status").read_text()
    found = list(children(pid))
    return Held(
        descriptors=len(list((folder / "fd").iterdir())),
        threads=int(status.split("\nThreads:")[1].split()[0]),
        children=len(found),
        zombies=sum(state == "Z" for _, _, state in found),
        rss=int(status.split("\nVmRSS:")[1].split()[0]) / MIB,
    )


def children(pid: int) -> Iterator[tuple[int, str, str]]:
    """Yield the process id, the name and the state of each child that did not end meanwhile."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            for child in map(int, (task / "children").read_text().split()):
                with contextlib.suppress(OSError):
                    name, _, rest = Path(f"/proc/{child}/stat").read_text().partition("(")[2].rpartition(") ")
                    yield child, name, rest[0]


def least(looks: Sequence[Held]) -> Held:
    return Held(**{each.name: min(getattr(look, each.name) for look in looks) for each in fields(Held)})


def quarters(samples: Sequence[Held]) -> list[Held]:
    """Return the least of each quarter of a run."""
    ends = [len(samples) * quarter // 4 for quarter in range(5)]
    return [least(samples[begin:end]) for begin, end in pairwise(ends)]


def growing(samples: Sequence[Held]) -> list[str]:
    """Return what is more in the last quarter than it was in the second; in the first it may still settle."""
    _, early, _, late = quarters(samples)
    return [
        each.name
        for each in fields(Held)
        if getattr(late, each.name) - getattr(early, each.name) > ALLOWED.get(each.name, 0)
    ]


class Ended(Exception):
    """The sidecar ended by itself, or not as it should; the text has the end of its log."""


class Soak:
    """One sidecar in a namespace of its own."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.samples: list[Held] = []
        self.passes: list[int] = []  # by the time of each sample
        self.faults = 0
        self._looks: list[Held] = []
        self._log: deque[bytes] = deque(maxlen=TAIL)
        self._unread_until = 0.0
        self._faults = cycle((self._delete_address, self._flush_rules, self._kill_command, self._leave_log_unread))

    def __enter__(self) -> Self:
        self.namespace = Namespace()
        self.process = program.execute(self.namespace, *FLAGS, f"--iptables-backend={self.backend}")
        assert self.process.stderr
        fcntl.fcntl(self.process.stderr, fcntl.F_SETPIPE_SZ, PIPE)
        until(lambda: self._is_ready() and self.count_passes() > WARM_UP)
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        self.namespace.__exit__()

    def look(self) -> None:
        """Read what was logged, and look at the process once."""
        self._read()
        if self.process.poll() is not None:
            raise Ended(f"{self.backend}: it ended by itself with {self.process.returncode}:\n{self.log}")
        self._looks.append(held(self.process.pid))

    @property
    def looks(self) -> int:
        """The number of looks since the last sample."""
        return len(self._looks)

    def sample(self) -> None:
        """Make a sample of the looks since the last one."""
        self.samples.append(least(self._looks))
        self.passes.append(self.count_passes())
        self._looks.clear()

    def fault(self) -> None:
        """Let the next fault happen."""
        next(self._faults)()
        self.faults += 1

    def end(self) -> None:
        """Hold that all is well once the faults are over, and that nothing is left after the cleanup."""
        self._unread_until = 0.0
        until(self._is_ready)
        self.process.send_signal(signal.SIGTERM)
        self._log.append(self.process.communicate(timeout=HANG)[1].encode())
        if self.process.returncode or "Traceback" in self.log or not self.namespace.is_clean():
            raise Ended(f"{self.backend}: its cleanup failed, with {self.process.returncode}:\n{self.log}")

    def rows(self) -> Iterator[Row]:
        """Yield the rows of the table."""
        marks = [self.passes[len(self.passes) * quarter // 4 - 1] for quarter in range(1, 5)]
        found = quarters(self.samples)
        grown = growing(self.samples)
        yield self._row("passes so far", marks, "")
        for each in fields(Held):
            name = "rss MiB" if each.name == "rss" else each.name
            yield self._row(name, [getattr(one, each.name) for one in found], "yes" if each.name in grown else "no")

    def _row(self, what: str, values: Sequence[float], grows: str) -> Row:
        names = ("1st quarter", "2nd quarter", "3rd quarter", "last quarter")
        return {"backend": self.backend, "what": what, **dict(zip(names, values, strict=True)), "grows": grows}

    @property
    def log(self) -> str:
        return b"".join(self._log).decode(errors="replace")

    def count_passes(self) -> int:
        """Ask /metrics how many passes there were."""
        found = re.findall(r"^apiserver_proxy_sidecar_passes_total\{.*\} (\S+)$", self._ask("/metrics"), re.MULTILINE)
        return int(sum(map(float, found)))

    def _is_ready(self) -> bool:
        return self._ask("/readyz").startswith("200\n")

    def _ask(self, path: str) -> str:
        self._read()
        asker: subprocess.Popen[str] = self.namespace.fork(partial(_ask, path))
        return asker.communicate(timeout=HANG)[0]

    def _read(self) -> None:
        assert self.process.stderr
        descriptor = self.process.stderr.fileno()
        while time.monotonic() > self._unread_until and select.select([descriptor], [], [], 0)[0]:
            if not (read := os.read(descriptor, 65536)):
                break
            self._log.append(read)

    def _delete_address(self) -> None:
        self.namespace.run("ip", "address", "delete", CIDR, "dev", "lo", check=False)

    def _flush_rules(self) -> None:
        for table in ("raw", "filter"):
            self.namespace.iptables(self.backend, 4, "-w", "-t", table, "-F")

    def _kill_command(self) -> None:
        """Kill the next `ip` or `iptables`, if one is seen before long."""
        for _ in range(100):
            for child, name, _state in children(self.process.pid):
                if name == "ip" or "tables" in name:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)
                    return
            time.sleep(0.001)

    def _leave_log_unread(self) -> None:
        self._unread_until = time.monotonic() + UNREAD


def _ask(path: str) -> None:
    with contextlib.suppress(OSError):
        connection = HTTPConnection("127.0.0.1", PORT, timeout=HANG)
        connection.request("GET", path)
        answer = connection.getresponse()
        print(answer.status, answer.read().decode(), sep="\n", flush=True)


def soak(
    backends: Sequence[str], seconds: float, passes: int, tell: Callable[[str], object], *, faults: bool
) -> list[Soak]:
    """Let a sidecar for each backend run for so long, or until each has made so many passes."""
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(Soak(backend)) for backend in backends]
        began = next_sample = next_fault = time.monotonic()
        while ((now := time.monotonic()) < began + seconds and not _done(running, passes)) or _too_few(running):
            for each in running:
                each.look()
            if now >= next_sample and running[0].looks >= LOOKS:
                next_sample = now + seconds / SAMPLES
                for each in running:
                    each.sample()
                    tell(f"{now - began:5.0f} s  {each.backend:6}  {each.passes[-1]:,} passes  {each.samples[-1]}")
            if faults and now >= next_fault:
                next_fault = now + FAULT_EVERY
                for each in running:
                    each.fault()
            time.sleep(PAUSE)
        for each in running:
            each.end()
    return running


def _too_few(running: Sequence[Soak]) -> bool:
    return len(running[0].samples) < FEWEST


def _done(running: Sequence[Soak], passes: int) -> bool:
    return all(each.passes and each.passes[-1] >= passes for each in running)
