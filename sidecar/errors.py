"""Every failure this program knows, as one tree.

    SidecarError                1  the pass or the cleanup did not reach its goal
    ├── ConfigError             2  the operator's settings are wrong; nothing was touched
    ├── NodeError               3  this node cannot do it as it is
    │   ├── CommandMissing          a program is not installed
    │   ├── PermissionMissing       a capability is not granted
    │   ├── NotSupported            the kernel has no such table
    │   ├── LockUnusable            the xtables lock's file is no file, or cannot be opened
    │   ├── BackendUnknown          which iptables the node uses cannot be seen
    │   └── CannotListen            --health-address cannot be had
    ├── InterfaceMissing        1  the interface does not exist (yet)
    ├── AddressUnusable         1  the address is there, but tentative, or a duplicate of another host's
    ├── ChainUnreadable         1  a chain could not be looked at, while others could
    ├── CommandError            1  a command did not do what it was asked
    │   ├── CommandTimeout          it was killed when its time was up
    │   ├── LockHeld                iptables says: try again (exit status 4)
    │   └── OutputUnreadable        it succeeded, and its output makes no sense
    └── DeadlineReached         1  the cleanup's time was up before this command began

The number is the exit code. `str()` of each is one line, meant for the person who has to act on it.

Stopped and Interrupted are no failures, but the way out of work that a signal has ended.
"""

import shlex
from collections.abc import Sequence


class SidecarError(Exception):
    """Base of all; `exit_code` is what the process ends with because of it."""

    exit_code = 1

    #: True where doing the same again a moment later may well succeed.
    transient = False

    @property
    def facts(self) -> dict[str, str | int | float]:
        """The same as values, for a log in JSON."""
        return {"err": str(self)}


class ConfigError(SidecarError):
    """Faults in the settings, each one line."""

    exit_code = 2

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = tuple(faults)


class NodeError(SidecarError):
    """The node lacks something that trying again does not bring."""

    exit_code = 3


class CommandMissing(NodeError):
    """A program is not on the search path."""

    def __init__(self, name: str, package: str) -> None:
        super().__init__(
            f"{name} is not installed: apt-get install {package} (the package's name in Debian and Ubuntu)"
        )


class PermissionMissing(NodeError):
    """A command failed, and this process lacks the capabilities it needs."""

    def __init__(self, capabilities: Sequence[str], failure: str) -> None:
        names = " and ".join(capabilities)
        super().__init__(f"missing {names}: run as root, or add it to the container's capabilities; {failure}")


class NotSupported(NodeError):
    """iptables exited with 3: the kernel lacks the table or an extension."""


class LockUnusable(NodeError):
    """The xtables lock cannot be had, and that is not because somebody holds it."""


class BackendUnknown(NodeError):
    """It cannot be seen whether the node uses iptables-legacy."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"may not read {path}, so whether this node uses iptables-legacy is unknown: run as root, "
            "or set --iptables-backend"
        )


class CannotListen(NodeError):
    """The address for probes and metrics cannot be listened on; the text says why, and what to do."""


class InterfaceMissing(SidecarError):
    """The interface that should carry the address does not exist."""

    def __init__(self, interface: str) -> None:
        super().__init__(f"interface {interface} does not exist on this node: see `ip link show`, or set --interface")


class AddressUnusable(SidecarError):
    """The address is there, but the kernel does not let it be used (yet)."""

    def __init__(self, *, duplicate: bool) -> None:
        super().__init__(
            "another host on the link has it (dadfailed, as `ip address` shows it): remove it there, then here"
            if duplicate
            else "tentative: the kernel still finds out whether another host on the link has it"
        )


class ChainUnreadable(SidecarError):
    """One chain could not be looked at; the text says which, and why."""


class CommandError(SidecarError):
    """A command failed. The line holds the command, ready to be pasted into a shell, and what it said."""

    def __init__(self, argv: Sequence[str], stdin: str, outcome: str, stderr: str = "") -> None:
        said = " / ".join(line.strip() for line in stderr.splitlines() if line.strip())
        self.command = pasteable(argv, stdin)
        super().__init__(f"`{self.command}` {outcome}" + (f": {said}" if said else ""))

    @property
    def facts(self) -> dict[str, str | int | float]:
        return {**super().facts, "command": self.command}


class CommandTimeout(CommandError):
    """The command ran for longer than it may and was killed."""

    transient = True


class LockHeld(CommandError):
    """iptables exited with 4: another program holds the xtables lock, or changed the rules at the same moment."""

    transient = True


class OutputUnreadable(CommandError):
    """The command exited with 0, but what it printed is not what it is known to print."""


class DeadlineReached(SidecarError):
    """There was no time left to start a command."""

    def __init__(self, argv: Sequence[str], stdin: str) -> None:
        super().__init__(f"no time left to run `{pasteable(argv, stdin)}`")


class Stopped(Exception):
    """SIGTERM or SIGINT came before this command began, or while it ran: the pass is abandoned."""


class Interrupted(Exception):
    """A second SIGTERM or SIGINT came: end at once, whatever is left undone."""


def pasteable(argv: Sequence[str], stdin: str = "") -> str:
    """Return the command as one line of shell that does the same again."""
    command = shlex.join(argv)
    if not stdin:
        return command
    escaped = stdin.replace("\\", "\\\\").replace("%", "%%").replace("\n", "\\n")
    return f"printf {shlex.quote(escaped)} | {command}"
