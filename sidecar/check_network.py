"""doctor's checks of what should be on the node, and of what stands in its way: interface, address, rules, others'."""

import contextlib
import shlex
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from sidecar import iproute, procparse
from sidecar.errors import OutputUnreadable, SidecarError, pasteable
from sidecar.findings import Finding, Level
from sidecar.looks import Looks
from sidecar.model import (
    AddAddress,
    Address,
    AddressState,
    CreateLink,
    Facts,
    Family,
    Link,
    LinkAction,
    LinkAddress,
    RemoveAddress,
    Rule,
    SetLinkUp,
)
from sidecar.plan import LOOPBACK, MARK, plan
from sidecar.traverse import Met, Traffic, Way, way

#: How many addresses are looked at one by one; more would take too long.
MOST_ADDRESSES: Final = 16

_REDIRECTING: Final = frozenset(("DNAT", "REDIRECT", "NETMAP"))
_BLOCKING: Final = frozenset(("DROP", "REJECT"))

#: What begins the names of a policy engine's chains.
_POLICY_CHAINS: Final = {"cali-": "Calico", "KUBE-ROUTER-": "kube-router", "KUBE-NWPLCY-": "kube-router"}

#: Whose chains in nat begin so: a rule that is taken away there comes back.
_OWNED: Final = {"KUBE-": "a Service", "DOCKER": "a container", "CNI-": "a pod's hostPort", "cali-": "Calico"}

#: Said of what depends on a look that has failed, once that failure is told.
_BLIND: Final = "rules cannot be looked at, as told above"

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
            elsewhere = "".join(f"; it is on {other.name}" for other, _ in others)
            addition = _command(AddAddress(each, looks.desired.scope))
            text = f"{each.cidr} is not on {each.interface}{elsewhere}"
            yield Finding(Level.FAULT, "address", text, commands=(addition,), facts=each.facts)
            continue
        yield from _state(looks, each, here)
        for other, found in others:
            remove = RemoveAddress(Address(found.ip, found.prefix_length, other.name))
            text = f"{found.cidr} is on {other.name} as well"
            yield Finding(
                Level.WARNING, "address", text, "", (_command(remove),), {**each.facts, "interface": other.name}
            )


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
            deletions = _deletions(looks, each)
            remedy = "" if deletions else f"see: ip -{each.ip.version} route show table all {each.ip}"
            yield Finding(Level.FAULT, "route", found, remedy, deletions, each.facts)
    if len(present) > MOST_ADDRESSES:
        found = f"not looked at, to be done in time: {len(present) - MOST_ADDRESSES} more addresses"
        yield Finding(Level.UNKNOWN, "route", found)


def _read_route(argv: tuple[str, ...], text: str) -> tuple[str, str]:
    try:
        return procparse.route(text)
    except ValueError as error:
        raise OutputUnreadable(argv, "", f"cannot be understood: {error}") from error


def _deletions(looks: Looks, wanted: Address) -> tuple[str, ...]:
    """Return what takes away the rules that come before the table local."""
    family = f"-{wanted.ip.version}"
    result = looks.run(iproute.COMMAND, family, "-json", "rule", "show")
    try:
        before = procparse.rules_before_local(result.stdout, wanted.ip)
    except ValueError:
        before = ()
    return tuple(f"ip {family} rule delete priority {rule.priority} {rule.text}" for rule in before)


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


def _words(command: str, verb: str, rule: Rule) -> str:
    return f"{command} -w 5 -t {rule.table} {verb} {rule.chain} {' '.join(rule.match)}"


def taken(looks: Looks) -> Iterator[Finding]:
    """Yield whether somebody else takes the traffic first: IPVS, or a rule in nat that sends it elsewhere."""
    services = frozenset[tuple[object, int]]()
    path = Path("/proc/net/ip_vs")
    if path.exists():  # only where IPVS is loaded
        services = frozenset(procparse.virtual_servers(path.read_text()))
    for each in looks.desired.addresses:
        if (each.ip, looks.port) in services:
            found = f"IPVS takes {each.ip} port {looks.port}: it is the address of a Service (kube-proxy in mode ipvs)"
            remedy = "choose an address that is no Service's; see: ipvsadm -Ln"
            yield Finding(Level.FAULT, "taken", found, remedy, facts=each.facts)
    yield from _each(looks, "taken", _redirected)


def _redirected(looks: Looks, wanted: Address) -> Iterator[Finding]:
    traffic = Traffic(wanted.cidr, looks.port, inward=True, untracked=False)
    starts = dict.fromkeys(("PREROUTING", "OUTPUT"), traffic)
    listings, left_out = looks.chains("nat", starts, wanted.ip.version, certain=False)
    untracked = looks.is_untracked(wanted)
    told = set()
    for start in starts:
        found = way(listings, start, traffic) if start in listings else Way((), ends=False)
        certain, perhaps = found.certainly(_REDIRECTING), found.perhaps(_REDIRECTING)
        if (met := certain or perhaps) and met.line not in told:
            told.add(met.line)
            yield _redirection(looks, wanted, met, certain=bool(certain), untracked=untracked)
    if left_out:
        yield Finding(Level.UNKNOWN, "taken", f"whether rules in nat take {wanted.ip}: {left_out}")
    elif not told:
        yield Finding(Level.OK, "taken", f"no rule of iptables in nat, and no IPVS, takes {looks.where(wanted)}")


