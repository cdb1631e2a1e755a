"""Every failure that this program knows, as one tree.

    SidecarError                1  the pass or the cleanup did not succeed
    ├── ConfigError             2  the operator's settings are wrong; nothing was touched
    ├── NodeError               3  this node lacks something that the work needs
    │   ├── CommandMissing          a program is not installed
    │   ├── NotIproute2             `ip` is another program, such as BusyBox's
    │   ├── PermissionMissing       a capability is not granted
    │   ├── NotSupported            the kernel lacks a table, a hook, or an extension, or iptables does
    │   ├── LockUnusable            the xtables lock's file is not a file, or cannot be opened
    │   ├── BackendUnknown          it is unknown which iptables the node uses
    │   ├── BackendUnusable         an iptables backend cannot be initialised on this kernel
    │   └── CannotListen            the program cannot listen on --health-address
    ├── InterfaceMissing        1  the interface does not exist (yet)
    ├── AddressUnusable         1  the address is there, but tentative, or a duplicate of another host's
    ├── LinkUnreadable          1  what is on the interface could not be read, while other links could
    ├── ChainUnreadable         1  a chain could not be observed, while others could
    ├── LooksContradict         1  iptables does not list a rule that it finds
    ├── RuleUnknown             1  it cannot be known whether a rule is there that should be removed
    ├── CommandError            1  a command failed
    │   ├── CommandTimeout          it was killed when its time was up
    │   │   ├── CommandStuck            it was not started, as an earlier one was killed and does not end
    │   │   └── ProgramHangs            it, or an earlier one of its program, gave no answer to who waits for one
    │   ├── LockHeld                the xtables lock is held (exit status 4 of iptables-legacy)
    │   │   └── LockHeldBy              and it is known by whom
    │   ├── RulesChanged            another program changed the rules at the same moment (nft)
    │   └── OutputUnreadable        it succeeded, but its output cannot be parsed
    └── DeadlineReached         1  the cleanup's time was up before this command began

The number is the exit code; `exit_code` in state/actions.py takes the worst. `str()` of each is one line, meant for the
person who has to act on it. node/iptables_program.py and node/iproute.py decide which error a failed command is.

Stopped and Interrupted are not failures, but the way out of work that a signal has ended.
"""

import errno
import shlex
from collections.abc import Sequence
from typing import Final

#: Lines of standard input that an error shows; of more it tells the number.
_MOST_LINES: Final = 20


class SidecarError(Exception):
    """Base of all failures; `exit_code` is the exit code of the process after this failure."""

    exit_code = 1

    #: Whether the same attempt may well succeed a moment later.
    transient = False

    @property
    def facts(self) -> dict[str, str | int | float]:
        """The same as values, for a log in JSON."""
        return {"err": str(self)}

    @property
    def cause(self) -> str:
        """The same without the command that showed it, if the rest says enough."""
        return str(self)


class ConfigError(SidecarError):
    """Faults in the settings, each one line."""

    exit_code = 2

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = tuple(faults)


class NodeError(SidecarError):
    """The node lacks something, and a retry does not help."""

    exit_code = 3


class CommandMissing(NodeError):
    """A program is not on the search path."""

    def __init__(self, name: str) -> None:
        package = {"ip": "iproute2", "nft": "nftables"}.get(name, "iptables")
        super().__init__(
            f"{name} is not installed: apt-get install {package} (the package's name in Debian and Ubuntu)"
        )


class NotIproute2(NodeError):
    """There is an `ip`, but not that of iproute2."""

    remedy = "needs iproute2: apt-get install iproute2 (the package's name in Debian and Ubuntu)"

    def __init__(self, said: str) -> None:
        self.found = f"`ip` on this node is not that of iproute2 ({said})"
        super().__init__(f"{self.found}: {self.remedy}")


class PermissionMissing(NodeError):
    """A command failed, and this process lacks the capabilities that it needs."""

    def __init__(self, capabilities: Sequence[str], failure: str) -> None:
        names = " and ".join(capabilities)
        self._cause = f"missing {names}: run as root, or add it to the container's capabilities"
        super().__init__(f"{self._cause}; {failure}")

    @property
    def cause(self) -> str:
        return self._cause


class NotSupported(NodeError):
    """iptables exited with 2 or 3, or the kernel refused: one of them lacks the table, a hook, or an extension."""


class LockUnusable(NodeError):
    """The xtables lock cannot be taken, although no other process holds it."""


