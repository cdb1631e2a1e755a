"""Observes and changes addresses and links with `ip`."""

import contextlib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from ipaddress import IPv6Address, ip_address
from itertools import groupby
from typing import Any, Final, TypeVar

from sidecar.errors import CommandError, NotIproute2, OutputUnreadable, PermissionMissing, SidecarError
from sidecar.node import capabilities
from sidecar.node.command import Command, Result, Run
from sidecar.state.actions import (
    AddAddress,
    CreateLink,
    DeleteLink,
    DeprecateAddress,
    LinkAction,
    Outcome,
    RemoveAddress,
    SetLinkUp,
)
from sidecar.state.model import AddressState, History, Link, LinkAddress
from sidecar.state.plan import MARK
from sidecar.text import quoted

T = TypeVar("T")

COMMAND = "ip"

#: How an IPv6 address is added. preferred_lft 0 deprecates it (net/ipv6/addrconf.c): the kernel never chooses it as a
#: source address while there is another. nodad: without it the address is not usable for its first second.
_IPV6: Final = ("nodad", "preferred_lft", "0")

#: Where the next link begins. A quote in a name or an alias is escaped, so that they cannot look like this.
_BEGINNING: Final = re.compile(r'(?:^|[\[,])\s*(?=\{"ifindex":)')
_NAME: Final = re.compile(r'"ifname":"([^"\\]+)"')

#: What a line of `ip -batch` takes as it is: no quote, comment or escape.
_PLAIN_NAME: Final = re.compile(r"[\w.:@+-]+", re.ASCII)

#: What `ip -batch` says after the errors of a line: its number.
_LINE_FAILED: Final = re.compile(r"Command failed -:(\d+)")

#: What BusyBox says to an option that it does not know: its name and its usage.
_USAGE: Final = re.compile("^.*(?:busybox|usage:).*", re.IGNORECASE | re.MULTILINE)
_RELEASE: Final = re.compile(r"iproute2-[^,\s]+")
_MAC: Final = re.compile("[0-9a-f]{2}(:[0-9a-f]{2}){5}")

#: Details have the kind of a link and its alias, which tell whether we created it.
_SHOW = (COMMAND, "-json", "-details", "address", "show")


class IpRoute:
    """Observes and changes the addresses of the network namespace this process is in."""

    def __init__(self, run: Run) -> None:
        #: What earlier looks have shown of the interface; passes and the cleanup of one run share it.
        self.history = History()
        self._run = run
        self._last: tuple[str, tuple[Link, ...]] | None = None

    def observe(self) -> tuple[Link, ...]:
        """Return all links with their addresses; raise a SidecarError if it could not look."""
        result = self._run(*_SHOW)
        if result.exit:
            self._require_iproute2()
            raise _failure(_SHOW, "", result)
        # A node in sync gives the same output each time: parse it only when it changes.
        if self._last is None or self._last[0] != result.stdout:
            try:
                self._last = (result.stdout, parse_links(result.stdout))
            except ValueError as error:
                raise OutputUnreadable(_SHOW, "", error) from error
        return self._last[1]

    def _require_iproute2(self) -> None:
        """Raise NotIproute2 if `ip` is another program: its failure would say nothing to the point."""
        with contextlib.suppress(CommandError):
            release(self._run)

    def apply(self, actions: Sequence[LinkAction]) -> Iterator[tuple[LinkAction, Outcome]]:
        """Carry out actions in order, and yield what came of each; several on addresses take one process.

        If that process does not work at all, yield its failure for the first of them only.
        """
        for goes_together, group in groupby(actions, key=_goes_together):
            some = list(group)
            if goes_together and len(some) > 1:
                yield from self._apply_together(some)
            else:
                yield from ((action, self._apply_one(action)) for action in some)

    def _apply_one(self, action: LinkAction) -> Outcome:
        argv, stdin = command(action)
        try:
            result = self._run(*argv, stdin=stdin)
        except SidecarError as error:
            return error
        return _failure(argv, stdin, result) if result.exit else 1

    def _apply_together(self, actions: Sequence[LinkAction]) -> Iterator[tuple[LinkAction, Outcome]]:
        """Carry out actions by one process; with -force it goes on after one that fails (man 8 ip)."""
        commands = [command(action)[0] for action in actions]
        argv = (COMMAND, "-force", "-batch", "-")
        stdin = "".join(f"{' '.join(words[1:])}\n" for words in commands)
        try:
            result = self._run(*argv, stdin=stdin)
        except SidecarError as error:
            yield actions[0], error
            return
        said = _said_of_lines(result.stderr) if result.exit else {}
        if result.exit and not said:  # `ip` ends at a line that it cannot parse, and does not say at which
            yield from ((action, self._apply_one(action)) for action in actions)
            return
        for number, action in enumerate(actions, start=1):
            failed = Result(result.exit, "", said[number]) if number in said else None
            yield action, _failure(commands[number - 1], "", failed) if failed else 1


