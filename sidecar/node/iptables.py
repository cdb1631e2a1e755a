"""Observes and changes our rules with `iptables` and `ip6tables`.

Measured with 1.8.9 and 1.8.11, both backends:

- `-D` compares rightly, but for what iptables-nft does not know (see iptables_looks: it is not run there) and for
  prefix lengths (see `_deletion`), and for narrower rules that it lists like ours (see `_exactly`).
- What stands between `*table` and `COMMIT` is one transaction: if a line fails, none has an effect. The nft
  backend has the kernel do that; legacy holds the lock and writes the table back only at `COMMIT`.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Final, TypeAlias

from sidecar.errors import SidecarError
from sidecar.node import nft_rules
from sidecar.node.command import Command, Run
from sidecar.node.iptables_looks import IptablesLooks, line
from sidecar.node.iptables_program import YES_OR_NO, Line
from sidecar.node.listings import places_of_lookalikes, reduction
from sidecar.state.actions import AddRule, MoveToFront, Outcome, RemoveFormer, RemoveRule, RemoveSurplus, RuleAction
from sidecar.state.model import BackendInUse, Family, Rule

#: How many rules one transaction changes: without privileges in the initial user namespace, nft gets a socket buffer
#: that does not hold 500.
MOST_AT_ONCE: Final = 100

_ForSeveral: TypeAlias = Callable[[Sequence[RuleAction]], Iterator[tuple[RuleAction, Outcome]]]

#: Of so few rules each is tried alone once a transaction for all of them was refused.
_FEW: Final = 5


class Iptables(IptablesLooks):
    """Observes and changes the rules of one address family through one backend."""

    def __init__(self, run: Run, family: Family, backend: str, wait: float) -> None:
        super().__init__(run, family, backend, wait)
        self._compares_prefixes = backend == "legacy"

    in_use: BackendInUse | None = None  # it does not know why it was chosen, or of what release it is

    def reconsider(self) -> None:
        """Do nothing: it is one backend."""

    def commands(self, action: RuleAction) -> list[Command]:
        """Return the commands for an action, in order; they assume that nobody changes anything meanwhile."""
        if action.rule in self.beside_narrower and not isinstance(action, AddRule):
            return [command for command, _ in self._exactly(action)]
        match action:
            case AddRule(rule, insert):
                return [(self.argv(*line(rule, "-I" if insert else "-A")), "")]
            case MoveToFront(rule):
                return [self._deletion(rule, 1, line(rule, "-I"))]
            case RemoveSurplus(rule):
                return self._removals_of_surplus(rule)
            case RemoveRule(rule, copies) | RemoveFormer(rule, copies):
                return self._removals(rule, copies)

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
        """Reduce the copies of several rules in one transaction, as `_remove_surplus` does with those of one."""
        rules = [action.rule for action in actions]
        try:
            listed = self.listed(sorted({rule.place for rule in rules}))
            lines = [each for chain in listed for each in reduction(chain, listed[chain], rules)]
            is_done = self._transaction(self.restore(lines))
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
        if action.rule in self.beside_narrower and not isinstance(action, AddRule):
            return self._apply_exactly(action)
        match action:
            case AddRule(rule, insert):
                return self._add(rule, "-I" if insert else "-A")
            case MoveToFront(rule):
                return self._delete(rule, 1, line(rule, "-I"))
            case RemoveSurplus(rule, surplus):
                return self._remove_surplus(rule, surplus)
            case RemoveRule(rule, copies) | RemoveFormer(rule, copies):
                return self._remove(rule, copies)

    def _exactly(self, action: RuleAction) -> list[tuple[Command, int]]:
        """Return the commands for an action, and how many copies each removes; they delete by nft's handles.

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

    def _apply_exactly(self, action: RuleAction) -> int:
        done = 0
        for (argv, stdin), number in self._exactly(action):
            result = self.run(*argv, stdin=stdin)
            if result.exit:
                raise self.failure(argv, stdin, result)
            done += number
        return done

    def _add(self, rule: Rule, verb: str) -> bool:
        if self._ask(rule, "-C"):
            seen = self.observe([rule])
            if seen.errors:
                raise seen.errors[0]
            if rule in seen.unknown or seen.copies[rule]:
                return False
        self._ask(rule, verb, answers=(0,))
        self.added.add(rule)
        return True

    def _remove(self, rule: Rule, copies: int) -> int:
        if copies == 1 and rule not in self.confusable:
            return self._ask(rule, "-D")
        return sum(number for number in self._chunks(rule, copies) if self._delete(rule, number))

    def _removals(self, rule: Rule, copies: int) -> list[Command]:
        if copies == 1 and rule not in self.confusable:
            return [(self.argv(*line(rule, "-D")), "")]
        return [self._deletion(rule, number) for number in self._chunks(rule, copies)]

    def _chunks(self, rule: Rule, copies: int) -> list[int]:
        """Return how many copies go at once, one number for each time; beside lookalikes it is all or nothing."""
        if self._is_mistaken(rule):
            return [copies]
        return [min(MOST_AT_ONCE, copies - done) for done in range(0, copies, MOST_AT_ONCE)]

    def _is_mistaken(self, rule: Rule) -> bool:
        """Whether iptables may delete another rule when asked to delete this one."""
        return rule in self.confusable and not self._compares_prefixes

    def _delete(self, rule: Rule, copies: int, *then: Line) -> bool:
        """Delete copies of a rule and do something else, in one transaction: all or nothing."""
        if self._is_mistaken(rule):
            for _ in range(2):  # once more, in case somebody changed them meanwhile
                if self._transaction(self._deletion(rule, copies, *then)):
                    return True
            self._compares_prefixes = True
        return self._transaction(self._deletion(rule, copies, *then))

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

    def _remove_surplus(self, rule: Rule, surplus: int) -> int:
        """Replace all copies of a rule by one in the place of the first, where it has its effect; return how many went.

        In one transaction (of very many: some at once): unless all copies that were just counted are still there, it
        comes to nothing. So of two sidecars that both count two and take one away, one fails, and there is a copy at
        every moment.
        """
        removed = 0
        while removed < surplus:
            copies, first = self._counted(rule)
            if copies <= 1 or not self._delete(rule, (number := self._chunks(rule, copies)[0]), first):
                break
            removed += number - 1
        return removed

    def _removals_of_surplus(self, rule: Rule) -> list[Command]:
        copies, first = self._counted(rule)
        found = []
        while copies > 1:
            number = self._chunks(rule, copies)[0]
            found.append(self._deletion(rule, number, first))
            copies -= number - 1
        return found

    def _counted(self, rule: Rule) -> tuple[int, Line]:
        """Return the number of copies of a rule, and the line that inserts one in the place of the first."""
        lines = self.listing(rule.place)
        place = lines.index(rule.line) + 1 if rule.line in lines else 1
        return lines.count(rule.line), (rule.table, ("-I", rule.chain, str(place), *rule.match))

    def _transaction(self, command: Command) -> bool:
        """Run a command that changes all or nothing; return False if a rule that it names does not exist."""
        argv, stdin = command
        result = self.run(*argv, stdin=stdin)
        if result.exit not in YES_OR_NO:
            raise self.failure(argv, stdin, result)
        return result.exit == 0

    def _ask(self, rule: Rule, verb: str, *, answers: Sequence[int] = YES_OR_NO) -> bool:
        """Run iptables with one verb on one rule: True for exit status 0, False for another of `answers`."""
        argv = self.argv(*line(rule, verb))
        result = self.run(*argv)
        if result.exit not in answers:
            raise self.failure(argv, "", result)
        return result.exit == 0


def _lines(action: RuleAction) -> list[Line]:
    """Return the lines of a transaction that carry out an action which goes together with others."""
    match action:
        case AddRule(rule, insert):
            return [line(rule, "-I" if insert else "-A")]
        case RemoveRule(rule, copies) | RemoveFormer(rule, copies):
            return [line(rule, "-D")] * copies
        case _:
            raise AssertionError(action)
