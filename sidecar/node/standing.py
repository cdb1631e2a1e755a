"""Finds the five rules that stand on this node, for whichever address and port: a sidecar that has ended left them.

Looking creates nothing. Of a backend that cannot be listed, nothing is said.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from sidecar.errors import CommandTimeout, SidecarError
from sidecar.node.backend_choice import SYSTEM, Candidates
from sidecar.node.command import Run
from sidecar.state.desired import RULES, rule_set_of, rules_for
from sidecar.state.model import IPV4, IPV6, Address, Chain, Family, RuleSet

_WAIT: Final = 1.0  # seconds to wait for the xtables lock: the user expects an answer soon
_ANY: Final[dict[Family, Address]] = {IPV4: Address(IPv4Address(0), 32, ""), IPV6: Address(IPv6Address(0), 128, "")}


@dataclass(frozen=True, slots=True)
class Standing:
    """How many of the five rules for an address and a port stand in a backend."""

    rules: RuleSet
    backend: str
    number: int

    @property
    def is_whole(self) -> bool:
        return self.number == len(RULES)


def standing(run: Run, families: Iterable[Family] = (IPV4, IPV6)) -> list[Standing]:
    """Return what stands. Raises CommandTimeout if iptables hangs."""
    return [each for family in families for each in _of_family(Candidates(run, family, _WAIT), family)]


def backend_of(run: Run, family: Family, rules: Iterable[RuleSet]) -> str | None:
    """Return the only backend in which all five rules of one of these sets stand; None if there is none, or two."""
    wanted = set(rules)
    try:
        names = {each.backend for each in standing(run, [family]) if each.is_whole and each.rules in wanted}
    except CommandTimeout:
        return None
    return names.pop() if len(names) == 1 else None


def _of_family(candidates: Candidates, family: Family) -> Iterator[Standing]:
    for name in candidates.names() or [SYSTEM]:
        try:
            listings = _listings(candidates, family, name)
        except CommandTimeout:
            raise
        except SidecarError:
            continue
        found = {rules for lines in listings.values() for rules in map(rule_set_of, lines) if rules}
        for rules in sorted(found, key=lambda each: (int(each.ip), each.port)):
            five = rules_for(Address(rules.ip, rules.ip.max_prefixlen, ""), rules.port)
            yield Standing(rules, name, sum(rule.line in listings.get(rule.place, ()) for rule in five))


def _listings(candidates: Candidates, family: Family, name: str) -> dict[Chain, tuple[str, ...]]:
    """Return the rules of the chains that ours are in, but only of tables that exist."""
    tool = candidates.tool(name)
    tables = candidates.tables("legacy" if tool.is_legacy() else "nft")
    places = dict.fromkeys(rule.place for rule in rules_for(_ANY[family], 1) if rule.table in tables)
    return tool.list_all(list(places))[0]
