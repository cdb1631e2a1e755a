"""What listings say of our rules: how many copies of each there are, and what stands in front of them. Pure, no I/O."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from sidecar.errors import SidecarError
from sidecar.firewall.iptables import hindrance
from sidecar.node.listings import is_lookalike, may_lack_port, narrower, without_port
from sidecar.state.model import Chain, Hindrance, Rule

#: For each chain with lines like our rules: the number of its rules; and each such line's place, with our rule.
Places: TypeAlias = Mapping[Chain, tuple[int, Sequence[tuple[int, Rule]]]]

#: The place of each rule that is listed like ours, but is narrower.
Narrower: TypeAlias = Mapping[tuple[Chain, int], Rule]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at rules found."""

    copies: dict[Rule, int]  # how many copies of each rule there are; one that is not in here could not be looked for
    hindrances: dict[Rule, Hindrance] = field(default_factory=dict)
    errors: tuple[SidecarError, ...] = ()  # why some could not be looked for
    unknown: dict[Rule, str] = field(default_factory=dict)
    """Why some cannot be judged, now or later: iptables does not fully understand what is in their chain."""

    former: dict[Rule, int] = field(default_factory=dict)  # how many copies are in the backend that was in use before
    dormant: frozenset[str] = frozenset()  # the tables whose rules have no effect (nft, `flags dormant`)
    confusable: frozenset[Rule] = frozenset()  # the rules beside which there are some that iptables takes for the same
    beside_narrower: frozenset[Rule] = frozenset()
    """The rules beside which there are narrower ones that iptables lists, and deletes, like them."""


class _Lines:
    """The rules of a chain, ready for many of ours to be looked up in it."""

    def __init__(self, lines: Sequence[str], ours: Collection[str]) -> None:
        self.copies = Counter(lines)
        self._first = {line: at for at, line in reversed(list(enumerate(lines)))}
        self._others = [line for line in lines if line not in ours]
        self._places = [at for at, line in enumerate(lines) if line not in ours]

    def before(self, rule: Rule) -> Sequence[str]:
        """Return the rules of others before the first copy of ours. Our own rules never stand in each other's way."""
        return self._others[: bisect_left(self._places, self._first[rule.line])]

    def has_lookalike(self, rule: Rule) -> bool:
        """Whether there is a rule that iptables may take for ours."""
        return any(is_lookalike(each, rule) for each in self._others)


def seen_in(
    listings: Mapping[Chain, Sequence[str]], rules: Sequence[Rule], others: Narrower | None, loses_ports_by: str = ""
) -> Seen:
    """Return what listings show of rules; `others` are narrower.

    `loses_ports_by` names an iptables that lists rules of newer releases without their ports.
    """
    listings = _told_apart(listings, others)
    ours: dict[Chain, set[str]] = {}
    for rule in rules:
        ours.setdefault(rule.place, set()).add(rule.line)
    chains = {place: _Lines(listings[place], lines) for place, lines in ours.items()}
    copies = {rule: chains[rule.place].copies[rule.line] for rule in rules}
    hindrances = {}
    for rule, number in copies.items():
        if number and (found := hindrance(rule, chains[rule.place].before(rule))):
            is_certain = found.certain and not (loses_ports_by and may_lack_port(found.line))
            hindrances[rule] = replace(found, certain=is_certain)
    unknown = {
        rule: f"{loses_ports_by} lists `{without_port(rule)}`, as this release drops the port of rules that a newer "
        "one has added: install iptables 1.8.9 or newer, or remove the rule with the program that added it"
        for rule, number in copies.items()
        if loses_ports_by and not number and without_port(rule) in listings[rule.place]
    }
    return Seen(
        {rule: number for rule, number in copies.items() if rule not in unknown},
        hindrances,
        unknown=unknown,
        confusable=frozenset(rule for rule in rules if chains[rule.place].has_lookalike(rule)),
        beside_narrower=frozenset(rule for rule in rules if narrower(rule) in chains[rule.place].copies),
    )


def places(listings: Mapping[Chain, Sequence[str]], rules: Sequence[Rule]) -> Places:
    """Return where lines like our rules are."""
    ours = {(rule.place, rule.line): rule for rule in rules}
    found = {}
    for chain, lines in listings.items():
        number = len(lines) - any(each.startswith("-P ") for each in lines[-1:])  # the policy is no rule
        if like := [(at, ours[chain, each]) for at, each in enumerate(lines) if (chain, each) in ours]:
            found[chain] = (number, like)
    return found


def _told_apart(listings: Mapping[Chain, Sequence[str]], others: Narrower | None) -> Mapping[Chain, Sequence[str]]:
    """Return the listings, with the narrower rules in other words than ours."""
    if not others:
        return listings
    changed = {chain: list(lines) for chain, lines in listings.items()}
    for (chain, at), rule in others.items():
        changed[chain][at] = narrower(rule)
    return changed
