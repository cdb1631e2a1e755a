"""Reads what `nft --json list` prints into base chains, and judges their rules, for the walker.

What is not understood matches perhaps. The elements of named sets and maps, which a terse listing leaves out, have to
be asked for: walk, answer the questions in `Elements`, and walk again until there are none.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from sidecar.firewall import nft_text
from sidecar.firewall.nft_conditions import Elements, Sets
from sidecar.firewall.nft_judge import Judge
from sidecar.firewall.nft_values import MALFORMED, Json
from sidecar.firewall.packet import Hook, Packet
from sidecar.firewall.verdicts import BaseChain, Judgement
from sidecar.state.model import Family

#: Families of tables that see packets of an address family, and those that see both.
_OWN: Final[dict[Family, str]] = {4: "ip", 6: "ip6"}
_BOTH: Final = ("inet", "netdev")

#: Hooks whose base chains are for some devices only.
_OF_DEVICES: Final = (Hook.INGRESS.value, Hook.EGRESS.value)

#: What names stand for in priorities (man nft, "standard priority names"); most releases print numbers.
_PRIORITIES: Final = {"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50, "srcnat": 100}


@dataclass(frozen=True, slots=True)
class NftRule:
    """A rule of nft; a policy and the devices of a base chain are rules without a handle."""

    expressions: Sequence[Json]
    handle: int | None = None
    comment: str = ""

    @property
    def text(self) -> str:
        """The rule as `nft -a list ruleset` prints it, but for the numbers of counters."""
        return nft_text.rule(self.expressions, self.comment, self.handle)


@dataclass(slots=True)
class NftTable:
    """A table of nft, as listed."""

    family: str  # as nft names it: ip, ip6, inet, netdev, …
    name: str
    is_dormant: bool = False
    chains: dict[str, list[NftRule]] = field(default_factory=dict)
    bases: dict[str, Json] = field(default_factory=dict)  # the base chains among them, as in the listing
    sets: dict[str, Json] = field(default_factory=dict)  # and maps


class NftRules:
    """The rules of a table, as the walker asks for them."""

    def __init__(self, table: NftTable, elements: Elements) -> None:
        self._table = table
        self._sets = Sets(table.family, table.name, table.sets, elements)

    def of(self, chain: str) -> Sequence[NftRule] | None:
        rules = self._table.chains.get(chain)
        base = self._table.bases.get(chain, {})
        if rules is None or base.get("hook") not in _OF_DEVICES:
            return rules
        return [_elsewhere(base), *rules]

    def policy(self, chain: str) -> NftRule | None:
        base = self._table.bases.get(chain, {})
        return NftRule(({"policy": None}, {"drop": None})) if base.get("policy") == "drop" else None

    def judge(self, rule: NftRule, packet: Packet) -> Sequence[Judgement] | None:
        return Judge(packet, self._sets).judge(rule.expressions)

    def text(self, rule: NftRule) -> str:
        return rule.text

    def texts(self) -> Iterator[str]:
        return (rule.text for rules in self._table.chains.values() for rule in rules)


def read(listing: str) -> list[NftTable]:
    """Return the tables of what `nft --json list …` prints. Raises ValueError if it cannot be read."""
    tables: dict[tuple[str, str], NftTable] = {}

    def table(item: Json, name: str) -> NftTable:
        key = item["family"], name
        return tables.setdefault(key, NftTable(*key))

    try:
        for each in json.loads(listing, strict=False)["nftables"]:
            match each:
                case {"table": item}:
                    table(item, item["name"]).is_dormant = "dormant" in item.get("flags", ())
                case {"chain": item}:
                    found = table(item, item["table"])
                    found.chains.setdefault(item["name"], [])
                    if "hook" in item:
                        found.bases[item["name"]] = {**item, "prio": _priority(item["prio"])}
                case {"rule": item}:
                    rule = NftRule(item["expr"], item.get("handle"), item.get("comment", ""))
                    table(item, item["table"]).chains.setdefault(item["chain"], []).append(rule)
                case {"set": item} | {"map": item}:
                    table(item, item["table"]).sets[item["name"]] = item
    except MALFORMED as error:
        raise ValueError(f"this is no listing of nft: {error!r}") from error
    return list(tables.values())


def read_elements(listing: str) -> Sequence[Json]:
    """Return the elements in what `nft --json list set` (or map) prints. Raises ValueError if it cannot be read."""
    try:
        for each in json.loads(listing, strict=False)["nftables"]:
            for kind in ("set", "map"):
                if kind in each:
                    return list(each[kind].get("elem", ()))
    except MALFORMED as error:
        raise ValueError(f"this is no listing of nft: {error!r}") from error
    raise ValueError("it has no set")


def base_chains(tables: Sequence[NftTable], family: Family, elements: Elements) -> list[BaseChain[NftRule]]:
    """Return the base chains that packets of a family to or from this node pass. Dormant tables have none."""
    found: list[BaseChain[NftRule]] = []
    for table in tables:
        if table.is_dormant or table.family not in (_OWN[family], *_BOTH):
            continue
        rules = NftRules(table, elements)
        for name, item in table.bases.items():
            if item["hook"] in HOOKS:
                hook = Hook(item["hook"])
                place = f"table {table.family} {table.name}"
                found.append(BaseChain(hook, item["prio"], place, name, rules, item.get("type") == "nat"))
    return found


#: The hooks that packets pass which this node sends or receives.
HOOKS: Final[Collection[str]] = frozenset(each.value for each in Hook)


def _priority(printed: Json) -> int:
    """Return a priority that may be a number, or a name with an offset: `filter + 10`."""
    if isinstance(printed, int):
        return printed
    name, sign, offset = str(printed).replace("+", " + ").replace("-", " - ").partition(" ")
    if name in _PRIORITIES:
        return _PRIORITIES[name] + (int((sign + offset).replace(" ", "")) if sign else 0)
    return int(str(printed))


def _elsewhere(base: Json) -> NftRule:
    """Return the rule that lets pass what does not come in or go out by the devices of a base chain."""
    devices = base.get("dev")
    left = {"meta": {"key": "oifname" if base["hook"] == "egress" else "iifname"}}
    # nft 1.0.6 does not list the devices: then it depends.
    right = {"set": [devices] if isinstance(devices, str) else devices} if devices else None
    return NftRule(({"match": {"op": "!=", "left": left, "right": right}}, {"accept": None}))
