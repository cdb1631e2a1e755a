"""The check of which iptables is in use."""

from collections.abc import Iterator, Mapping
from typing import Final

from sidecar.doctor.findings import Finding, Level, counted
from sidecar.doctor.view import View
from sidecar.errors import SidecarError, pasteable
from sidecar.node import backends_shown, releases
from sidecar.node.instances import Instance
from sidecar.node.iptables import Iptables
from sidecar.node.programs import path_of
from sidecar.state.actions import RemoveRule
from sidecar.state.model import IPV4, BackendInUse, Facts, Family, IPAddress, Rule, RuleSet
from sidecar.text import quoted

_LONGEST: Final = 300  # characters of an error that a finding shows
_WAIT: Final = 5.0  # seconds for which a command that is shown waits for the xtables lock


def backend(view: View) -> Iterator[Finding]:
    """Yield which iptables is in use and why, what is wrong with it, and what is in the other backend."""
    for family, each in view.backends.items():
        if not all(map(path_of, each.programs)):
            continue  # the check of the commands says so
        try:
            view.seen(family)
        except SidecarError as error:
            yield Finding(Level.UNKNOWN, f"cannot tell which is in use for IPv{family}: {quoted(str(error), _LONGEST)}")
            continue
        if each.in_use and each.release:
            yield from _in_use(each.in_use, releases.faults(each.release, family))
            yield from _default(view, each.in_use)
        yield from _other_backend(view, family)


def _in_use(used: BackendInUse, faults: list[str]) -> Iterator[Finding]:
    name = f"{used.command} {used.version}"
    facts: Facts = {"family": used.family, "backend": used.command, "version": used.version}
    yield Finding(Level.OK, f"IPv{used.family} rules by {name}: {used.reason}", facts=facts)
    if used.contrary:
        found = f"the sidecar that runs here uses {used.command}, but the node's other components use the other backend"
        remedy = "restart the sidecar, unless its log says that the rules move; or set --iptables-backend"
        yield Finding(Level.WARNING, f"{found} ({used.contrary})", remedy, facts=facts)
    for fault in faults:
        level = Level.NOTE if used.is_legacy else Level.WARNING
        remedy = "use another release; this program counts rules in listings instead, other programs may not"
        yield Finding(level, f"{name}: {fault}", remedy, facts=facts)


def _default(view: View, used: BackendInUse) -> Iterator[Finding]:
    """Yield a note if the command that a person would type is of the other backend."""
    name = "iptables" if used.family == IPV4 else "ip6tables"
    if used.command == name or not path_of(name):
        return
    try:
        release = releases.parse(view.run(name, "--version").stdout)
    except (SidecarError, ValueError) as error:
        yield Finding(
            Level.UNKNOWN, f"cannot tell whether {name} on this node is nft or legacy: {quoted(str(error), _LONGEST)}"
        )
        return
    if release.is_legacy != used.is_legacy:
        kind = "legacy" if release.is_legacy else "nft"
        found = f"{name} on this node is {kind}; use {used.command} to list the rules that are in use"
        yield Finding(Level.NOTE, found, facts={"family": used.family})


def _other_backend(view: View, family: Family) -> Iterator[Finding]:
    rules = [rule for rule in view.desired.rules if rule.family == family]
    try:
        other, copies, others = view.backends[family].listed_in_other(rules)
    except SidecarError as error:
        yield Finding(
            Level.UNKNOWN, f"could not list the other backend's IPv{family} rules: {quoted(str(error), _LONGEST)}"
        )
        return
    there = {rule: count for rule, count in copies.items() if count}
    if there and others and all(rule.table == "filter" for rule in there):
        # As the check of the policies has them put there, before what the other programs drop.
        found = f"rules like ours let the traffic pass what {other.command} has of other programs: {_number(there)}"
        yield Finding(Level.NOTE, found, facts={"copies": _number(there)})
    elif there:
        yield _in_both(view, family, other, there)
    if others:
        found = (
            f"{other.command} has {counted(others, 'rule')} of other programs: the kernel applies both backends' rules"
        )
        yield Finding(Level.NOTE, found, facts={"rules": others})


def _number(copies: Mapping[Rule, int]) -> int:
    return sum(copies.values())


def _in_both(view: View, family: Family, other: Iptables, copies: Mapping[Rule, int]) -> Finding:
    """Return the finding that our rules are in the backend that is not in use as well."""
    number = _number(copies)
    removals = [RemoveRule(rule, count) for rule, count in copies.items()]
    deletions = tuple(pasteable(*each) for action in removals for each in other.waiting(_WAIT).commands(action))
    found = f"the other backend ({other.command}) has our rules, too: {number}; they have an effect there as well"
    name = other.command.partition("-")[2]
    keepers = backends_shown.keepers(
        view.keepers.running, family, name, [RuleSet(ip, view.port) for ip in _ips(view, family)]
    )
    remedy = _instead(keepers[0], name, view.backends[family].in_use) if keepers else ""
    return Finding(Level.WARNING, found, remedy, () if keepers else deletions, {"copies": number})


def _ips(view: View, family: Family) -> list[IPAddress]:
    return [each.ip for each in view.desired.addresses if each.ip.version == family]


def _instead(keeper: Instance, name: str, used: BackendInUse | None) -> str:
    """Return what to do instead of a removal that a running sidecar would undo."""
    if keeper.is_python:
        other = f", or set its --iptables-backend={used.name} and restart it" if used else ""
        return f"{keeper} keeps them there: run this check with --iptables-backend={name}{other}"
    return f"{keeper} may keep them there, and would add them again: see `iptables --version` where it runs"
