"""The backend that is not in use: which of our rules are there, from an earlier choice or by another hand."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from sidecar.errors import BackendUnusable, SidecarError
from sidecar.node import releases
from sidecar.node.backend_choice import OTHER, Candidates
from sidecar.node.iptables import Iptables
from sidecar.node.releases import Release
from sidecar.node.seen import Seen
from sidecar.state.actions import Outcome, RuleAction
from sidecar.state.model import Rule


class OtherBackend:
    """The other backend of an address family; there are no rules if it is not installed, or cannot be used at all."""

    def __init__(self, candidates: Candidates, used: Iptables, release: Release) -> None:
        """`release` is that of the backend in use: one package has both."""
        self._candidates = candidates
        self.name = OTHER["legacy" if used.is_legacy() else "nft"]
        self.iptables = candidates.tool(self.name, longest_wait=1.0)  # nothing in use depends on it
        self.iptables.loses_ports = releases.loses_ports(release) and self.name == "nft"

    def observe(self, rules: Sequence[Rule]) -> Seen:
        """Look at our rules, but only in tables that exist; raise as Iptables.observe does."""
        tables = self._candidates.tables(self.name) if self._candidates.has(self.iptables) else ()
        there = [rule for rule in rules if rule.table in tables]
        try:
            return self.iptables.observe(there) if there else Seen({})
        except SidecarError as error:
            if error.transient or not self._is_unusable():
                raise
            return Seen({})

    def survey(self, rules: Sequence[Rule]) -> tuple[Mapping[Rule, int], int]:
        """Return our rules, and the number of others."""
        copies = self.observe(rules).copies
        try:
            return copies, self._candidates.count_rules(self.name) if self._candidates.has(self.iptables) else 0
        except BackendUnusable:
            return copies, 0

    def _is_unusable(self) -> bool:
        try:
            self._candidates.count_rules(self.name)
        except BackendUnusable:
            return True
        return False


def apply_parts(
    parts: Sequence[tuple[RuleAction, Iptables, RuleAction]],
) -> Iterator[tuple[RuleAction, Outcome]]:
    """Carry out actions, each given with a part of it and that part's backend; yield what came of each as a whole."""
    wholes: dict[Iptables, dict[RuleAction, RuleAction]] = {}
    for action, tool, part in parts:
        wholes.setdefault(tool, {})[part] = action
    left = Counter(action for action, _, _ in parts)
    changed: Counter[RuleAction] = Counter()
    for tool, actions in wholes.items():
        for part, outcome in tool.apply(list(actions)):
            action = actions[part]
            if isinstance(outcome, SidecarError):
                yield action, outcome
                continue
            left[action] -= 1
            changed[action] += outcome
            if not left[action]:
                yield action, changed[action]
