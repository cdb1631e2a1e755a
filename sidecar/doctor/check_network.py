"""doctor's checks of what should be on the node: interface, address, route, rules."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sidecar.doctor.findings import Finding, Level
from sidecar.doctor.view import Looks
from sidecar.errors import OutputUnreadable, SidecarError, pasteable
from sidecar.node import claims, iproute, proc_formats
from sidecar.state.actions import AddAddress, CreateLink, LinkAction, RemoveAddress, SetLinkUp
from sidecar.state.desired import port_of
from sidecar.state.model import Address, AddressState, Facts, Family, Link, LinkAddress, Rule
from sidecar.state.plan import LOOPBACK, MARK, plan

#: How many addresses are looked at one by one; more would take too long.
MOST_ADDRESSES: Final = 16

#: Who sets up interfaces, where it keeps a file for each by its index, and what stands in it if it does so.
_MANAGERS: Final = (
    ("systemd-networkd", Path("/run/systemd/netif/links"), "ADMIN_STATE=configured"),
    ("NetworkManager", Path("/run/NetworkManager/devices"), "managed=true"),
)


def interface(looks: Looks) -> Iterator[Finding]:
    """Yield whether the interface is there and up, whose it is, and who else manages it."""
    wanted = looks.desired.interface
    link = looks.observed().link(wanted) if looks.links() else None
    if link is None:
        kind = looks.desired.link_kind
        remedy = "" if kind else "create it, or set --interface to another one; see: ip link show"
        creation = (_command(CreateLink(wanted, kind)),) if kind else ()
        found = f"{wanted} does not exist"
        yield Finding(Level.FAULT, "interface", found, remedy, creation, {"interface": wanted})
        return
    facts: Facts = {"interface": link.name, "kind": link.kind}
    if not link.is_up:
        found = f"{link.name} is down: nothing reaches its addresses"
        yield Finding(Level.FAULT, "interface", found, commands=(_command(SetLinkUp(link.name)),), facts=facts)
    else:
        whose = "" if link.name == LOOPBACK else ", ours" if link.alias == MARK else ", not ours"
        yield Finding(Level.OK, "interface", f"{link.name} is up{whose}", facts=facts)
    if manager := _manager(link):
        found = f"{link.name} is managed by {manager}, which may remove addresses that it did not add"
        remedy = f"keep this program running, which adds them again at once; or tell {manager} to leave them"
        yield Finding(Level.NOTE, "interface", found, remedy, facts=facts)


def _manager(link: Link) -> str:
    """Return who manages a link, by the state files that they keep by its index; empty: nobody that can be seen."""
    index = str(socket.if_nametoindex(link.name))
    for name, directory, words in _MANAGERS:
        with contextlib.suppress(OSError):  # it does not run here, or does not know of the link
            if words in (directory / index).read_text():
                return name
    return ""


def address(looks: Looks) -> Iterator[Finding]:
    """Yield where each address is, and whether it can be used there."""
    looks.links()
    missing = {action.address for action in plan(looks.desired, looks.observed()) if isinstance(action, AddAddress)}
    link = looks.observed().link(looks.desired.interface)
    for each in looks.desired.addresses:
        places = looks.places(each)
        others = [(other, found) for other, found in places if not other.goes_by(each.interface)]
        # IPv4 takes the same address twice, with two prefix lengths: the exact one counts.
        exact_first = sorted(places, key=lambda place: place[1].prefix_length != each.prefix_length)
        here = next((found for other, found in exact_first if other is link), None)
        if each in missing or here is None:
            yield _missing(looks, each, here, [other.name for other, _ in others])
            continue
        yield from _state(looks, each, here)
        for other, found in others:
            remove = RemoveAddress(Address(found.ip, found.prefix_length, other.name))
            text = f"{found.cidr} is on {other.name} as well"
            yield Finding(
                Level.WARNING, "address", text, "", (_command(remove),), {**each.facts, "interface": other.name}
            )


def _missing(looks: Looks, wanted: Address, here: LinkAddress | None, elsewhere: list[str]) -> Finding:
    """Return that an address is missing, what is there instead, and what adds it."""
    commands = [_command(AddAddress(wanted, looks.desired.scope))]
    found = f"{wanted.cidr} is not on {wanted.interface}"
    switch = Path(f"/proc/sys/net/ipv6/conf/{wanted.interface}/disable_ipv6")
    with contextlib.suppress(OSError):  # the interface is missing too, or the kernel has no IPv6
        if wanted.ip.version == 6 and switch.read_text().strip() == "1":  # noqa: PLR2004 - the protocol's name
            found += ", as IPv6 is disabled there"
            commands.insert(0, f"echo 0 > {switch}")
    if here:
        found += f", but as {here.cidr}{' with a peer' if here.is_peer else ''}"
    found += "".join(f"; it is on {name}" for name in elsewhere)
    return Finding(Level.FAULT, "address", found, commands=tuple(commands), facts=wanted.facts)


def _state(looks: Looks, wanted: Address, here: LinkAddress) -> Iterator[Finding]:
    facts: Facts = wanted.facts
    again = _command(RemoveAddress(wanted)), _command(AddAddress(wanted, looks.desired.scope))
    if here.state is AddressState.DUPLICATE:
        found = f"another host on the link has {wanted} (dadfailed): it is not used here"
        yield Finding(Level.FAULT, "address", found, "remove it on the other host first", again, facts)
    elif here.state is AddressState.TENTATIVE:
        found = f"{wanted} is tentative: the kernel still finds out whether another host on the link has it"
        yield Finding(Level.FAULT, "address", found, commands=again, facts=facts)
    elif here.is_peer or here.prefix_length != wanted.prefix_length:
        found = f"{here.cidr} on {wanted.interface}, and not as {wanted.cidr}: it is taken as it is"
        yield Finding(Level.NOTE, "address", found, facts=facts)
    elif here.ip.version == 4 and here.scope != looks.desired.scope:  # noqa: PLR2004 - the protocol's name
        found = f"{wanted} has the scope {here.scope}, and not {looks.desired.scope}"
        yield Finding(Level.WARNING, "address", found, commands=again, facts=facts)
    else:
        yield Finding(Level.OK, "address", f"{wanted}, scope {here.scope}", facts=facts)


def route(looks: Looks) -> Iterator[Finding]:
    """Yield whether packets to each address stay on this node, as the kernel's tables have it."""
    present = [
        each
        for each in looks.desired.addresses
        if any(found.state is AddressState.USABLE for _, found in looks.places(each))
    ]
    for each in present[:MOST_ADDRESSES]:
        argv = (iproute.COMMAND, "-json", "route", "get", str(each.ip))
        result = looks.run(*argv)
        if result.exit:
            reason = result.stderr.strip().splitlines()
            found, kind = f"{each.ip} cannot be reached: {reason[0] if reason else ''}", ""
        else:
            kind, leads = _read_route(argv, result.stdout)
            found = f"{each.ip} does not stay on this node: {kind} {leads}"
        if kind == "local":
            yield Finding(Level.OK, "route", f"{each.ip} is local")
        else:
            remedy = f"if that does not help, see: ip -{each.ip.version} route show table all {each.ip}"
            yield Finding(Level.FAULT, "route", found, remedy, _detour(looks, each), each.facts)
    if len(present) > MOST_ADDRESSES:
        found = f"not looked at, to be done in time: {len(present) - MOST_ADDRESSES} more addresses"
        yield Finding(Level.UNKNOWN, "route", found)


