"""Shows other processes which backend an instance uses, by locks that end with it (claims.py).

The commands that only look take their backend from there, so that they look where the running instance works. And an
instance that moves to the other backend leaves the rules in the former one to those that still use it there.
"""

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from sidecar.node import claims, instances
from sidecar.node.claims import Claims
from sidecar.state.model import Family, RulesBackend, RuleSet

_NAMES: Final = ("nft", "legacy", "system")


class Shown:
    """The backend that this instance uses for the rules of a family."""

    def __init__(self, family: Family, rules: Sequence[RuleSet], mine: Claims) -> None:
        self._family = family
        self._rules = rules
        self._mine = mine

    def use(self, name: str) -> None:
        """Show this backend, instead of the one before."""
        self._mine.show([RulesBackend(self._family, name), *self._of_rules(name)])

    def is_needed_by_others(self, name: str) -> bool:
        """Whether another instance keeps some of the same rules in a backend."""
        return self._mine.is_shown_by_others(self._of_rules(name))

    def _of_rules(self, name: str) -> list[RulesBackend]:
        return [RulesBackend(self._family, name, each) for each in self._rules]


def of_running_sidecar(family: Family, rules: Iterable[RuleSet]) -> str | None:
    """Return the backend of the instance that runs on this network, or None if none is seen, or several disagree.

    One with the same rules comes first. An instance may have a /run of its own; /proc leads there.
    """
    running, _ = instances.running()
    same = {RulesBackend(family, name, each) for name in _NAMES for each in rules}
    any_rules = {RulesBackend(family, name) for name in _NAMES}
    shown: set[RulesBackend] = set()
    roots = ("/", *(f"/proc/{each.process.pid}/root" for each in running))
    for root in roots:
        with contextlib.suppress(OSError):  # none has run there, or it belongs to another user
            shown |= claims.held(same | any_rules, Path(root, *claims.DIRECTORY.parts[1:]))
    for group in (same, any_rules):
        names = {each.backend for each in shown & group}
        if len(names) == 1:
            return names.pop()
    asked = {each.value("iptables-backend") for each in running if each.is_python}.intersection(_NAMES)
    return asked.pop() if len(asked) == 1 and not shown else None
