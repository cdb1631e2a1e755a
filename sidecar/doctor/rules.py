"""The check of our iptables rules."""

from collections.abc import Iterator

from sidecar.doctor.findings import Finding, Level, counted, unknown
from sidecar.doctor.passages import passages
from sidecar.doctor.view import View
from sidecar.errors import SidecarError
from sidecar.state import compare
from sidecar.state.actions import AddRule, MoveToFront, RemoveRule, RemoveSurplus
from sidecar.state.desired import port_of
from sidecar.state.inventory import State, of_rule
from sidecar.state.model import Address, Facts, Family, Rule, RuleSet


def rules(view: View) -> Iterator[Finding]:
    """Yield which of our rules are there, how often, and which have no effect in their place."""
    if not view.desired.rules:
        yield Finding(Level.OK, "none are needed: --setup-iptables is not set")
        return
    for family, backend in view.backends.items():
        try:
            seen = view.seen(family)
        except SidecarError as error:
            yield unknown(error, f"the IPv{family} rules could not be listed")
            continue
        yield from (Finding(Level.UNKNOWN, str(error)) for error in seen.errors)
        yield from (Finding(Level.UNKNOWN, f"{rule}: {why}", facts=rule.facts) for rule, why in seen.unknown.items())
        desired = [rule for rule in view.desired.rules if rule.family == family]
        for table in sorted(seen.dormant & {rule.table for rule in desired if seen.copies.get(rule)}):
            facts: Facts = {"family": family, "table": table}
            found, remedy = compare.dormant(family, table), compare.waking(family, table)
            yield Finding(Level.FAULT, found, commands=(remedy,), facts=facts)
        good = 0
        for rule in desired:
            faults = list(_faults(view, rule))
            yield from faults
            good += bool(seen.copies.get(rule)) and rule.table not in seen.dormant and not faults
        try:
            yield from _left_over(view, family)
        except SidecarError as error:
            yield unknown(error, f"cannot tell whether IPv{family} rules for another port are left")
        if good:
            text = f"{good} of {len(desired)} IPv{family} rules are in place"
            yield Finding(Level.OK, text, facts={"rules": good, "backend": backend.command})


def _faults(view: View, rule: Rule) -> Iterator[Finding]:
    """Yield what is wrong with a rule; if it could not be observed, nothing."""
    item = of_rule(view.observed(), rule)
    facts: Facts = {**item.facts, "copies": view.observed().copies.get(rule, 0)}
    if item.state is State.MISSING:
        addition = view.commands(AddRule(rule, view.desired.insert))
        yield Finding(Level.FAULT, f"missing: {rule}", commands=addition, facts=facts)
    elif item.state is State.COPIES:
        removal = view.commands(RemoveSurplus(rule, int(facts["copies"]) - 1))
        yield Finding(Level.WARNING, f"{item.detail}: {rule}", commands=removal, facts=facts)
    hindrance = view.observed().hindrances.get(rule)
    if hindrance and hindrance.certain:  # what may hinder it is followed by the check of the policies
        facts, found = {**facts, "behind": hindrance.line}, hindrance.effect_on(rule)
        level = Level.FAULT if rule.match[-1] == "ACCEPT" else Level.WARNING
        remedy = "" if view.desired.insert else "to keep it there, run with --rule-position=insert"
        yield Finding(level, found, remedy, view.commands(MoveToFront(rule, hindrance.line)), facts)


def _left_over(view: View, family: Family) -> Iterator[Finding]:
    """Yield rules for our addresses and another port that no running instance needs, left by an earlier setting."""
    addresses = [each for each in view.desired.addresses if each.ip.version == family]
    listed = list(_lines(view, addresses[0]))
    for address in addresses:
        found: dict[int, list[RemoveRule]] = {}
        for table, chain, line in listed:
            port = port_of(line, address)
            if port is not None and port != view.port:
                removal = RemoveRule(Rule(family, table, chain, tuple(line.split()[2:])), 1)
                found.setdefault(port, []).append(removal)
        for port, removals in found.items():
            if not view.keepers.keeps(RuleSet(address.ip, port)):
                rules = counted(len(removals), "rule is", "rules are")
                text = f"{rules} left for {address.ip} and port {port}, perhaps from an earlier --port"
                facts: Facts = {**address.facts, "port": port}
                yield Finding(Level.WARNING, text, commands=view.commands(*removals), facts=facts)


def _lines(view: View, address: Address) -> Iterator[tuple[str, str, str]]:
    """Yield the rules in the chains of ours, as they were read to follow the traffic: table, chain, and rule."""
    places = {rule.place for rule in view.desired.rules}
    for base in passages(view, address).ruleset.chains:
        if (base.table, base.name) in places:
            yield from ((base.table, base.name, line) for line in base.rules.of(base.name) or ())