def _read_route(argv: tuple[str, ...], text: str) -> tuple[str, str]:
    try:
        return proc_formats.route(text)
    except ValueError as error:
        raise OutputUnreadable(argv, "", f"cannot be understood: {error}") from error


def _detour(looks: Looks, wanted: Address) -> tuple[str, ...]:
    """Return what takes away the rules that come before the table local, or else what mends that table."""
    family = f"-{wanted.ip.version}"
    result = looks.run(iproute.COMMAND, family, "-json", "rule", "show")
    with contextlib.suppress(ValueError):
        if before := proc_formats.rules_before_local(result.stdout, wanted.ip):
            return tuple(f"ip {family} rule delete priority {rule.priority} {rule.text}" for rule in before)
    # The kernel routes an address that is added; a route of another kind to it would come first all the same.
    shown = looks.run(iproute.COMMAND, family, "-json", "route", "show", "table", "local", "exact", wanted.cidr)
    kinds = proc_formats.routes_that_are_not_local(shown.stdout)
    return (
        *(f"ip {family} route delete {kind} {wanted.cidr} table local" for kind in kinds),
        _command(RemoveAddress(wanted)),
        _command(AddAddress(wanted, looks.desired.scope)),
    )


def rules(looks: Looks) -> Iterator[Finding]:
    """Yield which of our rules are there, how often, and which have no effect where they stand."""
    if not looks.desired.rules:
        yield Finding(Level.OK, "rules", "none are wanted: --setup-iptables is not set")
        return
    for family in looks.backends:
        wanted = [rule for rule in looks.desired.rules if rule.family == family]
        try:
            seen = looks.seen(family)
        except SidecarError as error:
            yield Finding(Level.UNKNOWN, "rules", f"the IPv{family} rules could not be looked at: {error}",
                          node_lacks=error.exit_code == 3)  # noqa: PLR2004 - the exit code of a NodeError # fmt: skip
            continue
        yield from (Finding(Level.UNKNOWN, "rules", str(unreadable)) for unreadable in seen.errors)
        wrong = list(_wrong(looks, family, wanted))
        yield from wrong
        yield from _left_over(looks, family)
        good = len([rule for rule in wanted if seen.copies.get(rule)]) - len(
            {each.facts.get("rule") for each in wrong if each.facts.get("copies") != 0}
        )
        if good:
            facts: Facts = {"rules": good, "backend": looks.backends[family].command}
            yield Finding(
                Level.OK, "rules", f"{good} of {len(wanted)} IPv{family} rules are as they should be", facts=facts
            )


