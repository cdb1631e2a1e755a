"""Shows other processes which backend an instance uses, by locks that end with it (claims.py); finds what others show.

The commands that only look take their backend from there, so that they look where the running instance works. And an
instance that moves to the other backend leaves the rules in the former one to those that still use it there.
"""

import contextlib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from sidecar.node import claims, instances, standing
from sidecar.node.claims import Claims
from sidecar.node.command import Run
from sidecar.node.instances import Instance
from sidecar.state.model import LOOPBACK, Family, Foreign, RulesBackend, RuleSet

_Shown = TypeVar("_Shown", RulesBackend, Foreign)

_NAMES: Final = ("nft", "legacy", "system")


class ShownBackend:
    """The backend that this instance uses for the rules of a family."""

    def __init__(self, family: Family, rules: Sequence[RuleSet], mine: Claims) -> None:
        self._family = family
        self._rules = rules
        self._mine = mine

    def use(self, name: str) -> None:
        """Show this backend, instead of the one before."""
        self._mine.show([RulesBackend(self._family, name), *self._of_rules(name)])

    def is_needed_by_others(self, name: str) -> bool:
        """Whether another instance keeps some of the same rules in a backend; `system` may be either."""
        return self._mine.is_shown_by_others([*self._of_rules(name), *self._of_rules("system")])

    def _of_rules(self, name: str) -> list[RulesBackend]:
        return [RulesBackend(self._family, name, each) for each in self._rules]


def of_running_sidecar(run: Run, family: Family, rules: Collection[RuleSet]) -> str | None:
    """Return the backend of the instance that runs on this network, or None if none is seen, or several disagree.

    One with the same rules comes first. An instance may have a /run of its own; /proc leads there. The Go sidecar shows
    nothing: it uses the backend in which its rules stand.
    """
    running, _ = instances.running()
    same = {RulesBackend(family, name, each) for name in _NAMES for each in rules}
    any_rules = {RulesBackend(family, name) for name in _NAMES}
    shown = _shown_by(running, same | any_rules)
    for group in (same, any_rules):
        names = {each.backend for each in shown & group}
        if len(names) == 1:
            return names.pop()
    asked = {each.value("iptables-backend") for each in running if each.is_python}.intersection(_NAMES)
    if shown or len(asked) > 1:
        return None
    theirs = [each for each in rules if any(each.ip in other.addresses for other in running)]
    return asked.pop() if asked else standing.backend_of(run, family, theirs) if theirs else None


def keepers(running: Iterable[Instance], family: Family, backend: str, rules: Collection[RuleSet]) -> list[Instance]:
    """Return those of the instances that keep some of these rules in a backend, or may: Go's does not show where."""
    same = {RulesBackend(family, name, each) for name in (backend, "system") for each in rules}
    anywhere = {RulesBackend(family, name, each) for name in _NAMES for each in rules}
    found = [each for each in running if each.claims().intersection(rules)]
    shows_nothing = not _shown_by(found, anywhere)
    return [each for each in found if not each.is_python or shows_nothing or _shown_by([each], same)]


def is_foreign(interface: str) -> bool:
    """Whether the instance that runs on this network waits for the interface if it is missing."""
    return interface != LOOPBACK and bool(_shown_by(instances.running()[0], {Foreign(interface)}))


def _shown_by(running: Iterable[Instance], asked: Collection[_Shown]) -> frozenset[_Shown]:
    """Return what instances show, of what is asked for; each may have a /run of its own."""
    shown = frozenset[_Shown]()
    for root in ("/", *(f"/proc/{each.process.pid}/root" for each in running)):
        with contextlib.suppress(OSError):  # none has run there, or it belongs to another user
            shown |= claims.held(asked, Path(root, *claims.DIRECTORY.parts[1:]))
    return shown
