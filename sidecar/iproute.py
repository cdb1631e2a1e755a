"""Addresses and links, by `ip`."""

from ipaddress import IPv6Address
from typing import NoReturn

from sidecar import parse, privileges
from sidecar.command import Result, Run
from sidecar.errors import CommandError, OutputUnreadable, PermissionMissing
from sidecar.model import AddAddress, Address, AddressAction, RemoveAddress

COMMAND = "ip"

_SHOW = (COMMAND, "-json", "address", "show")


class IpRoute:
    """Observes and changes the addresses of the network namespace this process is in."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def observe(self) -> tuple[frozenset[str], frozenset[Address]]:
        """Return the names of all links and every address on them; raise a SidecarError if it could not look."""
        result = self._run(*_SHOW)
        if result.exit:
            _fail(_SHOW, result)
        try:
            return parse.links_and_addresses(result.stdout)
        except ValueError as error:
            raise OutputUnreadable(_SHOW, "", f"cannot be understood: {error}") from error

    def apply(self, action: AddressAction) -> None:
        """Carry out one action; raise a SidecarError if `ip` refuses."""
        argv = arguments(action)
        result = self._run(*argv)
        if result.exit:
            _fail(argv, result)


def arguments(action: AddressAction) -> tuple[str, ...]:
    """Return the command that carries out the action."""
    match action:
        case AddAddress(address, scope):
            # The kernel gives an IPv6 address the scope that its prefix implies, whatever is asked for
            # (net/ipv6/addrconf.c). nodad: without it the address is not usable for its first second.
            extra = ("nodad",) if isinstance(address.ip, IPv6Address) else ("scope", scope)
            return (COMMAND, "address", "add", address.cidr, "dev", address.interface, *extra)
        case RemoveAddress(address):
            return (COMMAND, "address", "delete", address.cidr, "dev", address.interface)


def _fail(argv: tuple[str, ...], result: Result) -> NoReturn:
    failure = CommandError(argv, "", f"exited with {result.exit}", result.stderr)
    if lacking := privileges.missing("CAP_NET_ADMIN"):
        raise PermissionMissing(lacking, str(failure))
    raise failure
