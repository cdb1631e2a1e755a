"""A node of the fleet: a network namespace with what others have set up there, and a sidecar as a process."""

import ctypes
import fcntl
import os
import re
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import IO, Final

from sidecar.state.desired import desired
from sidecar.state.model import Family, Rule
from support import program
from support.namespace import ENVIRONMENT, IPV4, IPV6, Namespace
from support.soak import PIPE

PORT: Final = 9180
FAMILIES: Final[Mapping[Family, IPv4Address | IPv6Address]] = {4: IPV4, 6: IPV6}
RULES: Final[Sequence[Rule]] = desired((IPV4, IPV6), interface="lo", port=443, setup_iptables=True).rules
FLAGS: Final = (f"--ip-address={IPV4},{IPV6}", "--setup-iptables", f"--health-address=:{PORT}")

CIDRS: Final = tuple(f"{ip}/{ip.max_prefixlen}" for ip in FAMILIES.values())

TABLES: Final = ("raw", "filter")
CANARY: Final = "KUBE-KUBELET-CANARY"  # the kubelet's chain in mangle, by which the backend is found
SERVICES: Final = 100  # rules of the chain that kube-proxy writes again and again

_NEW_NETWORK: Final = 0x40000000  # linux/sched.h, CLONE_NEWNET
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_OURS: Final = re.compile(f"{re.escape(str(IPV4))}|{IPV6}")

#: What others have on a node: an address on another link, an allowed port, the chains of the kubelet and kube-proxy.
_LINKS: Final = (
    "ip link add up0 type veth peer name up1 && ip link set up0 up && ip link set up1 up && "
    "ip address add 192.0.2.7/24 dev up0 && ip address add fd00:1::7/64 dev up0 nodad"
)
_NFT: Final = "table inet others { chain input { type filter hook input priority 10; tcp dport 22 counter accept; }; }"


def services(family: int) -> str:
    """Return kube-proxy's own chain as it writes it again and again: as a whole, and nothing else."""
    source = "172.16.{}.0/24" if family == 4 else "fd00:172:{}::/48"
    rules = "".join(f"-A KUBE-SERVICES -s {source.format(each)} -j RETURN\n" for each in range(SERVICES))
    return f"*filter\n:KUBE-SERVICES - [0:0]\n{rules}COMMIT\n"


def foreign_rules(family: int) -> str:
    """Return the rules of others, as iptables-restore reads them: without --noflush, it is a firewall's reload."""
    return (
        f"*mangle\n:{CANARY} - [0:0]\nCOMMIT\n"
        "*raw\n-A PREROUTING -p udp --dport 53 -j ACCEPT\nCOMMIT\n"
        + services(family).removesuffix("COMMIT\n")
        + "-A INPUT -p tcp --dport 22 -j ACCEPT\n-A FORWARD -j KUBE-SERVICES\nCOMMIT\n"
    )


