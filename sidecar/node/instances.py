"""Finds the sidecars that run on this node's network, including the Go program of the same name, and their settings.

The command line identifies a process; its settings come from there and from its initial environment. So this needs
no help from the other process, and works across containers for anybody who can see the process (root, in the node's
pid namespace, or in the same container).

Anybody can start a process with such a name, and root may act on what is read here. So only a process that could do a
sidecar's work is trusted: it has CAP_NET_ADMIN over the same network, in the same user namespace.
"""

import contextlib
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from sidecar import PROGRAM
from sidecar.log import writer
from sidecar.node import capabilities, claims, proc
from sidecar.node.child import MEMORY_FILE
from sidecar.node.proc import Process
from sidecar.settings import invocation, values
from sidecar.settings.invocation import Invocation
from sidecar.settings.options import FLAGS
from sidecar.settings.values import BOOLEANS
from sidecar.state.model import Address, Claim, IPAddress, RuleSet
from sidecar.text import visible

_MODULES: Final = ("sidecar", "sidecar.__main__")  # what `python -m` calls this program

#: Options of the interpreter that take a value: the rest of the word, or else the next one (man python3).
_WITH_A_VALUE: Final = "cmWX"

_PORTS_OF_GO: Final = ("443", "9443")  # the defaults of its releases

_SCRIPTS: Final = (PROGRAM, f"{PROGRAM}.pyz")  # the console script, and the single file that scripts/build-pyz builds


@dataclass(frozen=True, slots=True)
class Instance:
    """A running sidecar. `variables` are the variables of its environment that this program knows."""

    process: Process
    is_python: bool
    line: Invocation
    variables: Mapping[str, str]

    def __str__(self) -> str:
        return f"pid {self.process.pid} ({'this program' if self.is_python else 'not Python: the Go sidecar?'})"

    def value(self, name: str) -> str:
        """Return the text of a setting, fit for display; settings from an env file are not seen."""
        texts = self.line.values.get(name)
        if texts:
            text = ",".join(texts) if name == "ip-address" else texts[-1]
        else:
            text = self.variables.get(FLAGS[name].variable) or FLAGS[name].default or ""
        return visible(text)

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """The addresses in its settings, as far as they can be seen."""
        found = []
        for each in self.value("ip-address").split(","):
            with contextlib.suppress(ValueError):
                found.append(ip_address(each.strip()))
        return tuple(found)

    @property
    def repairs(self) -> bool:
        """Whether it repairs at once what is taken away: Go's waits for its interval, and one pass repairs nothing."""
        return self.is_python and BOOLEANS.get(self.value("daemon"), True)

    def claims(self) -> frozenset[Claim]:
        """Return what it needs on the node, claimed or not: the addresses, and the rules for the port."""
        addresses = {Address(ip, ip.max_prefixlen, self.value("interface")) for ip in self.addresses}
        # An env file may ask for rules: its content cannot be seen from here.
        has_rules = BOOLEANS.get(self.value("setup-iptables"), True) or bool(self.value("env-file"))
        try:
            ports = [values.port(text) for text in self._ports()] if has_rules else []
        except ValueError:  # it has ended with exit code 2, or is not what it seems
            ports = []
        rules = {RuleSet(ip, port) for ip in self.addresses for port in ports}
        return frozenset(addresses | rules)

    def _ports(self) -> tuple[str, ...]:
        """Return the port, or those that it may be: the Go sidecar's default depends on its release."""
        return (self.value("port"),) if self.is_python or "port" in self.line.values else _PORTS_OF_GO


def running() -> tuple[list[Instance], list[Instance]]:
    """Return the instances on this node's network, and those whose network cannot be seen."""
    near, hidden = _found()
    return [each for each in near if _is_capable(each.process.pid) and not _is_command(each.process.pid)], hidden


def powerless() -> list[Instance]:
    """Return what runs like an instance on this node's network, but cannot change it. Anybody can start such a process.

    What is in another user namespace is left out: nobody expects it to change the network of the node.
    """
    pids = {each.process.pid: each for each in _found()[0]}
    return [each for pid, each in pids.items() if _is_of_node(pid) and not (_is_capable(pid) or _is_command(pid))]


def _found() -> tuple[list[Instance], list[Instance]]:
    """Return what runs like an instance on this node's network, and what may do so, as its network cannot be seen."""
    found: dict[bool | None, list[Instance]] = {True: [], False: [], None: []}
    for process, is_near in proc.neighbours():
        each = _instance(process)
        if each and each.line.command == "run":  # the other commands do not hold anything
            found[is_near].append(each)
    return found[True], found[None]


def needed() -> frozenset[Claim]:
    """Return what those running sidecars need that cannot claim it here: Go's, or one with its own /run.

    What the others need they claim, and give up when they clean up themselves.
    """
    found = [each for each in running()[0] if not (each.is_python and claims.are_shared_with(each.process.pid))]
    return frozenset(claim for each in found for claim in each.claims())


def is_sidecar(process: Process | None) -> bool:
    """Whether a process runs as a sidecar, by its command line."""
    found = _instance(process) if process and process.argv else None
    return found is not None and found.line.command == "run"


def _is_command(pid: int) -> bool:
    """Whether a process is the child of a sidecar that does not execute its command yet: until then it looks like one.

    A file system that hangs can keep it so, even after the sidecar has ended.
    """
    try:
        return os.readlink(f"/proc/{pid}/fd/1").startswith(f"/memfd:{MEMORY_FILE} ")  # noqa: PTH115 - as in procfs
    except OSError:
        return False


def _is_capable(pid: int) -> bool:
    """Whether a process is able to change this network."""
    try:
        return _is_of_node(pid) and capabilities.has("CAP_NET_ADMIN", pid)
    except OSError:  # it has ended, or belongs to another user
        return False


def _is_of_node(pid: int) -> bool:
    """Whether a process is in our user namespace."""
    try:
        return os.readlink(f"/proc/{pid}/ns/user") == os.readlink("/proc/self/ns/user")  # noqa: PTH115 - as in procfs
    except OSError:  # as above
        return False


def _instance(process: Process) -> Instance | None:
    if process.name == writer.NAME:  # it writes the log files of an instance
        return None
    program, *words = process.argv
    name = program.rpartition("/")[2]
    if name == PROGRAM:
        line = invocation.parse(words)
        return Instance(process, is_python=False, line=Invocation("run", line.values, line.faults), variables={})
    if not name.startswith("python"):
        return None
    arguments = _arguments(words)
    if arguments is None:
        return None
    try:
        environment = proc.variables(process.pid)
    except OSError:  # it has ended, or belongs to another user
        environment = {}
    known = {flag.variable: environment[flag.variable] for flag in FLAGS.values() if environment.get(flag.variable)}
    return Instance(process, is_python=True, line=invocation.parse(arguments), variables=known)


def _arguments(words: list[str]) -> list[str] | None:
    """Return the arguments of this program in those of a Python interpreter; None if it runs another program."""
    rest = deque(words)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.popleft()
        if word == "--":
            break
        if word == "--check-hash-based-pycs" and rest:
            rest.popleft()
        flags = "" if word.startswith("--") else word[1:]
        option = next((letter for letter in flags if letter in _WITH_A_VALUE), "")
        value = flags.partition(option)[2] if option else ""
        if option and not value:
            value = rest.popleft() if rest else ""
        if option == "c":
            return None
        if option == "m":
            return list(rest) if value in _MODULES else None
    script = rest.popleft() if rest else ""
    return list(rest) if script.rpartition("/")[2] in _SCRIPTS else None