def release(run: Run) -> str:
    """Return the release of iproute2; raise NotIproute2 if `ip` is another program, such as BusyBox's.

    Only a program that works shows what it is: one that fails in another way is not judged by that.
    """
    result = run(COMMAND, "-V")
    if found := _RELEASE.search(result.stdout):
        return found[0]
    said = (result.stderr or result.stdout).strip()
    if usage := _USAGE.search(said):
        raise NotIproute2(quoted(usage[0]))
    raise OutputUnreadable((COMMAND, "-V"), "", f"no release of iproute2: {_shown(said)}")


def command(action: LinkAction) -> Command:
    """Return the command that carries out the action, and its standard input."""
    match action:
        case CreateLink(interface, kind):
            # In one process, which finishes even if we are killed: no link stays without its mark.
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


def _goes_together(action: LinkAction) -> bool:
    """Whether an action can be a line of `ip -batch` beside others."""
    return isinstance(action, AddAddress | DeprecateAddress | RemoveAddress) and bool(
        _PLAIN_NAME.fullmatch(action.address.interface)
    )


def _said_of_lines(stderr: str) -> dict[int, str]:
    """Return what `ip -batch` said of each line that failed, by its number."""
    said: dict[int, str] = {}
    errors: list[str] = []
    for line in stderr.splitlines():
        if found := _LINE_FAILED.fullmatch(line):
            said[int(found[1])] = "\n".join(errors)
            errors.clear()
        else:
            errors.append(line)
    return said


def _failure(argv: tuple[str, ...], stdin: str, result: Result) -> SidecarError:
    failure = CommandError(argv, stdin, f"exited with {result.exit}", result.stderr)
    if lacking := capabilities.missing("CAP_NET_ADMIN"):
        return PermissionMissing(lacking, str(failure))
    return failure


def parse_links(text: str) -> tuple[Link, ...]:
    """Read `ip -json -details address show`, link by link: one that cannot be read leaves the others as they are.

    Only the fields that decide something are read, by name; iproute2 adds others from release to release.
    Some releases print an empty object for a link that a filter left out: it is passed over.
    """
    shown, unreadable = _objects(text)
    lower = {link[name] for link in shown for name in ("link", "master") if isinstance(link.get(name), str)}
    links = [_link(link, lower, unreadable) for link in shown]
    links += [Link(_name(each), problem=f"`ip` prints no JSON for it: {quoted(each)}") for each in unreadable]
    if not any(link.name for link in links):
        raise ValueError(f"not the output of `ip -json address show`: {_shown(text)}")
    return tuple(links)


def _shown(text: str) -> str:
    return quoted(text) if text.strip() else "it printed nothing"


def _objects(text: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the objects of a JSON array, and the text of those that are none."""
    found = _read(text)
    if isinstance(found, str):
        found = [_read(part) for part in filter(None, _BEGINNING.split(text.strip().removesuffix("]")))]
        if not text.rstrip().endswith("]}]"):  # of the last address, of its link, of the list
            found.append("the list ends in the middle")
    if not isinstance(found, list):
        return [], [text]
    return [each for each in found if each and isinstance(each, dict)], [
        str(each) for each in found if not isinstance(each, dict)
    ]


def _read(text: str) -> object:
    """Return the value of a JSON text, or the text itself if it is none."""
    try:
        # Not strict: control characters in names and aliases are printed as they are.
        value: object = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return text
    return value


def _name(unreadable: str) -> str:
    found = _NAME.search(unreadable)
    return found[1] if found else ""


def _link(shown: dict[str, Any], lower: Collection[str], unreadable: Sequence[str]) -> Link:
    faults: list[str] = []

    def field(name: str, default: T) -> T:
        value = shown.get(name, default)
        if isinstance(value, type(default)):
            return value
        faults.append(f"{name} is {quoted(str(value))}")
        return default

    shown = {"ifname": None, "flags": None, "addr_info": None, **shown}
    name = field("ifname", "")
    linkinfo: dict[str, Any] = field("linkinfo", {})
    # Of other kinds the hardware address is something else, for example an IPv6 address.
    own = _link_local(field("address", "")) if field("link_type", "") == "ether" else ""
    addresses = []
    infos: list[Any] = field("addr_info", [])
    for info in infos:
        try:
            if info and info.get("family", "inet") in ("inet", "inet6"):
                addresses.append(_address(info, own))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            faults.append(f"an address is {quoted(str(info))}")
    return Link(
        name=name,
        altnames=tuple(map(str, field("altnames", []))),
        index=field("ifindex", 0),
        kind=str(linkinfo.get("info_kind", "")),
        alias=field("ifalias", ""),
        is_up="UP" in field("flags", ["UP"]),
        addresses=tuple(addresses),
        has_dependents=name in lower or "master" in shown or any(f'"{name}"' in each for each in unreadable),
        problem=", ".join(faults),
    )


def _link_local(hardware: str) -> str:
    """Return the address that the kernel gives a link with this Ethernet address (RFC 4291, appendix A)."""
    if not _MAC.fullmatch(hardware):
        return ""
    parts = hardware.split(":")
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
        str(info["scope"]),
        state,
        is_peer="address" in info,
        made_by_kernel=info["local"] == own,
        is_deprecated=bool(info.get("deprecated")),
    )