class Process:
    """A sidecar that runs, or has run."""

    def __init__(self, popen: "subprocess.Popen[bytes]") -> None:
        self.popen = popen
        self.is_wanted = True  # until it is killed or stopped on purpose
        self._cpu = 0.0

    def is_alive(self) -> bool:
        """Whether it runs; if not, it is reaped."""
        if self.popen.returncode is None:
            self._cpu = self.cpu()  # of a zombie, too
            return self.popen.poll() is None
        return False

    def cpu(self) -> float:
        """Return the seconds of CPU that it and its commands have used (man 5 proc, /proc/PID/stat: 14 to 17)."""
        if self.popen.returncode is None:
            with suppress(OSError):
                ticks = Path(f"/proc/{self.popen.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:15]
                self._cpu = sum(map(int, ticks)) / _TICKS
        return self._cpu

    def pss(self) -> float:
        """Return its share of memory in MiB."""
        text = Path(f"/proc/{self.popen.pid}/smaps_rollup").read_text()
        return int(text.split("\nPss:")[1].split()[0]) / 1024

    def signal(self, number: int) -> None:
        self.is_wanted = self.is_wanted and number not in (signal.SIGKILL, signal.SIGTERM)
        self.popen.send_signal(number)


class Node:
    def __init__(self, number: int, backend: str, folder: Path, *, is_log_read: bool = True) -> None:
        self.name = f"node-{number:03}"
        self.backend = backend
        self.is_log_read = is_log_read
        self.namespace = Namespace()
        self.log = folder / f"{self.name}.log"
        self.processes: list[Process] = []  # oldest first
        self.hindrances: list[tuple[float, float, str]] = []  # from when to when nothing could be repaired, and why
        self.hindered = ""  # why nothing can be repaired now
        self.is_updated = False  # whether an old and a new one run
        self._network = os.open(f"/proc/{self.namespace.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._unread: list[IO[bytes]] = []

    def close(self) -> None:
        """End all that runs here, and the namespace."""
        for each in self.processes:
            if each.is_alive():
                each.signal(signal.SIGKILL)
                each.popen.wait()
        for pipe in self._unread:
            pipe.close()
        os.close(self._network)
        self.namespace.__exit__()

    def prepare(self) -> None:
        """Set up what others have on a node, and remember it."""
        self.namespace.run("sh", "-c", _LINKS)
        for family in FAMILIES:
            self.restore(family, foreign_rules(family))
        if self.backend == "nft":
            self.namespace.run("nft", _NFT)
        self._foreign = self._look()[1]

    def restore(self, family: int, text: str, *words: str) -> None:
        command = f"{'iptables' if family == 4 else 'ip6tables'}-{self.backend}-restore"
        self.namespace.run(command, "-w", *words, stdin=text, check=False)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Let this thread be in the node's network: sockets that it opens stay there."""
        _LIBC.setns(self._network, _NEW_NETWORK)
        try:
            yield
        finally:
            _LIBC.setns(_home(), _NEW_NETWORK)

    def start(self, *flags: str) -> Process:
        """Start a sidecar; it does not outlive this process, however that ends."""
        # What nobody reads is soon full: it logs each pass.
        more = () if self.is_log_read else ("-v=2",)
        command = ["setpriv", "--pdeathsig", "KILL", str(program.PROGRAM), *FLAGS, *more, *flags]
        with self.log.open("ab") as log:
            popen = subprocess.Popen(
                [*self.namespace.prefix, *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log if self.is_log_read else subprocess.PIPE,
                env=ENVIRONMENT,
            )
        if popen.stderr:
            fcntl.fcntl(popen.stderr, fcntl.F_SETPIPE_SZ, PIPE)
            self._unread.append(popen.stderr)
        self.processes.append(Process(popen))
        return self.processes[-1]

    @property
    def newest(self) -> Process | None:
        """The newest sidecar that is to run."""
        return next((each for each in reversed(self.processes) if each.is_wanted), None)

    def died(self) -> list[int]:
        """Return the exit codes of sidecars that ended by themselves."""
        return [each.popen.returncode for each in self.processes if each.is_wanted and not each.is_alive()]

    def ask(self, path: str, deadline: float) -> bytes:
        """Return the answer of the health address, its header and all; nothing if there is none by then."""
        with suppress(OSError), self.connect(path) as client:
            return read(client, deadline)
        return b""

    def connect(self, path: str) -> socket.socket:
        """Send a request to the health address."""
        with self.inside():
            client = socket.socket()
        try:
            client.settimeout(1)
            client.connect(("127.0.0.1", PORT))
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: node\r\n\r\n".encode())
        except OSError:
            client.close()
            raise
        return client

    def is_ready(self) -> bool:
        return self.ask("/readyz", time.monotonic() + 1).startswith(b"HTTP/1.1 200 ")

    def hinder(self, why: str) -> None:
        """Remember that from now on nothing can be repaired, or nothing any more."""
        now = time.monotonic()
        if self.hindered:
            self.hindrances[-1] = (self.hindrances[-1][0], now, self.hindered)
        if why:
            self.hindrances.append((now, float("inf"), why))
        self.hindered = why

    def wrong(self) -> list[str]:
        """Return what is not as it should be, by what ip and iptables show."""
        ours, _ = self._look()
        wanted = Counter(f"{rule.family} {rule}" for rule in RULES)
        wanted |= Counter(["lo is up", *CIDRS])
        return [
            *(f"{number} missing: {line}" for line, number in (wanted - ours).items()),
            *(f"{number} too many: {line}" for line, number in (ours - wanted).items()),
            *(f"dead: a sidecar ended with {code}" for code in self.died()),
            *(["dead: none runs"] if self.newest is None else []),
            *(["a traceback in its log"] if self.log.exists() and "Traceback" in self.log.read_text() else []),
        ]

    def foreign_changes(self) -> list[str]:
        """Return what others had set up and is otherwise now."""
        now = self._look()[1]
        return [*(f"gone: {line}" for line in self._foreign - now), *(f"new: {line}" for line in now - self._foreign)]

    def _look(self) -> tuple[Counter[str], Counter[str]]:
        """Return a line for each thing that is ours, and for each that is not."""
        ours, foreign = Counter[str](), Counter[str]()
        for line in self.namespace.run("ip", "-oneline", "link", "show").splitlines():
            _, name, flags, *_ = line.split()
            if name != "lo:":
                foreign[name] += 1
            elif "UP" in flags.strip("<>").split(","):
                ours["lo is up"] += 1
        for line in self.namespace.run("ip", "-oneline", "address", "show").splitlines():
            _, link, _, cidr, *words = line.split()
            if _OURS.search(cidr):
                is_right = cidr in CIDRS and link == "lo" and (":" not in cidr or "deprecated" in words)
                ours[cidr if is_right else line] += 1
            elif link != "lo" and not cidr.startswith("fe80"):  # those come by themselves
                foreign[f"{cidr} on {link}"] += 1
        for line in self._rules():
            (ours if _OURS.search(line) else foreign)[line] += 1
        return ours, foreign

    def _rules(self) -> Iterator[str]:
        """Yield all rules and chains, with their family and their table."""
        for family in FAMILIES:
            for table in (*TABLES, "mangle"):
                for line in self.namespace.iptables(self.backend, family, "-w", "-t", table, "-S").splitlines():
                    yield f"{family} -t {table} {line}"
        if self.backend == "nft":
            yield re.sub(r"packets \d+ bytes \d+", "", self.namespace.run("nft", "list", "table", "inet", "others"))


def read(client: socket.socket, deadline: float) -> bytes:
    """Read to the end; return nothing if it does not come by then."""
    answer = b""
    while (left := deadline - time.monotonic()) > 0:
        client.settimeout(left)
        part = client.recv(65536)
        if not part:
            return answer
        answer += part
    return b""


_homes: Final[list[int]] = []


def _home() -> int:
    """Return a descriptor of the network that this process was started in."""
    if not _homes:
        _homes.append(os.open(f"/proc/{os.getpid()}/ns/net", os.O_RDONLY | os.O_CLOEXEC))
    return _homes[0]
