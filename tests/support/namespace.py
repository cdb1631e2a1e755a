"""A node to test on: a network namespace with a /run of its own, for root and for an ordinary user alike.

An ordinary user becomes root in a user namespace. A small process keeps the namespace alive; it reads from a pipe
that ends with the tests, so that nothing is left behind however they end.
"""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Self

from sidecar.node.command import Commands, Result
from sidecar.node.programs import environment
from support import forked

#: One address of each family, as in the documents.
IPV4: Final = IPv4Address("10.96.0.2")
IPV6: Final = IPv6Address("fd00:10:96::2")

ENVIRONMENT: Final = environment(os.environ)

#: What stands there once the flags `--ip-address=10.96.0.2 --setup-iptables` are in sync.
CIDR: Final = f"{IPV4}/32"
RULES: Final = 5

_KEEPER: Final = "mount -t tmpfs tmpfs /run && ip link set lo up && echo ready && exec cat"


class NamespaceError(Exception):
    """This machine does not let us make one; the text says why."""


class Namespace:
    def __init__(self, beside: "Namespace | None" = None) -> None:
        """Make one; beside another one it shares that one's user namespace, so that a link can join the two."""
        is_root = os.geteuid() == 0
        enter_user = [] if is_root else ["--user", "--preserve-credentials"]
        if is_root:
            make = ["unshare"]
        elif beside is None:
            make = ["unshare", "--user", "--map-root-user"]
        else:
            make = ["nsenter", f"--target={beside.pid}", *enter_user, "--", "unshare"]
        self._keeper = subprocess.Popen(
            [*make, "--net", "--mount", "sh", "-c", _KEEPER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        #: Of the process that keeps it alive; also what `ip link set … netns` takes.
        self.pid: int = self._keeper.pid
        assert self._keeper.stdout
        if self._keeper.stdout.readline() != "ready\n":
            raise NamespaceError(self._keeper.communicate()[1].strip())
        self.prefix = ("nsenter", f"--target={self.pid}", *enter_user, "--net", "--mount", "--")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._keeper.communicate()

    def run(self, *argv: str, stdin: str = "", check: bool = True) -> str:
        """Run a command in the namespace and return its standard output; surrogates stand for bytes beside UTF-8."""
        done = subprocess.run(
            [*self.prefix, *argv],
            input=stdin,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            check=False,
            env=ENVIRONMENT,
        )
        if check and done.returncode:
            raise AssertionError(f"{argv} exited with {done.returncode}: {done.stderr}")
        return done.stdout

    def start(self, *argv: str, env: Mapping[str, str] | None = None) -> "subprocess.Popen[str]":
        """Start a program in the namespace; its output comes through pipes."""
        return subprocess.Popen(
            [*self.prefix, *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**ENVIRONMENT, **(env or {})},
        )

    def fork(self, work: Callable[[], object], env: Mapping[str, str] | None = None) -> "subprocess.Popen[str]":
        """Let a child of this very process do the work in the namespace, its modules loaded; its output is piped.

        It takes a hundredth of what a new interpreter takes. What the child is for is to return, or to exit.
        """
        pidfd = os.pidfd_open(self.pid)
        try:
            return subprocess.Popen(
                [forked.NEVER_EXECUTED],
                preexec_fn=partial(forked.become, pidfd, {**ENVIRONMENT, **(env or {})}, work),  # noqa: PLW1509 - see there
                restore_signals=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        finally:
            os.close(pidfd)

    @contextlib.contextmanager
    def lock_held(self) -> Iterator[None]:
        """Hold the xtables lock for as long as the block takes."""
        command = ("flock", "/run/xtables.lock", "sh", "-c", "echo held; exec cat")
        holder = subprocess.Popen(
            [*self.prefix, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
        )
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        try:
            yield
        finally:
            holder.communicate()

    def addresses(self, interface: str = "lo") -> list[str]:
        """Return the CIDRs on an interface, but for those that the kernel puts on lo."""
        lines = self.run("ip", "-oneline", "address", "show", "dev", interface).splitlines()
        return [cidr for cidr in (line.split()[3] for line in lines) if cidr not in ("127.0.0.1/8", "::1/128")]

    def rules(self, backend: str, family: int = 4) -> list[str]:
        """Return the rules of the two tables, as `-t TABLE -A …`, in the order of iptables-save, filter first."""
        # Table by table: which tables there are, legacy reads from a file that an ordinary user must not read.
        save = f"{'iptables' if family == 4 else 'ip6tables'}-{backend}-save"
        return [
            f"-t {table} {line}"
            for table in ("filter", "raw")
            for line in self.run(save, "-t", table).splitlines()
            if line.startswith("-A")
        ]

    def in_place(self, backend: str = "nft") -> bool:
        """Whether the address is there, and each of its rules once."""
        rules = self.rules(backend)
        return self.addresses() == [CIDR] and len(rules) == len(set(rules)) == RULES

    def is_clean(self) -> bool:
        """Whether there is no address, and no IPv4 rule in either backend."""
        return not (self.addresses() or self.rules("nft") or self.rules("legacy"))

    def iptables(self, backend: str, family: int, *words: str, check: bool = True) -> str:
        return self.run(f"{'iptables' if family == 4 else 'ip6tables'}-{backend}", *words, check=check)


class NamespaceCommands(Commands):
    """The program's own gate to the node, opened into a namespace; remembers what went through it."""

    def __init__(self, namespace: Namespace, timeout: float = 10.0) -> None:
        super().__init__(timeout)
        self._prefix = namespace.prefix
        self.calls: list[tuple[str, ...]] = []

    def run(self, *argv: str, stdin: str = "") -> Result:
        self.calls.append(argv)
        return super().run(*self._prefix, *argv, stdin=stdin)

    def processes(self) -> Sequence[str]:
        """Return the names of the programs that were run, and forget them."""
        names = [argv[0] for argv in self.calls]
        self.calls.clear()
        return names
