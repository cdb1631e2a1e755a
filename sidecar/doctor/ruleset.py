"""Reads the rules that the traffic comes to, of both backends of iptables and of nft's own tables."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sidecar.doctor.findings import counted
from sidecar.doctor.view import NO_TIME, View
from sidecar.errors import CommandError, NotSupported, SidecarError
from sidecar.firewall.iptables import IptablesRules
from sidecar.firewall.nft import NftTable, base_chains
from sidecar.firewall.nft_conditions import Elements
from sidecar.firewall.packet import Hook, Packet
from sidecar.firewall.verdicts import BaseChain
from sidecar.node import nft_tables
from sidecar.node.iptables import Iptables
from sidecar.node.nft import NftProgram
from sidecar.node.programs import is_installed
from sidecar.state.model import Chain, Family

#: How many chains of other programs are read for one backend; a node can have tens of thousands.
MOST_CHAINS: Final = 4000

#: The base chains that the traffic comes to, and their priorities, which are the same in both backends (enum
#: nf_ip_hook_priorities in linux/netfilter_ipv4.h; `security` has no part in routing).
_BASES: Final[Mapping[str, Mapping[Hook, int]]] = {
    "raw": dict.fromkeys((Hook.PREROUTING, Hook.OUTPUT), -300),
    "mangle": dict.fromkeys((Hook.PREROUTING, Hook.INPUT, Hook.OUTPUT, Hook.POSTROUTING), -150),
    "nat": {Hook.PREROUTING: -100, Hook.OUTPUT: -100, Hook.INPUT: 100, Hook.POSTROUTING: 100},
    "filter": dict.fromkeys((Hook.INPUT, Hook.OUTPUT), 0),
    "security": dict.fromkeys((Hook.INPUT, Hook.OUTPUT), 50),
}


@dataclass(frozen=True, slots=True)
class Ruleset:
    """The base chains that apply to a family, as far as they could be read."""

    chains: tuple[BaseChain[Any], ...]
    tools: Mapping[str, Iptables]  # table, as the base chains name it → the iptables that has it
    unread: tuple[str, ...]  # what could not be read, and why
    elements: Elements  # of nft's sets, as far as they were asked for


def read(view: View, family: Family, packets: Collection[tuple[Hook, Packet]]) -> Ruleset:
    """Read what packets may come to from these hooks on, whatever their mark and state then are.

    Raises a SidecarError if the backend in use did not answer at all.
    """
    view.seen(family)  # without that, nothing else of the backend can be asked
    chains: list[BaseChain[Any]] = []
    tools: dict[str, Iptables] = {}
    unread: list[str] = []
    backend = view.backends[family]
    for number, tool in enumerate(backend.tools()):
        reading = _Reading(view, tool, packets)
        try:
            reading.read(backend.tables(tool) - (frozenset() if tool.is_legacy() else view.dormant(family)))
        except SidecarError as error:
            if not number:  # the backend in use
                raise
            unread.append(str(error))
            continue
        unread += reading.unread
        for table, rules in reading.rules.items():
            shown = f"{table} ({tool.command})" if number else table
            tools[shown] = tool
            chains += _base_chains(table, shown, rules)
    elements = view.once("elements of nft's sets", Elements)
    tables, failures = view.once("nft's own tables", lambda: _native(view))
    chains += base_chains(tables, family, elements)
    return Ruleset(tuple(chains), tools, (*unread, *failures), elements)


def _native(view: View) -> tuple[list[NftTable], list[str]]:
    """Return nft's own tables, and why others could not be read."""
    known = nft_tables.everywhere()
    if known is not None and not any(_is_native(family, name) for family, name, _ in known):
        return [], []
    if not is_installed("nft"):
        names = " and ".join(f"{family} {name}" for family, name, _ in known or () if _is_native(family, name))
        return [], [f"nft is not installed, so the rules of table {names} cannot be read"] if names else []
    try:
        tables, failures = NftProgram(view.run).tables(view.walk_until)
    except SidecarError as error:
        return [], [str(error)]
    return tables, [f"{name}: {error}" for name, error in failures.items()]


def _is_native(family: str, name: str) -> bool:
    """Whether a table may hold rules that iptables does not show."""
    return family in ("inet", "netdev") or (family in ("ip", "ip6") and name not in _BASES)


def _base_chains(table: str, shown: str, rules: IptablesRules) -> Iterator[BaseChain[str]]:
    for hook, priority in _BASES[table].items():
        yield BaseChain(hook, priority, shown, hook.name, rules, is_nat=table == "nat")


class _Reading:
    """Reads the chains of one iptables, from the base chains on: one process for each level of jumps."""

    def __init__(self, view: View, tool: Iptables, packets: Collection[tuple[Hook, Packet]]) -> None:
        self._view = view
        self._tool = tool
        self._packets = packets
        self._listings: dict[str, dict[str, tuple[str, ...]]] = {}
        self.rules: dict[str, IptablesRules] = {}  # by table
        self.unread: list[str] = []
        self._read: set[Chain] = set()

    def read(self, tables: frozenset[str]) -> None:
        """Read what the packets may come to; raise a SidecarError if that failed altogether."""
        self._listings = {table: {} for table in _BASES if table in tables}
        self.rules = {table: IptablesRules(listed) for table, listed in self._listings.items()}
        coming = {
            ((table, hook.name), packet)
            for table in self.rules
            for hook, packet in self._packets
            if hook in _BASES[table]
        }
        been = set(coming)
        while coming:
            new = {chain for chain, _ in coming} - self._read
            if len(self._read) + len(new) > MOST_CHAINS or (new and self._view.is_late()):
                were = "was" if len(new) == 1 else "were"
                left = f"{counted(len(new), 'chain')} of {self._tool.command} {were} not read {NO_TIME}"
                self.unread.append(f"at least {left}")
                return
            self._list(sorted(new))
            targets = {
                ((table, target), packet)
                for (table, chain), packet in coming
                for target in self.rules[table].jumps(chain, packet)
            }
            coming = targets - been
            been |= coming

    def _list(self, chains: Sequence[Chain]) -> None:
        self._read.update(chains)
        try:
            listed, failures = self._tool.list_all(chains)
        except (CommandError, NotSupported) as error:
            if error.transient:
                raise
            listed, failures = {}, dict.fromkeys(chains, error)
        for (table, chain), lines in listed.items():
            self._listings[table][chain] = lines
        for table in dict.fromkeys(table for table, _ in failures):
            names = ", ".join(sorted(chain for each, chain in failures if each == table)[:3])
            self.unread.append(f"{self._tool.command} cannot list {names} of table {table}")
