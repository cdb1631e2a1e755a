"""Addresses and links, by `ip`."""

from ipaddress import IPv6Address
from typing import NoReturn

from sidecar.errors import CommandError, OutputUnreadable, PermissionMissing
from sidecar.node import capabilities, parse
from sidecar.node.command import Command, Result, Run
from sidecar.state.actions import AddAddress, CreateLink, DeleteLink, LinkAction, RemoveAddress, SetLinkUp
from sidecar.state.model import Link
from sidecar.state.plan import MARK

COMMAND = "ip"

#: Details have the kind of a link and its alias, which tell whether we created it.
_SHOW = (COMMAND, "-json", "-details", "address", "show")


class IpRoute:
    """Observes and changes the addresses of the network namespace this process is in."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._last: tuple[str, tuple[Link, ...]] | None = None

    def observe(self) -> tuple[Link, ...]:
        """Return all links with their addresses; raise a SidecarError if it could not look."""
        result = self._run(*_SHOW)
        if result.exit:
            _fail(_SHOW, result)
        # A node in sync answers the same again and again: it need not be read again.
        if self._last is None or self._last[0] != result.stdout:
            try:
                self._last = (result.stdout, parse.links(result.stdout))
            except ValueError as error:
                raise OutputUnreadable(_SHOW, "", f"cannot be understood: {error}") from error
        return self._last[1]

    def apply(self, action: LinkAction) -> None:
        """Carry out one action; raise a SidecarError if `ip` refuses."""
        argv, stdin = command(action)
        result = self._run(*argv, stdin=stdin)
        if result.exit:
            _fail(argv, result, stdin)


def command(action: LinkAction) -> Command:
    """Return the command that carries out the action, and its standard input."""
    match action:
        case CreateLink(interface, kind):
            # In one process, which ends its work even if we are killed: no link of ours stays without its mark.
            lines = (f"link add name {interface} type {kind}", f"link set dev {interface} alias {MARK} up", "")
            return (COMMAND, "-batch", "-"), "\n".join(lines)
        case SetLinkUp(interface):
            return (COMMAND, "link", "set", "dev", interface, "up"), ""
        case DeleteLink(interface):
            return (COMMAND, "link", "delete", "dev", interface), ""
        case AddAddress(address, scope):
            # The kernel gives an IPv6 address the scope that its prefix implies, whatever is asked for
            # (net/ipv6/addrconf.c). nodad: without it the address is not usable for its first second.
            extra = ("nodad",) if isinstance(address.ip, IPv6Address) else ("scope", scope)
            return (COMMAND, "address", "add", address.cidr, "dev", address.interface, *extra), ""
        case RemoveAddress(address):
            return (COMMAND, "address", "delete", address.cidr, "dev", address.interface), ""


def _fail(argv: tuple[str, ...], result: Result, stdin: str = "") -> NoReturn:
    failure = CommandError(argv, stdin, f"exited with {result.exit}", result.stderr)
    if lacking := capabilities.missing("CAP_NET_ADMIN"):
        raise PermissionMissing(lacking, str(failure))
    raise failure