def _redirection(looks: Looks, wanted: Address, met: Met, *, certain: bool, untracked: bool) -> Finding:
    text = f"`{met.line}` in nat {'takes' if certain else 'may take'} what goes to {looks.where(wanted)}"
    if untracked:
        return Finding(Level.NOTE, "taken", f"{text}, but for our NOTRACK rules: untracked traffic is not rewritten")
    level = Level.FAULT if certain else Level.WARNING
    facts: Facts = {"rule": met.line}
    remedy = "" if looks.desired.rules else "or run with --setup-iptables instead: untracked traffic is not rewritten"
    if owner := next((name for prefix, name in _OWNED.items() if met.chain.startswith(prefix)), None):
        remedy = f"choose an address and port that {owner} does not use; {remedy}".removesuffix("; ")
        return Finding(level, "taken", text, remedy, facts=facts)
    family: Family = wanted.ip.version
    _, chain, *words = shlex.split(met.line)
    deletion = f"{looks.backends[family].command} -w 5 -t nat -D {chain} {shlex.join(words)}"
    return Finding(level, "taken", text, remedy, commands=(deletion,), facts=facts)


def policies(looks: Looks) -> Iterator[Finding]:
    """Yield whether chains of others, before our rules, drop the traffic because it is not tracked, or at all."""
    yield from _each(looks, "policies", _policies)


def _each(looks: Looks, topic: str, check: Callable[[Looks, Address], Iterator[Finding]]) -> Iterator[Finding]:
    """Look at one address after the other, as far as there is time."""
    addresses = looks.desired.addresses
    for number, each in enumerate(addresses):
        if number and looks.is_late():
            left = f"{each.ip}" + (f" and {len(addresses) - number - 1} more" if number + 1 < len(addresses) else "")
            yield Finding(Level.UNKNOWN, topic, f"not looked at, to be done in time: {left}")
            return
        if looks.could_look(each.ip.version):
            yield from check(looks, each)
        else:
            yield Finding(Level.UNKNOWN, topic, f"what rules of others do to {each.ip}: {_BLIND}")


def _policies(looks: Looks, each: Address) -> Iterator[Finding]:
    untracked = looks.is_untracked(each)
    starts = {
        chain: Traffic(each.cidr, looks.port, inward=chain == "INPUT", untracked=untracked)
        for chain in ("INPUT", "OUTPUT")
    }
    listings, left_out = looks.chains("filter", starts, each.ip.version, certain=True)
    faults = [
        (chain, met)
        for chain, traffic in starts.items()
        if chain in listings and (met := way(listings, chain, traffic).certainly(_BLOCKING))
        and not (looks.desired.rules and met.chain == chain)  # that one is told with our rules
    ]  # fmt: skip
    for chain, met in faults:
        yield _dropped(looks, each, chain, met, untracked=untracked)
    engines = {
        name
        for lines in listings.values()
        for line in lines
        for prefix, name in _POLICY_CHAINS.items()
        if f" {prefix}" in line
    }
    if engines and untracked:
        found = (
            f"{' and '.join(sorted(engines))} has policy chains: where they rely on connection tracking, replies "
            f"from {each.ip} are no replies to them, as they are untracked"
        )
        yield Finding(Level.NOTE, "policies", found, "allow it by address and port")
    elif not faults and not left_out:
        yield Finding(Level.OK, "policies", f"no rule is known to drop what goes to or comes from {each.ip}")
    if left_out:
        yield Finding(Level.UNKNOWN, "policies", f"whether other chains drop it: {left_out}")


def _dropped(looks: Looks, wanted: Address, chain: str, met: Met, *, untracked: bool) -> Finding:
    what = "untracked traffic" if untracked else "traffic"
    way_of = f"to {wanted.ip}" if chain == "INPUT" else f"from {wanted.ip}"
    found = f"`{met.line}` drops {what} {way_of}, before our rule in {chain} lets it pass"
    if not looks.desired.rules:
        found = f"`{met.line}` drops traffic {way_of}"
        return Finding(Level.FAULT, "policies", found, "let it pass: --setup-iptables", facts={"rule": met.line})
    remedy = "run with --rule-position=insert, or allow the address and port there"
    return Finding(Level.WARNING, "policies", found, remedy, facts={"rule": met.line})


def _command(action: LinkAction) -> str:
    return pasteable(*iproute.command(action))
