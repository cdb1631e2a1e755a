"""Finds out which iptables backend the node's other components use.

They show it (in the order of kubernetes-sigs/iptables-wrappers) by chains that the kubelet creates for this very
purpose, or else by the rules that are there. Without either, or if a backend could not be looked at, the choice is not
firm: the evidence may come later.

Looking must not create anything: legacy creates a table when asked for it, so it is asked only for those that
/proc/net/ip_tables_names lists. A look that fails proves nothing: it is an error, and is retried. But a backend that
cannot list a single chain cannot be initialised on this kernel, and so nobody uses it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from sidecar.errors import BackendUnusable, NotSupported
from sidecar.node import legacy_tables, nft_tables
from sidecar.node.command import Run
from sidecar.node.iptables import Iptables
from sidecar.node.programs import is_installed
from sidecar.state.desired import has_our_shape
from sidecar.state.model import Family

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
OTHER: Final = {"nft": "legacy", "legacy": "nft"}


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend, and why it was chosen."""

    name: str
    reason: str
    is_firm: bool = True  # whether it rests on evidence, so that it need not be looked at again
    contrary: str = ""  # why the node would now get the other backend, if it would


class Candidates:
    """The iptables programs of one address family."""

    def __init__(
        self,
        run: Run,
        family: Family,
        wait: float,
        *,
        is_installed: Callable[[str], bool] = is_installed,
        readable_tables: Callable[[Family], Sequence[str] | None] | None = None,
    ) -> None:
        self._run = run
        self._family = family
        self._wait = wait
        self._is_installed = is_installed
        self._readable_tables = readable_tables or legacy_tables.readable

    def choose(self) -> Choice:
        """Return the backend to use; raise a SidecarError if a look failed that this takes."""
        names = self.names()
        if len(names) < len(OTHER):
            return (
                Choice(names[0], "the only one that is installed")
                if names
                else Choice(SYSTEM, "neither iptables-nft nor iptables-legacy is installed")
            )
        for name in names:
            if hint := self._hint(name):
                return Choice(name, f"Kubernetes' chain {hint} is there")
        numbers: dict[str, int] = {}
        for name in names:
            try:
                numbers[name] = self.count_rules(name)
            except BackendUnusable as error:
                return Choice(OTHER[name], str(error), is_firm=False)
        most = max(names, key=lambda name: numbers[name])
        if not numbers[most]:
            return Choice("nft", "no other rules in either backend", is_firm=False)
        there = "1 rule is" if numbers[most] == 1 else f"{numbers[most]} rules are"
        return Choice(most, f"{there} there, {numbers[OTHER[most]]} in the other backend")

    def names(self) -> list[str]:
        """Return the backends that are installed."""
        return [name for name in OTHER if self.has(self.tool(name))]

    def count_rules(self, name: str) -> int:
        """Return the number of rules in the built-in chains, without those of sidecars; raise BackendUnusable."""
        tables = self.tables(name)
        chains = [(table, chain) for table in tables for chain in _BUILT_IN.get(table, ())]
        tool = self.tool(name)
        listings, failures = tool.list_all(chains)
        if failures and not listings and not tool.starts(tables):
            raise BackendUnusable(tool.command, str(next(iter(failures.values()))))
        lines = (line for rules in listings.values() for line in rules)
        # Each chain that cannot be listed holds a rule that iptables cannot print.
        return len(failures) + sum(not (line.startswith("-P") or has_our_shape(line)) for line in lines)

    def _hint(self, name: str) -> str | None:
        if "mangle" not in self.tables(name):
            return None
        tool = self.tool(name)
        try:
            return next((hint for hint in HINTS if tool.has_chain(("mangle", hint))), None)
        except NotSupported:  # whether the backend can be used at all, the count of its rules shows
            return None

    def tables(self, name: str) -> Sequence[str]:
        """Return the tables that can be looked at without creating them; raise BackendUnknown."""
        if name != "legacy":
            return tuple(_BUILT_IN)
        return legacy_tables.known(self._family, self.readable_tables())

    def existing_tables(self, tool: Iptables) -> frozenset[str]:
        """Return the tables of a tool that exist; raise BackendUnknown if that cannot be known."""
        if tool.is_legacy():
            return frozenset(self.tables("legacy"))
        known = nft_tables.names(self._family)
        return frozenset(_BUILT_IN) if known is None else known

    def readable_tables(self) -> Sequence[str] | None:
        """Return the legacy tables that the kernel has, or None if that cannot be known."""
        return self._readable_tables(self._family)

    def tool(self, name: str, longest_wait: float = math.inf) -> Iptables:
        """Return the iptables of a backend, which waits for the xtables lock, but not longer than `longest_wait`."""
        return Iptables(self._run, self._family, name, min(self._wait, longest_wait))

    def has(self, tool: Iptables) -> bool:
        """Whether the programs of a backend are installed."""
        return all(map(self._is_installed, tool.programs))
