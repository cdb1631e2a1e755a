"""Observes and changes our rules with `iptables` and `ip6tables`.

Measured with 1.8.9 and 1.8.11, both backends:

- `-D` compares rightly, but for what iptables-nft does not know (see iptables_observer: it is not run there) and for
  prefix lengths (see `_deletion`), and for narrower rules that it lists like ours (see `_exactly`).
- What stands between `*table` and `COMMIT` is one transaction: if a line fails, none has an effect. The nft
  backend has the kernel do that; legacy holds the lock and writes the table back only at `COMMIT`.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import groupby
from typing import Final, TypeAlias

from sidecar.errors import SidecarError
from sidecar.node import nft_rules
from sidecar.node.command import Command, Run
from sidecar.node.iptables_observer import IptablesObserver, line
from sidecar.node.iptables_program import YES_OR_NO, Line
from sidecar.node.listings import places_of_lookalikes, reduction
from sidecar.state.actions import AddRule, MoveToFront, Outcome, RemoveFormer, RemoveRule, RemoveSurplus, RuleAction
from sidecar.state.model import BackendInUse, Family, Rule

#: How many rules one transaction changes: without privileges in the initial user namespace, nft gets a socket buffer
#: that does not hold 500.
MOST_AT_ONCE: Final = 100

#: A command, and how many copies of a rule it changes.
_Step: TypeAlias = tuple[Command, int]

_ForSeveral: TypeAlias = Callable[[Sequence[RuleAction]], Iterator[tuple[RuleAction, Outcome]]]

#: Of so few rules each is tried alone once a transaction for all of them was refused.
_FEW: Final = 5


class Iptables(IptablesObserver):
    """Observes and changes the rules of one address family through one backend."""

    def __init__(self, run: Run, family: Family, backend: str, wait: float) -> None:
        super().__init__(run, family, backend, wait)
        self._compares_prefixes = backend == "legacy"

    in_use: BackendInUse | None = None  # it does not know why it was chosen, or of what release it is

    def reconsider(self) -> None:
        """Do nothing: it is one backend."""

    def commands(self, action: RuleAction) -> list[Command]:
        """Return the commands for an action, in order; they assume that nobody changes anything meanwhile."""
        is_exact = action.rule in self.beside_narrower and not isinstance(action, AddRule)
        return [command for command, _ in (self._exactly(action) if is_exact else self._steps(action))]

    def apply(self, actions: Sequence[RuleAction]) -> Iterator[tuple[RuleAction, Outcome]]:
        """Carry out actions, and yield what came of each: how many copies it changed, or why it failed.

        Several that add or remove take one process, and in each table it is all or nothing. If that process does not
        work at all, yield its failure for the first of them only.
        """
        for together, group in groupby(actions, key=self._for_several):
            some = list(group)
            if together and len(some) > 1:
                yield from together(some)
            else:
                yield from ((action, self._try(action)) for action in some)

    def _for_several(self, action: RuleAction) -> _ForSeveral | None:
        """Return what carries out several such actions together; None if more has to be looked up for this one."""
        needs_look = any(action.rule in each for each in (self.confusable, self.beside_narrower, self.added))
        if needs_look or isinstance(action, MoveToFront):
            return None
        return self._reduce_together if isinstance(action, RemoveSurplus) else self._change_together

    def _change_together(self, actions: Sequence[RuleAction]) -> Iterator[tuple[RuleAction, Outcome]]:
        argv, stdin = self.restore([each for action in actions for each in _lines(action)])
        try:
            result = self.run(*argv, stdin=stdin)
            failure = self.failure(argv, stdin, result) if result.exit else None
        except SidecarError as error:
            failure = error
        if failure and failure.transient:
            yield actions[0], failure
        elif failure:
            yield from self._apply_in_parts(actions)
        else:
            yield from ((action, self._done(action)) for action in actions)

    def _apply_in_parts(self, actions: Sequence[RuleAction]) -> Iterator[tuple[RuleAction, Outcome]]:
        """After a refusal, do what is left to do, as tables before it were changed; so that one keeps no other out."""
        try:
            copies = self.observe([action.rule for action in actions]).copies
        except SidecarError as error:
            yield actions[0], error
            return
        left = []
        for action in actions:
            number = copies.get(action.rule)
            if number is not None and bool(number) == isinstance(action, AddRule):
                yield action, self._done(action)
            else:
                left.append(action)
        yield from self._in_halves(left)

    def _in_halves(self, actions: Sequence[RuleAction]) -> Iterator[tuple[RuleAction, Outcome]]:
        if len(actions) <= _FEW:
            yield from ((action, self._try(action)) for action in actions)
        else:
            middle = len(actions) // 2
            yield from self.apply(actions[:middle])
            yield from self.apply(actions[middle:])

    def _reduce_together(self, actions: Sequence[RuleAction]) -> Iterator[tuple[RuleAction, Outcome]]:
        """Reduce the copies of several rules in one transaction, as `_reduction` does with those of one."""
        rules = [action.rule for action in actions]
        try:
            listed = self.listed(sorted({rule.place for rule in rules}))
            lines = [each for chain in listed for each in reduction(chain, listed[chain], rules)]
            is_done = self.succeeds(self.restore(lines))
        except SidecarError as error:
            yield from [(actions[0], error)] if error.transient else self._in_halves(actions)
            return
        if is_done:
            yield from ((action, action.copies) for action in actions if isinstance(action, RemoveSurplus))
        elif len(actions) <= _FEW:  # of more, others may have done it: the next look tells
            yield from self._in_halves(actions)

    def _done(self, action: RuleAction) -> int:
        """Remember an action of a transaction that took effect; return how many copies it changed."""
        if isinstance(action, RemoveRule | RemoveFormer):
            return action.copies
        self.added.add(action.rule)
        return 1

    def _try(self, action: RuleAction) -> Outcome:
        try:
            return self._apply_one(action)
        except SidecarError as error:
            return error

    def _apply_one(self, action: RuleAction) -> int:
        """Carry out one action; return how many copies it changed. Raises a SidecarError if iptables refuses.

        Others change rules too, between our look and our act. So each action checks once more: what another
        program added meanwhile is not added again, and the last copy is never removed as surplus.
        """
        if isinstance(action, AddRule):
            return self._add(action)
        if action.rule in self.beside_narrower:
            return self._carry_out(self._exactly(action), answers=(0,))
        if self._is_mistaken(action.rule):
            for _ in range(2):  # once more, in case somebody changed the rules meanwhile
                steps = self._steps(action)
                if (done := self._carry_out(steps)) or not steps:
                    return done
            self._compares_prefixes = True
        return self._carry_out(self._steps(action))

    def _carry_out(self, steps: Sequence[_Step], answers: Collection[int] = YES_OR_NO) -> int:
        """Run commands that change all or nothing; return how many copies they changed. 1: a rule does not exist."""
        return sum(copies for command, copies in steps if self.succeeds(command, answers))

    def _steps(self, action: RuleAction) -> list[_Step]:
        match action:
            case AddRule():
                return [((self.argv(*_addition(action)), ""), 1)]
            case MoveToFront(rule):
                return [(self._deletion(rule, 1, line(rule, "-I")), 1)]
            case RemoveSurplus(rule):
                return self._reduction(rule)
            case RemoveRule(rule, copies) | RemoveFormer(rule, copies):
                if copies == 1 and rule not in self.confusable:
                    return [((self.argv(*line(rule, "-D")), ""), 1)]
                return [(self._deletion(rule, number), number) for number in self._chunks(rule, copies)]

    def _exactly(self, action: RuleAction) -> list[_Step]:
        """Return the steps of an action by commands that delete by nft's handles.

        Where a narrower rule is listed like ours, `-D` may take that one; and a place may be another rule's by then.
        """
        handles, found = self.handles(action.rule), []
        match action:
            case MoveToFront(rule):
                found, handles = [((self.argv(*line(rule, "-I")), ""), 0)], handles[:1]
            case RemoveSurplus():
                handles = handles[1:]
        parts = [handles[at : at + MOST_AT_ONCE] for at in range(0, len(handles), MOST_AT_ONCE)]
        return [*found, *((nft_rules.deletion(self.family, action.rule.place, part), len(part)) for part in parts)]

    def _reduction(self, rule: Rule) -> list[_Step]:
        """Return commands that replace all copies of a rule by one in the place of the first, where it has its effect.

        In one transaction (of very many: some at once): unless all copies that were just counted are still there, it
        comes to nothing. So of two sidecars that both count two and take one away, one fails, and there is a copy at
        every moment.
        """
        lines = self.listing(rule.place)
        copies, found = lines.count(rule.line), []
        while copies > 1:
            number = self._chunks(rule, copies)[0]
            first = (rule.table, ("-I", rule.chain, str(lines.index(rule.line) + 1), *rule.match))
            found.append((self._deletion(rule, number, first), number - 1))
            copies -= number - 1
        return found

    def _add(self, action: AddRule) -> bool:
        rule = action.rule
        if self.succeeds((self.argv(*line(rule, "-C")), "")):
            seen = self.observe([rule])
            if seen.errors:
                raise seen.errors[0]
            if rule in seen.unknown or seen.copies[rule]:
                return False
        self.succeeds((self.argv(*_addition(action)), ""), answers=(0,))
        self.added.add(rule)
        return True

    def _chunks(self, rule: Rule, copies: int) -> list[int]:
        """Return how many copies go at once, one number for each time; beside lookalikes it is all or nothing."""
        if self._is_mistaken(rule):
            return [copies]
        return [min(MOST_AT_ONCE, copies - done) for done in range(0, copies, MOST_AT_ONCE)]

    def _is_mistaken(self, rule: Rule) -> bool:
        """Whether iptables may delete another rule when asked to delete this one."""
        return rule in self.confusable and not self._compares_prefixes

    def _deletion(self, rule: Rule, copies: int, *then: Line) -> Command:
        """Return what deletes copies of a rule and does something else, in one transaction.

        ip6tables-nft (1.8.9) does not compare prefix lengths when it looks for the rule to delete. So where there are
        rules that it takes for ours, all of them go, and those that are not ours come back to their places. A release
        that does compare them finds fewer rules, so the transaction fails: then a plain deletion is right.
        """
        if self._is_mistaken(rule):
            return self.restore([*self._deletion_of_lookalikes(rule), *then])
        return self.restore([*[line(rule, "-D")] * copies, *then])

    def _deletion_of_lookalikes(self, rule: Rule) -> list[Line]:
        lines = self.listing(rule.place)
        back = [
            (rule.table, ("-I", rule.chain, str(place), *match)) for place, match in places_of_lookalikes(lines, rule)
        ]
        return [*[line(rule, "-D")] * (len(back) + lines.count(rule.line)), *back]


def _addition(action: AddRule) -> Line:
    return line(action.rule, "-I" if action.insert else "-A")


def _lines(action: RuleAction) -> list[Line]:
    """Return the lines of a transaction that carry out an action which goes together with others."""
    match action:
        case AddRule():
            return [_addition(action)]
        case RemoveRule(rule, copies) | RemoveFormer(rule, copies):
            return [line(rule, "-D")] * copies
        case _:
            raise AssertionError(action)
