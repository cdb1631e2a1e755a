"""A node for doctor to look at that is made of recorded answers: it is healthy, until a test changes something.

What `ip`, `iptables` and `nft` answer was recorded in a network namespace (iproute2 6.1.0, iptables 1.8.9, nftables
1.0.6); links and addresses are those of a FakeKernel. What has no command, processes and sockets for example, is
patched. A command for which nothing is recorded fails the test, one that would change something in particular.
"""

import errno
import io
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final, Self, TypeAlias

from pytest_mock import MockerFixture

from sidecar.doctor.certificate import Certificate
from sidecar.doctor.checks import diagnose
from sidecar.doctor.findings import Finding, Level
from sidecar.doctor.probe import Answer
from sidecar.doctor.view import View
from sidecar.errors import CommandMissing, SidecarError
from sidecar.node.backends import Backend
from sidecar.node.command import Result
from sidecar.node.proc import Process
from sidecar.node.proc_formats import Listener
from sidecar.state.desired import desired
from sidecar.state.model import Claim, Family, IPAddress
from support.fake_kernel import FakeKernel
from support.namespace import IPV4, IPV6

BOTH: Final = desired([IPV4, IPV6], interface="lo", port=443, setup_iptables=True)
ONLY_IPV6: Final = desired([IPV6], interface="lo", port=443, setup_iptables=True)
NO_RULES: Final = desired([IPV4], interface="lo", port=443)

#: The five rules of an address, as `iptables -S` prints them.
RULES: Final = (
    ("raw", "-A PREROUTING -d {cidr} -p tcp -m tcp --dport 443 -j NOTRACK"),
    ("raw", "-A OUTPUT -d {cidr} -p tcp -m tcp --dport 443 -j NOTRACK"),
    ("raw", "-A OUTPUT -s {cidr} -p tcp -m tcp --sport 443 -j NOTRACK"),
    ("filter", "-A INPUT -d {cidr} -p tcp -m tcp --dport 443 -j ACCEPT"),
    ("filter", "-A OUTPUT -s {cidr} -p tcp -m tcp --sport 443 -j ACCEPT"),
)

#: The tables of nft that are made when they are asked for, and their chains.
TABLES: Final = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
}

UNREACHABLE: Final = Result(2, "", "RTNETLINK answers: Network is unreachable\n")
NOT_PRINTABLE: Final = "iptables v1.8.9 (nf_tables): chain `{}' in table `{}' is incompatible, use 'nft' tool.\n"
NOT_JUDGED: Final = "iptables v1.8.9 (nf_tables): Parsing nftables rule failed\n"

#: A line of /proc/net/nf_conntrack; without its first two words, one of `conntrack -L`.
CONNECTION: Final = (
    "ipv4     2 tcp      6 431999 ESTABLISHED src=10.244.0.7 dst={0} sport=41000 dport={1} "
    "src={0} dst=10.244.0.7 sport={1} dport=41000 [ASSURED] mark=0 zone=0 use=2\n"
)

CERTIFICATE: Final = Certificate(
    ("kubernetes.default.svc", "10.96.0.2", "fd00:10:96::2"),
    datetime(2020, 1, 1, tzinfo=UTC),
    datetime(2099, 1, 1, tzinfo=UTC),
)

#: This very process stands in for the sidecar that runs, as somebody has to have this number. It makes one pass only:
#: what a test breaks stays broken.
SIDECAR: Final = Process(
    os.getpid(), "python3", ("python3", "-m", "sidecar", "--daemon=false", "--ip-address=10.96.0.2,fd00:10:96::2")
)


def ok(output: str) -> Result:
    return Result(0, output, "")