class BackendUnknown(NodeError):
    """It is unknown whether the node uses iptables-legacy."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"cannot tell whether this node uses iptables-legacy, as {path} cannot be read: run as root, or set "
            "--iptables-backend"
        )


class BackendUnusable(NodeError):
    """An iptables backend cannot list a single chain."""

    def __init__(self, command: str, failure: str) -> None:
        super().__init__(f"{command} cannot be used on this kernel: {failure}")


class CannotListen(NodeError):
    """The program cannot listen on the address for probes and metrics; the text says why, and what to do."""


class InterfaceMissing(SidecarError):
    """The interface that should carry the address does not exist."""

    def __init__(self, interface: str, waits_because: str = "") -> None:
        advice = f"; waiting for it: {waits_because}" if waits_because else ": see `ip link show`, or set --interface"
        super().__init__(f"interface {interface} does not exist on this node{advice}")


class AddressUnusable(SidecarError):
    """The address is there, but the kernel does not allow its use (yet)."""

    def __init__(self, *, duplicate: bool) -> None:
        super().__init__(
            "another host on the link has it (`ip address` shows dadfailed): remove it there, then here"
            if duplicate
            else "tentative: the kernel is still checking whether another host on the link has it"
        )


class LinkUnreadable(SidecarError):
    """What is on the interface could not be read; the text says why."""


class ChainUnreadable(SidecarError):
    """One chain could not be observed; the text says which, and why."""


class LooksContradict(SidecarError):
    """iptables does not list a rule that it finds when it is asked for it: the listing was cut off."""

    def __init__(self, argv: Sequence[str], rule: str) -> None:
        super().__init__(
            f"iptables contradicts itself: it finds {rule}, but `{pasteable(argv)}` does not list it; the rule is left "
            "alone. Check for a full disk, and `ulimit -f`"
        )


class RuleUnknown(SidecarError):
    """It cannot be known whether a rule is there; the text says why."""


class CommandError(SidecarError):
    """A command failed. The text holds the command, ready to paste into a shell, and its error output."""

    def __init__(self, argv: Sequence[str], stdin: str, outcome: str, stderr: str = "") -> None:
        said = " / ".join(line.strip() for line in stderr.splitlines() if line.strip())
        self.command = pasteable(argv, stdin) if stdin.count("\n") <= _MOST_LINES else _shortened(argv, stdin)
        super().__init__(f"`{self.command}` {outcome}" + (f": {said}" if said else ""))

    @property
    def facts(self) -> dict[str, str | int | float]:
        return {**super().facts, "command": self.command}


class CommandTimeout(CommandError):
    """The command was killed when its time was up."""

    transient = True


class CommandStuck(CommandTimeout):
    """The command was not started: one that was killed before has not ended, and this one might join it."""


class ProgramHangs(CommandTimeout):
    """A program gave no answer to somebody who waits for one."""

    def __init__(self, argv: Sequence[str], stdin: str, seconds: float, state: str) -> None:
        super().__init__(argv, stdin, "")
        self.args = (f"{argv[0]} does not answer within {seconds:.1g} s: `{self.command}`{state}",)
        self.command = pasteable(argv, stdin)


class LockHeld(CommandError):
    """iptables-legacy exited with 4: another program holds the xtables lock, or changed the rules meanwhile."""

    transient = True


class LockHeldBy(LockHeld):
    """A command was killed while it waited for the xtables lock; `holder` says in words who holds that."""

    def __init__(self, argv: Sequence[str], stdin: str, holder: str) -> None:
        super().__init__(argv, stdin, "")
        self.args = (holder,)


class RulesChanged(CommandError):
    """iptables-nft exited with 4, as another program changed the rules at the same moment."""

    transient = True


class OutputUnreadable(CommandError):
    """The command exited with 0, but its output does not have the known format."""

    def __init__(self, argv: Sequence[str], stdin: str, why: object, stderr: str = "") -> None:
        super().__init__(argv, stdin, f"printed output that cannot be parsed: {why}", stderr)


class DeadlineReached(SidecarError):
    """No time was left to start a command."""

    def __init__(self, argv: Sequence[str], stdin: str) -> None:
        super().__init__(f"no time left to run `{pasteable(argv, stdin)}`")


class Stopped(Exception):
    """SIGTERM or SIGINT came before this command began, or while it ran: the pass is abandoned."""


class Interrupted(Exception):
    """A second SIGTERM or SIGINT came: the program ends at once, whatever is left undone."""


def reason(error: OSError) -> str:
    """Return why the kernel refused something, in one line, and what to do if that is known."""
    text = error.strerror or str(error)
    if error.errno == errno.EMFILE:
        return f"{text}: see `ulimit -n`"
    if error.errno == errno.ENFILE:
        return f"{text}: see `sysctl fs.file-nr`"
    if error.errno == errno.ENOENT and str(error.filename).startswith("/proc"):
        return f"{error.filename}: {text}: mount /proc"
    return f"{error.filename}: {text}" if error.filename else text


def _shortened(argv: Sequence[str], stdin: str) -> str:
    """Return the command, with a comment on its standard input in place of that."""
    lines = stdin.splitlines()
    return f"{shlex.join(argv)} # with {len(lines)} lines of input, the first {shlex.quote(lines[0])}"


def pasteable(argv: Sequence[str], stdin: str = "") -> str:
    """Return the command as one line of shell that does the same."""
    command = shlex.join(argv)
    if not stdin:
        return command
    escaped = stdin.replace("\\", "\\\\").replace("%", "%%").replace("\n", "\\n")
    return f"printf {shlex.quote(escaped)} | {command}"