def _wrong(looks: Looks, family: Family, wanted: list[Rule]) -> Iterator[Finding]:
    seen, command = looks.seen(family), looks.backends[family].command
    verb = "-I" if looks.desired.insert else "-A"
    for rule in wanted:
        if rule not in seen.copies:
            continue  # told as an error
        copies = seen.copies[rule]
        facts: Facts = {**rule.facts, "copies": copies}
        if copies == 0:
            addition = _words(command, verb, rule)
            yield Finding(Level.FAULT, "rules", f"missing: {rule}", commands=(addition,), facts=facts)
        elif copies > 1:
            deletions = (_words(command, "-D", rule),) * (copies - 1)
            yield Finding(Level.WARNING, "rules", f"{copies} copies: {rule}", commands=deletions, facts=facts)
        hindrance = seen.hindrances.get(rule)
        if hindrance and hindrance.certain:
            level = Level.FAULT if rule.match[-1] == "ACCEPT" else Level.WARNING
            found = f"without effect behind `{hindrance.line}`: {rule}"
            remedy = "" if looks.desired.insert else "to keep it there, run with --rule-position=insert"
            move = _words(command, "-D", rule), _words(command, "-I", rule)
            yield Finding(level, "rules", found, remedy, move, {**facts, "behind": hindrance.line})
        elif hindrance:
            found = f"perhaps without effect behind `{hindrance.line}`: {rule}"
            yield Finding(Level.NOTE, "rules", found, facts={**facts, "behind": hindrance.line})


def _left_over(looks: Looks, family: Family) -> Iterator[Finding]:
    """Yield the rules for our addresses and other ports that no running instance wants: of an earlier setting."""
    command = looks.backends[family].command
    for each in (each for each in looks.desired.addresses if each.ip.version == family):
        found: dict[int, list[str]] = {}
        for table, chains in (("raw", ("PREROUTING", "OUTPUT")), ("filter", ("INPUT", "OUTPUT"))):
            # To ask legacy for a table that is not there would create it.
            is_absent = looks.backends[family].sees(table) is False
            listed = {} if is_absent else looks.listed(family, table, chains)
            for line in (line for lines in listed.values() for line in lines):
                port = port_of(line, each)
                if port not in (None, looks.port):
                    found.setdefault(port, []).append(f"{command} -w 5 -t {table} {line.replace('-A', '-D', 1)}")
        for port, deletions in found.items():
            if not _is_claimed(f"{each.ip}:{port}"):
                text = f"{len(deletions)} rules for {each.ip} and port {port} are there: of an earlier --port?"
                facts: Facts = {**each.facts, "port": port}
                yield Finding(Level.WARNING, "rules", text, commands=tuple(deletions), facts=facts)


def _is_claimed(name: str) -> bool:
    with contextlib.suppress(OSError):  # no instance has run here, or only root can see
        return bool(claims.held([name]))
    return False


def _words(command: str, verb: str, rule: Rule) -> str:
    return f"{command} -w 5 -t {rule.table} {verb} {rule.chain} {' '.join(rule.match)}"


def _command(action: LinkAction) -> str:
    return pasteable(*iproute.command(action))