class RecordedNode:
    """A node in sync by nft, with a proxy behind the address; every attribute is there to be changed."""

    def __init__(self, mocker: MockerFixture, folder: Path) -> None:
        self.desired = desired([IPV4], interface="lo", port=443, setup_iptables=True)
        self.backend = "auto"
        self.warnings: list[str] = []
        self.port = 443
        self.kernel = FakeKernel("link0")
        self.kernel.addresses["lo"] = [f"{IPV4}/32", f"{IPV6}/128"]
        self.kernel.states[f"{IPV6}/128"] = {"deprecated": True}
        self.programs = set(_programs())
        self.answers: dict[str, Result | SidecarError] = dict(_answers())
        """Command, or a program for all of its commands → the answer, or what is raised instead of one."""
        self.tables: dict[str, dict[str, dict[str, list[str]]]] = {
            f"{name}-{backend}": {} for name in ("iptables", "ip6tables") for backend in ("nft", "legacy")
        }
        """Program → table → chain → what `-S` prints; see `chain`."""
        self.opaque: set[tuple[str, str]] = set()
        """Tables and chains in which there is a rule that only nft can print."""
        self.files: dict[str, str | OSError] = {"/proc/net/nf_conntrack": CONNECTION.format("10.0.0.5", 6443)}
        """What can be read below /proc and /run; nothing else is there."""
        self.lock = folder / "xtables.lock"
        self.lacking: set[str] = set()
        """Capabilities."""
        self.modules: dict[str, bool | None] = {}
        """Module → whether the kernel has it; others it has."""
        self.listeners = [Listener(IPV4, 443, 17), Listener(IPV6, 443, 18)]
        self.owners = {17: Process(4711, "proxy"), 18: Process(4711, "proxy")}
        self.answer = Answer(0.0012, certificate=CERTIFICATE)
        self.processes: list[tuple[Process, bool | None]] = [(SIDECAR, True)]
        self.claimed: frozenset[Claim] | OSError = FileNotFoundError()
        self.calls: list[str] = []
        self.seconds = 0.0
        """How long a command, or a connection, takes."""
        self.now = 1000.0
        for program, cidr in (("iptables-nft", f"{IPV4}/32"), ("ip6tables-nft", f"{IPV6}/128")):
            for table, line in RULES:
                self.add(table, line.format(cidr=cidr), program=program)
        self.lock.touch()
        self._patch(mocker)

    def view(self) -> View:
        families: list[Family] = sorted({address.ip.version for address in self.desired.addresses})
        backends = {family: Backend(self.run, family, self.backend, 5.0, longest_look=1.0) for family in families}
        return View(self.desired, self.port, self.run, backends, warnings=self.warnings)

    def findings(self, *topics: str) -> list[Finding]:
        """Run all checks, and return what they find of these topics."""
        return [each for each in diagnose(self.view()) if each.topic in topics]

    def texts(self, *topics: str) -> list[str]:
        """Return the same as `level: text`."""
        return [f"{each.level.value}: {each.found}" for each in self.findings(*topics)]

    def alarms(self) -> list[str]:
        """Return what all checks find to be wrong, or cannot tell."""
        quiet = (Level.OK, Level.NOTE)
        return [f"{each.topic}: {each.found}" for each in diagnose(self.view()) if each.level not in quiet]

    def set(self, **attributes: object) -> Self:
        """Set attributes, where a table of tests has room for an expression only."""
        for name, value in attributes.items():
            assert hasattr(self, name)
            setattr(self, name, value)
        return self

    def add(self, table: str, *lines: str, program: str = "iptables-nft") -> None:
        """Add rules, as `-S` prints them."""
        for line in lines:
            self.chain(table, line.split()[1], program).append(line)

    def chain(self, table: str, name: str, program: str = "iptables-nft") -> list[str]:
        """Return what `-S` prints of a chain, to be changed; make the table and the chain if they are not there."""
        made = {chain: [f"-P {chain} ACCEPT"] for chain in TABLES[table]}
        return self.tables[program].setdefault(table, made).setdefault(name, [f"-N {name}"])

    def use_legacy(self) -> Self:
        """Let our rules be in the other backend, with no table but those that they need."""
        self.backend = "legacy"
        for name in ("iptables", "ip6tables"):
            nft = self.tables[f"{name}-nft"]
            self.tables[f"{name}-legacy"] = {table: nft.pop(table) for table in ("raw", "filter")}
        return self

    def run(self, *argv: str, stdin: str = "") -> Result:
        """Answer a command as it was recorded."""
        command = " ".join(argv)
        self.calls.append(command)
        self.now += self.seconds
        if argv[0] not in self.programs:
            raise CommandMissing(argv[0])
        answer = self.answers.get(argv[0]) or self.answers.get(command)
        if isinstance(answer, SidecarError):
            raise answer
        if answer:
            return answer
        if command == "ip -json -details address show":
            return self.kernel(*argv)
        match argv[1:]:
            case ["--noflush", "-w", "1"]:
                return self._list(argv[0].removesuffix("-restore"), list(_asked(stdin)))
            case ["-w", "1" | "5", "-t", table, "-S", chain]:
                return self._list(argv[0], [(table, chain)])
            case ["-w", "1", "-t", table, "-C", chain, *_] if (table, chain) in self.opaque:
                return Result(3, "", NOT_JUDGED)
        raise AssertionError(f"no answer to `{command}` was recorded")

    def _list(self, program: str, chains: Sequence[tuple[str, str]]) -> Result:
        program = program if program in self.tables else f"{program}-nft"
        output = ""
        for table, chain in chains:
            assert "legacy" not in program or table in self.tables[program], f"this look makes the table {table}"
            self.chain(table, TABLES[table][0], program)
            lines = self.tables[program][table].get(chain)
            if lines is None or (table, chain) in self.opaque:
                return Result(1, output, NOT_PRINTABLE.format(chain, table))
            output += "".join(f"{line}\n" for line in lines)
        return ok(output)

    def _patch(self, mocker: MockerFixture) -> None:
        mocker.patch.dict(os.environ, {"XTABLES_LOCKFILE": str(self.lock)})
        mocker.patch("shutil.which", side_effect=self._path_of)
        mocker.patch("time.monotonic", side_effect=lambda: self.now)
        mocker.patch("time.sleep")
        mocker.patch(
            "sidecar.node.capabilities.missing",
            side_effect=lambda *names: tuple(filter(self.lacking.__contains__, names)),
        )
        mocker.patch("sidecar.node.capabilities.has", return_value=True)
        mocker.patch("sidecar.node.nft_tables.everywhere", return_value=[])
        mocker.patch("sidecar.node.nft_tables.names", return_value=frozenset(TABLES))
        mocker.patch("sidecar.node.capabilities.in_initial_user_namespace", return_value=True)
        mocker.patch("sidecar.doctor.kernel.has", side_effect=lambda feature: self.modules.get(feature.module, True))
        mocker.patch("sidecar.node.claims.held", side_effect=self._claims)
        mocker.patch("sidecar.doctor.probe.connect", side_effect=self._connect)
        mocker.patch("sidecar.node.proc.holders", return_value=[])
        mocker.patch("sidecar.node.proc.listeners", side_effect=lambda: self.listeners)
        mocker.patch("sidecar.node.proc.owners", side_effect=self._owners)
        mocker.patch("sidecar.node.proc.neighbours", side_effect=lambda: iter(self.processes))
        mocker.patch("sidecar.node.proc.sees_all_processes", return_value=True)
        mocker.patch("sidecar.node.proc.variables", return_value={})
        self._patch_files(mocker)

    def _patch_files(self, mocker: MockerFixture) -> None:
        really_open, really_exists = Path.open, Path.exists

        def open_(path: Path, *arguments: Any, **options: Any) -> IO[Any]:  # noqa: ANN401 - whatever open takes
            return self._file(path) if _is_of_node(path) else really_open(path, *arguments, **options)

        def exists(path: Path) -> bool:
            return str(path) in self.files if _is_of_node(path) else really_exists(path)

        mocker.patch("pathlib.Path.open", open_)
        mocker.patch("pathlib.Path.exists", exists)

    def _file(self, path: Path) -> IO[str]:
        missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        content = self.files.get(str(path), self._names_of_tables().get(str(path), missing))
        if isinstance(content, OSError):
            raise content
        return io.StringIO(content)

    def _names_of_tables(self) -> dict[str, str]:
        return {
            f"/proc/net/ip{family}_tables_names": "".join(f"{table}\n" for table in self.tables[f"{program}-legacy"])
            for family, program in (("", "iptables"), ("6", "ip6tables"))
        }

    def _path_of(self, name: str, **_: object) -> str | None:
        return f"/usr/sbin/{name}" if name in self.programs else None

    def _connect(self, _: IPAddress, __: int, ___: float) -> Answer:
        self.now += self.seconds
        return self.answer

    def _owners(self, inodes: Collection[int]) -> dict[int, Process]:
        return {inode: self.owners[inode] for inode in inodes if inode in self.owners}

    def _claims(self, claims: Iterable[Claim], _: object = None) -> frozenset[Claim]:
        if isinstance(self.claimed, OSError):
            raise self.claimed
        return self.claimed.intersection(claims)


