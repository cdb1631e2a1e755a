"""The rules of one address family, in the backend that is in use.

The two backends hold separate rules, and the kernel applies both. A rule that lets traffic in has an effect only in
the backend whose rules would drop it: the one that the node's other components use (backend_choice.py).

At an early start there may be no evidence yet. So a choice without evidence, and one after which a look failed, is
looked at again before each pass. If it changes, the rules move without a gap: they are added in the new backend, and
only those that were seen there are removed from the former one (state/plan.py).
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from loguru import logger

from sidecar.errors import BackendUnknown, CommandMissing, SidecarError
from sidecar.log import levels
from sidecar.node import nft_tables, releases
from sidecar.node.backend_choice import SYSTEM, Candidates, Choice
from sidecar.node.backends_shown import ShownBackend
from sidecar.node.command import Command, Run
from sidecar.node.iptables import Iptables
from sidecar.node.other_backend import OtherBackend, apply_parts
from sidecar.node.programs import is_installed
from sidecar.node.releases import Release
from sidecar.node.seen import Seen
from sidecar.state.actions import Outcome, RemoveFormer, RemoveRule, RuleAction
from sidecar.state.model import BackendInUse, Family, Rule

AUTO: Final = "auto"


class Backend:
    """The rules of one address family, in the requested or detected backend."""

    def __init__(  # noqa: PLR0913 - seven for the work, three for tests that simulate the node
        self,
        run: Run,
        family: Family,
        requested: str,
        wait: float,
        *,
        creates: bool = True,
        longest_look: float = math.inf,
        shown: ShownBackend | None = None,
        of_running: Callable[[], str | None] | None = None,
        is_installed: Callable[[str], bool] = is_installed,
        legacy_tables: Callable[[Family], Sequence[str] | None] | None = None,
        dormant: Callable[[Family], frozenset[str]] = nft_tables.dormant,
    ) -> None:
        """Use the `requested` backend (auto, nft, legacy, system); wait at most `wait` s for the xtables lock.

        What looks waits for at most `longest_look` s. Without `creates`, it asks for no table that does not exist, as
        asking legacy for one creates it. `shown` shows others what is in use; `of_running` returns what the running
        sidecar uses, for those that only look.
        """
        self._family: Family = family
        self._requested = requested
        self._wait = wait
        to_look = min(wait, longest_look)
        self._candidates = Candidates(run, family, to_look, is_installed=is_installed, readable_tables=legacy_tables)
        self._dormant = dormant
        self._creates = creates
        self._shown = shown
        self._of_running = of_running
        self._settled: Iptables | None = None
        self._choice: Choice | None = None
        self._release: Release | None = None
        self._is_moving = False
        self._in_both = False
        self._leftovers: Mapping[Rule, int] = {}
        self._other: OtherBackend | None = None

    @property
    def in_use(self) -> BackendInUse | None:
        """The backend, and why it was chosen; None until it is known."""
        if not (self._settled and self._choice and self._release):
            return None
        tool, choice, release = self._settled, self._choice, self._release
        return BackendInUse(
            self._family, tool.command, str(release), tool.is_legacy(), choice.reason, contrary=choice.contrary
        )

    @property
    def command(self) -> str:
        """The name of the program; the default one until the backend is known."""
        return self._settled.command if self._settled else self._candidates.tool(SYSTEM).command

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
        name = self._requested if self._requested != AUTO else next(iter(self._candidates.names()), SYSTEM)
        return self._candidates.tool(name).programs

    def for_cleanup(self) -> "Backend":
        """Return a copy that counts and removes our rules in both backends, and creates no table."""
        made = copy.copy(self)
        made._in_both, made._creates, made._is_moving = True, False, False  # noqa: SLF001 - an object of the same class
        return made

    def reconsider(self) -> None:
        """Before a pass: look again at a choice that is not firm, and if it changes, begin to move the rules."""
        if self._settled is None or self._choice is None or self._choice.is_firm:
            return
        try:
            choice = self._decide()
            if choice.name != self._choice.name:
                self._move(choice)
            self._choice = choice
        except SidecarError as error:
            logger.bind(**error.facts).log(levels.PASS, f"IPv{self._family} rules stay in {self.command}: {error}")

    def observe(self, rules: Sequence[Rule]) -> Seen:
        """Look at the rules; the first call chooses the backend. Raises as Iptables.observe does."""
        tool = self._settle(rules)
        try:
            seen = self._with_dormant(tool.observe(rules)) if self._creates else self.look(rules)
        except SidecarError as error:
            self._doubt(error)
            raise
        if self._other and self._is_moving:
            return self._with_former(self._other, seen, rules)
        return self._with_leftovers(self._other, seen, rules) if self._other and self._in_both else seen

    def commands(self, action: RuleAction) -> list[Command]:
        """Return the commands that carry out an action, as Iptables.commands does."""
        return [command for tool, part in self._parts(action) for command in tool.waiting(self._wait).commands(part)]

    def apply(self, actions: Sequence[RuleAction]) -> Iterator[tuple[RuleAction, Outcome]]:
        """Carry out actions, as Iptables.apply does; remove copies in each backend where the last look saw them."""
        return apply_parts([(action, *part) for action in actions for part in self._parts(action)])

    def _parts(self, action: RuleAction) -> list[tuple[Iptables, RuleAction]]:
        """Return what to do for an action, and in which backend."""
        tool = self._settle([action.rule])
        other = self._other.iptables if self._other else tool
        if isinstance(action, RemoveFormer):
            return [(other, action)]
        left = self._leftovers.get(action.rule, 0)
        if not isinstance(action, RemoveRule) or not left:
            return [(tool, action)]
        here, there = RemoveRule(action.rule, action.copies - left), RemoveRule(action.rule, left)
        return [(tool, here), (other, there)] if here.copies > 0 else [(other, there)]

    def look(self, rules: Sequence[Rule]) -> Seen:
        """Look at the rules as `observe` does, but create nothing: rules of a table that does not exist are missing.

        If it cannot be known whether a table exists, ask iptables for it nevertheless.
        """
        tool = self._settle([])
        missing = {table for table in {rule.table for rule in rules} if self.sees(table) is False}
        absent = [rule for rule in rules if rule.table in missing]
        there = [rule for rule in rules if rule.table not in missing]
        seen = tool.observe(there) if there else Seen({})
        return self._with_dormant(replace(seen, copies={**dict.fromkeys(absent, 0), **seen.copies}))

    def sees(self, table: str) -> bool | None:
        """Whether a table exists; None if that cannot be known, and asking iptables for it may create it."""
        self._settle([])
        if not self.is_legacy:
            return True
        tables = self._candidates.readable_tables()
        return None if tables is None else table in tables

    def tools(self) -> list[Iptables]:
        """Return the iptables of the backend in use, and that of the other one if it is installed."""
        used = self._settle([])
        return [used, *(each.iptables for each in (self._other,) if each and self._candidates.has(each.iptables))]

    def tables(self, tool: Iptables) -> frozenset[str]:
        """Return the tables of one of these tools that exist; raise BackendUnknown if that cannot be known."""
        return self._candidates.existing_tables(tool)

    def listed_in_other(self, rules: Sequence[Rule]) -> tuple[Iptables, Mapping[Rule, int], int]:
        """Return the iptables of the backend that is not in use, our rules there, and the number of others."""
        tool = self._settle(rules)
        other = self._other or OtherBackend(self._candidates, tool, tool.release())
        return other.iptables, *other.survey(rules)

    def _settle(self, rules: Sequence[Rule]) -> Iptables:
        if self._settled is None:
            choice = self._decide()
            tool = self._begin(choice)
            facts = logger.bind(family=self._family, backend=choice.name, version=str(self._release))
            facts.info(f"IPv{self._family} rules by {tool.command} {self._release}: {choice.reason}")
            self._warn_of_faults()
            if self._other and not self._in_both:
                self._warn_of_leftovers(self._other, rules)
            return tool
        return self._settled

    def _decide(self) -> Choice:
        if self._requested != AUTO:
            return Choice(self._requested, "set by --iptables-backend")
        name = self._of_running() if self._of_running else None
        try:
            choice = self._candidates.choose()
        except SidecarError as error:
            if name is None and self._in_both and isinstance(error, BackendUnknown):
                return Choice("nft", str(error), is_firm=False)
            if name is None:
                raise
            return Choice(name, f"the sidecar that runs here uses it ({error})", is_firm=False)
        if name is None:
            return choice
        if choice.name == name:
            return replace(choice, is_firm=False)
        return Choice(name, "the sidecar that runs here uses it", is_firm=False, contrary=choice.reason)

    def _begin(self, choice: Choice) -> Iptables:
        """Use a backend from now on, and show others that it is in use."""
        tool = self._candidates.tool(choice.name)
        release = tool.release()
        tool.loses_ports = releases.loses_ports(release) and not tool.is_legacy()
        self._settled, self._choice, self._release = tool, choice, release
        self._other = OtherBackend(self._candidates, tool, release)
        if self._shown:
            self._shown.use(choice.name)
        return tool

    def _move(self, choice: Choice) -> None:
        """Use another backend from now on; an instance that keeps rules leaves the former one bit by bit."""
        former, tool = self.command, self._begin(choice)
        if self._shown is None:
            return
        self._is_moving = True
        facts = logger.bind(family=self._family, backend=choice.name, version=str(self._release), former=former)
        facts.info(f"IPv{self._family} rules move from {former} to {tool.command} {self._release}: {choice.reason}")
        self._warn_of_faults()

    def _doubt(self, error: SidecarError) -> None:
        """After a failed look, look at the choice again: unless it may work a moment later, or it says nothing."""
        if self._choice and self._requested == AUTO and not (error.transient or isinstance(error, CommandMissing)):
            self._choice = replace(self._choice, is_firm=False)

    def _with_dormant(self, seen: Seen) -> Seen:
        """Return what was seen, with the tables that have no effect."""
        return seen if self.is_legacy else replace(seen, dormant=self._dormant(self._family))

    def _with_former(self, former: OtherBackend, seen: Seen, rules: Sequence[Rule]) -> Seen:
        """Return what was seen, with the rules that still have to leave the former backend."""
        if self._shown and self._shown.is_needed_by_others(former.name):
            return seen
        try:
            left = former.observe(rules)
        except SidecarError as error:
            if error.transient:
                return replace(seen, errors=(*seen.errors, error))
            logger.bind(**error.facts).warning(f"our rules may be left in {former.iptables.command}: {error}")
            self._is_moving = False
            return seen
        copies = {rule: number for rule, number in left.copies.items() if number}
        self._is_moving = bool(copies or left.errors)
        return replace(seen, former=copies, errors=(*seen.errors, *left.errors))

    def _with_leftovers(self, other: OtherBackend, seen: Seen, rules: Sequence[Rule]) -> Seen:
        """Return what was seen, with the copies in the other backend."""
        try:
            left = other.observe(rules)
        except SidecarError as error:
            return replace(seen, errors=(*seen.errors, error))
        self._leftovers = left.copies
        there = {rule: copies for rule, copies in left.copies.items() if copies}
        both = there | {rule: copies + there.get(rule, 0) for rule, copies in seen.copies.items()}
        return Seen(both, seen.hindrances, (*seen.errors, *left.errors), {**seen.unknown, **left.unknown})

    def _warn_of_faults(self) -> None:
        """Log the known faults of the release."""
        if self._settled and self._release:
            for fault in releases.faults(self._release, self._family):
                name = f"{self._settled.command} {self._release}"
                logger.bind(family=self._family, version=str(self._release)).warning(
                    f"{name}: {fault}; this program counts rules in listings instead"
                )

    def _warn_of_leftovers(self, other: OtherBackend, rules: Sequence[Rule]) -> None:
        try:
            number = sum(other.observe(rules).copies.values())
        except SidecarError as error:
            logger.bind(**error.facts).warning(f"could not look for our rules in the other backend: {error}")
            return
        if number:
            logger.bind(family=self._family, copies=number).warning(
                f"the other backend ({other.iptables.command}) has our rules, too: {number}; a cleanup removes them"
            )
