"""Chooses the iptables backend: at the first look, it detects the one that the node's other components use.

The two backends hold separate rules, and the kernel applies both. A rule that lets traffic in has an effect only in
the backend whose rules would drop it. The node's own components show which that is (in the order of kubernetes-sigs/
iptables-wrappers): by chains that the kubelet creates for this very purpose, or else by the rules that are there.

Observing must not create anything: iptables-legacy creates a table by listing it, so only tables in
/proc/net/ip_tables_names are listed. A failed look proves nothing: it is an error, and is retried.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from loguru import logger

from sidecar.errors import BackendUnknown, NodeError, OutputUnreadable, SidecarError
from sidecar.node import capabilities, releases
from sidecar.node.command import Command, Run
from sidecar.node.iptables import Iptables
from sidecar.node.iptables_looks import Seen
from sidecar.node.programs import is_installed
from sidecar.node.releases import Release
from sidecar.state.actions import RemoveRule, RuleAction
from sidecar.state.desired import has_our_shape
from sidecar.state.model import IPV4, BackendInUse, Chain, Family, Rule

AUTO: Final = "auto"
SYSTEM: Final = "system"

#: Chains that the kubelet creates in its backend's mangle table (kubernetes, pkg/kubelet/kubelet_network_linux.go).
HINTS: Final = ("KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY")

#: The built-in chains of each table, which packets enter without a jump (man iptables).
_BUILT_IN: Final = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
}
_OTHER: Final = {"nft": "legacy", "legacy": "nft"}


class Backend:
    """The rules of one address family, in the requested or detected backend."""

    def __init__(  # noqa: PLR0913 - five for the work, two for tests that simulate the node
        self,
        run: Run,
        family: Family,
        requested: str,
        wait: float,
        *,
        creates: bool = True,
        longest_look: float = math.inf,
        is_installed: Callable[[str], bool] = is_installed,
        legacy_tables: Callable[[Family], Sequence[str] | None] | None = None,
    ) -> None:
        """Use the `requested` backend (auto, nft, legacy, system); wait at most `wait` s for the xtables lock.

        What looks waits for at most `longest_look` s. Without `creates`, it asks for no table that does not exist, as
        asking legacy for one creates it.
        """
        self._run = run
        self._family: Family = family
        self._requested = requested
        self._wait = wait
        self._wait_to_look = min(wait, longest_look)
        self._is_installed = is_installed
        self._legacy_tables = legacy_tables or readable_tables
        self._settled: Iptables | None = None
        self._in_use: BackendInUse | None = None
        self._release: Release | None = None
        self._in_both = False
        self._creates = creates
        self._leftovers: Mapping[Rule, int] = {}
        self._other: Iptables | None = None

    @property
    def in_use(self) -> BackendInUse | None:
        """The backend, and why it was chosen; None until it is known."""
        return self._in_use

    @property
    def command(self) -> str:
        """The name of the program; the default one until the backend is known."""
        return self._settled.command if self._settled else self._tool(SYSTEM).command

    @property
    def is_legacy(self) -> bool:
        """Whether legacy is asked for, or known to be in use."""
        return self._settled.is_legacy() if self._settled else self._requested == "legacy"

    @property
    def release(self) -> Release | None:
        """The release of the program; None until the backend is known."""
        return self._release

    @property
    def programs(self) -> tuple[str, str]:
        """The programs that must be installed."""
        name = self._requested if self._requested != AUTO else next(iter(self._candidates()), SYSTEM)
        return self._tool(name).programs

    def for_cleanup(self) -> "Backend":
        """Return a copy that counts and removes our rules in both backends, and creates no table."""
        made = copy.copy(self)
        made._in_both, made._creates = True, False  # noqa: SLF001 - an object of the same class
        return made

    def observe(self, rules: Sequence[Rule]) -> Seen:
        """Look at the rules; the first call chooses the backend. Raises as Iptables.observe does."""
        tool = self._settle(rules)
        seen = tool.observe(rules) if self._creates else self.look(rules)
        if not self._in_both:
            return seen
        try:
            left = self._observe_other(rules)
        except NodeError:  # logged at the start; it must not hold up a cleanup of the backend in use
            return seen
        except SidecarError as error:
            return replace(seen, errors=(*seen.errors, error))
        self._leftovers = left.copies
        both = {rule: copies + left.copies.get(rule, 0) for rule, copies in seen.copies.items()}
        return Seen(both, seen.hindrances, (*seen.errors, *left.errors), {**seen.unknown, **left.unknown})

    def commands(self, action: RuleAction) -> list[Command]:
        """Return the commands that carry out an action, as Iptables.commands does."""
        tool = self._settle([action.rule]).waiting(self._wait)
        if not isinstance(action, RemoveRule):
            return tool.commands(action)
        rule, left = action.rule, self._leftovers.get(action.rule, 0)
        here = tool.commands(RemoveRule(rule, action.copies - left)) if action.copies > left else []
        there = self._other.waiting(self._wait).commands(RemoveRule(rule, left)) if left and self._other else []
        return [*here, *there]

    def apply(self, action: RuleAction) -> int:
        """Carry out one action, as Iptables.apply does; remove copies in each backend where the last look saw them."""
        tool = self._settle([action.rule])
        if not isinstance(action, RemoveRule):
            return tool.apply(action)
        rule, left = action.rule, self._leftovers.get(action.rule, 0)
        here = action.copies > left and tool.apply(RemoveRule(rule, action.copies - left))
        there = left > 0 and self._other is not None and self._other.apply(RemoveRule(rule, left))
        return here + there

    def look(self, rules: Sequence[Rule]) -> Seen:
        """Look at the rules as `observe` does, but create nothing: rules of a table that does not exist are missing.

        If it cannot be known whether a table exists, ask iptables for it nevertheless.
        """
        tool = self._settle([])
        missing = {table for table in {rule.table for rule in rules} if self.sees(table) is False}
        absent = [rule for rule in rules if rule.table in missing]
        there = [rule for rule in rules if rule.table not in missing]
        seen = tool.observe(there) if there else Seen({})
        return replace(seen, copies={**dict.fromkeys(absent, 0), **seen.copies})

    def sees(self, table: str) -> bool | None:
        """Whether a table exists; None if that cannot be known, and asking iptables for it may create it."""
        self._settle([])
        if not self.is_legacy:
            return True
        tables = self._legacy_tables(self._family)
        return None if tables is None else table in tables

    def listed(self, chains: Sequence[Chain]) -> dict[Chain, tuple[str, ...]]:
        """Return the rules of these chains, as Iptables.listed does; their tables must exist."""
        return self._settle([]).listed(chains)

    def listed_in_other(self, rules: Sequence[Rule]) -> tuple[str, Mapping[Rule, int], int]:
        """Return the program of the backend that is not in use, our rules there, and the number of others."""
        self._settle(rules)
        name = _OTHER["legacy" if self.is_legacy else "nft"]
        copies = self._observe_other(rules).copies
        tool = self._tool(name)
        return tool.command, copies, self._count_rules(name) if self._has(tool) else 0

    def _settle(self, rules: Sequence[Rule]) -> Iptables:
        if self._settled is None:
            name, reason = self._choose() if self._requested == AUTO else (self._requested, "set by --iptables-backend")
            tool = self._tool(name)
            release = self._read_release(tool)
            self._settled, self._release = tool, release
            self._in_use = BackendInUse(self._family, tool.command, str(release), tool.is_legacy(), reason)
            facts = logger.bind(family=self._family, backend=name, version=str(release))
            facts.info(f"IPv{self._family} rules by {tool.command} {release}: {reason}")
            for fault in releases.faults(release, self._family):
                facts.warning(f"{tool.command} {release}: {fault}; this program counts rules in listings instead")
            self._tell_of_leftovers(rules)
        return self._settled

    def _observe_other(self, rules: Sequence[Rule]) -> Seen:
        """Look at our rules in the backend that is not in use; there are none if it is not installed."""
        name = _OTHER["legacy" if self.is_legacy else "nft"]
        if self._other is None:
            # Wait only briefly for it: nothing in use depends on it.
            self._other = Iptables(self._run, self._family, name, min(self._wait, 1.0))
        tables = self._tables(name) if self._has(self._other) else ()
        there = [rule for rule in rules if rule.table in tables]
        return self._other.observe(there) if there else Seen({})

    def _tell_of_leftovers(self, rules: Sequence[Rule]) -> None:
        try:
            number = sum(self._observe_other(rules).copies.values())
        except SidecarError as error:
            logger.bind(**error.facts).warning(f"could not look for our rules in the other backend: {error}")
            return
        if self._other and number:
            logger.bind(family=self._family, copies=number).warning(
                f"the other backend ({self._other.command}) has our rules, too: {number}; a cleanup removes them"
            )

    def _choose(self) -> tuple[str, str]:
        """Return a backend, and why it was chosen."""
        candidates = self._candidates()
        if len(candidates) < len(_OTHER):
            return (
                (candidates[0], "the only one that is installed")
                if candidates
                else (SYSTEM, "neither iptables-nft nor iptables-legacy is installed")
            )
        for name in candidates:
            if hint := self._hint(name):
                return name, f"Kubernetes' chain {hint} is there"
        numbers = {name: self._count_rules(name) for name in candidates}
        most = max(candidates, key=lambda name: numbers[name])
        if not numbers[most]:
            return "nft", "no other rules in either backend"
        there = "1 rule is" if numbers[most] == 1 else f"{numbers[most]} rules are"
        return most, f"{there} there, {numbers[_OTHER[most]]} in the other backend"

    def _candidates(self) -> list[str]:
        return [name for name in _OTHER if self._has(self._tool(name))]

    def _count_rules(self, name: str) -> int:
        """Return the number of rules in the built-in chains, without those of sidecars."""
        tables = self._tables(name)
        chains = [(table, chain) for table in tables for chain in _BUILT_IN.get(table, ())]
        listings = self._tool(name).listed(chains)
        unreadable = len(chains) - len(listings)  # each of these holds a rule that iptables cannot print
        lines = (line for rules in listings.values() for line in rules)
        return unreadable + sum(not (line.startswith("-P") or has_our_shape(line)) for line in lines)

    def _hint(self, name: str) -> str | None:
        if "mangle" not in self._tables(name):
            return None
        tool = self._tool(name)
        return next((hint for hint in HINTS if tool.has_chain(("mangle", hint))), None)

    def _tables(self, name: str) -> Sequence[str]:
        """Return the tables that can be looked at without creating them."""
        if name != "legacy":
            return tuple(_BUILT_IN)
        return known_tables(self._family, self._legacy_tables(self._family))

    def _read_release(self, tool: Iptables) -> Release:
        argv = (tool.command, "--version")
        try:
            return releases.parse(self._run(*argv).stdout)
        except ValueError as error:
            raise OutputUnreadable(argv, "", f"cannot be understood: {error}") from error

    def _tool(self, name: str) -> Iptables:
        return Iptables(self._run, self._family, name, self._wait_to_look)

    def _has(self, tool: Iptables) -> bool:
        return all(map(self._is_installed, tool.programs))


def registered_tables(family: Family) -> Sequence[str]:
    """Return the legacy tables that the kernel has in this network namespace (net/ipv4/netfilter/ip_tables.c).

    In a separate user namespace the file cannot be read; but then this is not a node's network, and there are none.
    Elsewhere that is an error: tables that cannot be seen are unknown.
    """
    return known_tables(family, readable_tables(family))


def known_tables(family: Family, tables: Sequence[str] | None) -> Sequence[str]:
    """Return the tables that could be read; raise BackendUnknown if they could not be read, but may exist."""
    if tables is None and capabilities.in_initial_user_namespace():
        raise BackendUnknown(_names_of_tables(family))
    return tables or ()


def readable_tables(family: Family) -> Sequence[str] | None:
    """Return the legacy tables that the kernel has, or None if the file cannot be read."""
    try:
        return Path(_names_of_tables(family)).read_text().split()
    except FileNotFoundError:  # the kernel does not have legacy at all
        return ()
    except PermissionError:
        return None


def _names_of_tables(family: Family) -> str:
    return "/proc/net/ip_tables_names" if family == IPV4 else "/proc/net/ip6_tables_names"