def _programs() -> Iterator[str]:
    yield from ("ip", "nft", "conntrack")
    for name in ("iptables", "ip6tables"):
        for backend in ("", "-nft", "-legacy"):
            yield from (f"{name}{backend}", f"{name}{backend}-restore")


def _answers() -> Iterator[tuple[str, Result]]:
    for name in ("iptables", "ip6tables"):
        for backend, kind in (("", "nf_tables"), ("-nft", "nf_tables"), ("-legacy", "legacy")):
            yield f"{name}{backend} --version", ok(f"{name} v1.8.9 ({kind})\n")
    yield "ip -V", ok("ip utility, iproute2-6.1.0, libbpf 1.1.2\n")
    local4 = '{"type":"local","dst":"10.96.0.2","dev":"lo","prefsrc":"10.96.0.2","flags":[],"uid":0,"cache":["local"]}'
    yield "ip -json route get 10.96.0.2", ok(f"[{local4}]")
    local6 = '"prefsrc":"fd00:10:96::2","metric":0,"flags":[],"pref":"medium"'
    local6 = (
        '{"type":"local","dst":"fd00:10:96::2","from":"::","dev":"lo","table":"local","protocol":"kernel",' + local6
    )
    yield "ip -json route get fd00:10:96::2", ok(f"[{local6}}}]")
    yield "ip -4 -json route show", ok("[ ]")
    yield "ip -6 -json route show", ok("[ ]")
    for family in (4, 6):
        yield f"ip -{family} -json -N route show table all", ok("[ ]")
        yield f"ip -{family} -json neighbour show", ok("[ ]")
        yield f"ip -{family} -json -N rule show", ok('[{"priority":0,"src":"all","table":"255"}]')


def _asked(stdin: str) -> Iterator[tuple[str, str]]:
    """Read what `iptables-restore` is asked to list: tables and chains."""
    table = ""
    for line in stdin.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line != "COMMIT":
            verb, chain = line.split()
            assert verb == "-S", line
            yield table, chain


def _is_of_node(path: Path) -> bool:
    return path.parts[:2] in (("/", "proc"), ("/", "run"))


#: What breaks a node.
Change: TypeAlias = Callable[[RecordedNode], object]
