"""Observes and changes addresses and links with `ip`."""

import json
from ipaddress import IPv6Address, ip_address
from typing import Any, Final, NoReturn

from sidecar.errors import CommandError, OutputUnreadable, PermissionMissing
from sidecar.node import capabilities
from sidecar.node.command import Command, Result, Run
from sidecar.state.actions import (
    AddAddress,
    CreateLink,
    DeleteLink,
    DeprecateAddress,
    LinkAction,
    RemoveAddress,
    SetLinkUp,
)
from sidecar.state.model import AddressState, Link, LinkAddress
from sidecar.state.plan import MARK

COMMAND = "ip"

#: How an IPv6 address is added. preferred_lft 0 deprecates it (net/ipv6/addrconf.c): the kernel never chooses it as a
#: source address while there is another. nodad: without it the address is not usable for its first second.
_IPV6: Final = ("nodad", "preferred_lft", "0")

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
        # A node in sync gives the same output each time: parse it only when it changes.
        if self._last is None or self._last[0] != result.stdout:
            try:
                self._last = (result.stdout, parse_links(result.stdout))
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
            # In one process, which finishes even if we are killed: no link of ours stays without its mark.
            lines = (f"link add name {interface} type {kind}", f"link set dev {interface} alias {MARK} up", "")
            return (COMMAND, "-batch", "-"), "\n".join(lines)
        case SetLinkUp(interface):
            return (COMMAND, "link", "set", "dev", interface, "up"), ""
        case DeleteLink(interface):
            return (COMMAND, "link", "delete", "dev", interface), ""
        case AddAddress(address, scope):
            # The kernel gives an IPv6 address the scope that its prefix implies, whatever is asked for
            # (net/ipv6/addrconf.c).
            extra = _IPV6 if isinstance(address.ip, IPv6Address) else ("scope", scope)
            return (COMMAND, "address", "add", address.cidr, "dev", address.interface, *extra), ""
        case DeprecateAddress(address):
            return (COMMAND, "address", "change", address.cidr, "dev", address.interface, *_IPV6), ""
        case RemoveAddress(address):
            return (COMMAND, "address", "delete", address.cidr, "dev", address.interface), ""


def _fail(argv: tuple[str, ...], result: Result, stdin: str = "") -> NoReturn:
    failure = CommandError(argv, stdin, f"exited with {result.exit}", result.stderr)
    if lacking := capabilities.missing("CAP_NET_ADMIN"):
        raise PermissionMissing(lacking, str(failure))
    raise failure


def parse_links(text: str) -> tuple[Link, ...]:
    """Read `ip -json -details address show`.

    Only the fields that decide something are read, by name; iproute2 adds others from release to release.
    Some releases print an empty object for a link that a filter left out: it is passed over.
    """
    try:
        shown = list(filter(None, json.loads(text)))
        lower = {link[name] for link in shown for name in ("link", "master") if link.get(name)}
        return tuple(_link(link, has_dependents=link["ifname"] in lower or "master" in link) for link in shown)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not the output of `ip -json address show` ({type(error).__name__}: {error})") from error


def _link(shown: dict[str, Any], *, has_dependents: bool) -> Link:
    own = _link_local(shown.get("address", ""))
    return Link(
        name=shown["ifname"],
        altnames=tuple(shown.get("altnames", ())),
        kind=shown.get("linkinfo", {}).get("info_kind", ""),
        alias=shown.get("ifalias", ""),
        is_up="UP" in shown["flags"],
        addresses=tuple(_address(info, own) for info in shown["addr_info"]),
        has_dependents=has_dependents,
    )


def _link_local(hardware: str) -> str:
    """Return the address that the kernel gives a link with this hardware address (RFC 4291, appendix A)."""
    parts = hardware.split(":")
    if len(parts) != 6:  # noqa: PLR2004 - bytes of an Ethernet address
        return ""
    first = f"{int(parts[0], 16) ^ 2:02x}"
    return str(ip_address(f"fe80::{first}{parts[1]}:{parts[2]}ff:fe{parts[3]}:{parts[4]}{parts[5]}"))


def _address(info: dict[str, Any], own: str) -> LinkAddress:
    state = AddressState.USABLE
    if info.get("dadfailed"):
        state = AddressState.DUPLICATE
    elif info.get("tentative") and not info.get("optimistic"):
        state = AddressState.TENTATIVE
    return LinkAddress(
        ip_address(info["local"]),
        int(info["prefixlen"]),
        info["scope"],
        state,
        is_peer="address" in info,
        made_by_kernel=info["local"] == own,
        is_deprecated=bool(info.get("deprecated")),
    )
