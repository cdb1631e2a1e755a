"""Observes and changes our rules with `iptables` and `ip6tables`.

Measured with 1.8.9 and 1.8.11, both backends:

- A listing can be trusted: these rules have been printed in this spelling by every release since 2013. A successful
  `-C` cannot: `ip6tables-legacy` 1.8.9 finds a rule that has another port (1.8.11 does not). `-D` compares
  correctly in both. So listings decide which rules exist, and give their number of copies.
- What stands between `*table` and `COMMIT` is one transaction: if a line fails, none has an effect. The nft
  backend has the kernel do that; legacy holds the lock and writes the table back only at `COMMIT`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from loguru import logger

from sidecar.errors import ChainUnreadable, SidecarError
from sidecar.firewall import walk
from sidecar.node.command import Command, Run
from sidecar.node.iptables_program import TRY_AGAIN, YES_OR_NO, IptablesProgram, Line
from sidecar.node.listings import is_lookalike, places_of_lookalikes
from sidecar.state.actions import AddRule, MoveToFront, RemoveRule, RemoveSurplus, RuleAction
from sidecar.state.model import BackendInUse, Chain, Family, Hindrance, Rule

#: How many rules one transaction changes: without privileges in the initial user namespace, nft gets a socket buffer
#: that does not hold 500.
MOST_AT_ONCE: Final = 100


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at rules found."""

    copies: dict[Rule, int]  # how many copies of each rule there are; one that is not in here could not be looked for
    hindrances: dict[Rule, Hindrance] = field(default_factory=dict)
    errors: tuple[SidecarError, ...] = ()  # why some could not be looked for


class Iptables(IptablesProgram):
    """Observes and changes the rules of one address family through one backend."""

    def __init__(self, run: Run, family: Family, backend: str, wait: float) -> None:
        super().__init__(run, family, backend, wait)
        self._said_that_it_cannot_count = False
        self._last: tuple[str, Sequence[Rule], Seen] | None = None
        #: Rules in whose chain there are others that iptables does not tell apart from them.
        self._confusable: set[Rule] = set()
        self._compares_prefixes = backend == "legacy"

    @property
    def in_use(self) -> BackendInUse | None:
        """None: it does not know why it was chosen, or of what release it is."""
        return None

    def observe(self, rules: Sequence[Rule]) -> Seen:
        """Look at the chains of these rules; raise a SidecarError if nothing could be looked at.

        One process, if all chains can be listed.
        """
        chains = _chains(rules)
        argv, stdin = self.restore([(table, ("-S", chain)) for table, chain in chains])
        result = self.run(*argv, stdin=stdin)
        if result.exit == TRY_AGAIN:
            raise self.failure(argv, stdin, result)
        if result.exit == 0:
            # A node in sync gives the same output each time: parse it only when it changes.
            if self._last is None or self._last[:2] != (result.stdout, rules):
                self._last = (result.stdout, rules, self._found(self.read(argv, stdin, result, chains), rules))
            return self._last[2]
        # The batch ends at the first chain that cannot be listed, without details: list the chains one by one.
        return self._observe_chains(chains, rules)

    def _observe_chains(self, chains: Sequence[Chain], rules: Sequence[Rule]) -> Seen:
        """Look at each chain alone, and ask for rules one by one where a chain cannot be listed.

        nft does not list a chain in which there is a rule that only it can express. There, -C often
        still finds out whether ours is in it; an exit status of 3 means that it cannot. A backend that does not work at
        all exits with 1, too, as for a missing rule: this counts only if the same backend can list something else.
        """
        listings, failures = self.list_each(chains)
        copies: dict[Rule, int] = {}
        errors = []
        for chain, failure in failures.items():
            answers = {}
            if not self.is_legacy() and (listings or self.works()):
                answers = {rule: self._ask_status(rule) for rule in rules if rule.place == chain}
            if answers and set(answers.values()) <= set(YES_OR_NO):
                self._say_that_it_cannot_count(chain, failure)
                copies |= {rule: 1 - answer for rule, answer in answers.items()}
            else:
                errors.append(failure)
        if len(errors) == len(chains):
            raise errors[0]
        seen = self._found(listings, [rule for rule in rules if rule.place in listings])
        unreadable = tuple(ChainUnreadable(str(error)) for error in errors)
        return Seen({**seen.copies, **copies}, seen.hindrances, unreadable)

    def _ask_status(self, rule: Rule) -> int:
        return self.run(*self.argv(*_line(rule, "-C"))).exit

    def commands(self, action: RuleAction) -> list[Command]:
        """Return the commands for an action, in order; they assume that nobody changes anything meanwhile."""
        match action:
            case AddRule(rule, insert):
                return [(self.argv(*_line(rule, "-I" if insert else "-A")), "")]
            case MoveToFront(rule):
                return [self._deletion(rule, 1, _line(rule, "-I"))]
            case RemoveSurplus(rule):
                return self._removals_of_surplus(rule)
            case RemoveRule(rule, copies):
                return self._removals(rule, copies)

    def apply(self, action: RuleAction) -> bool:
        """Carry out one action; return whether it changed anything. Raises a SidecarError if iptables refuses.

        Others change rules too, between our look and our act. So each action checks once more: what another
        program added meanwhile is not added again, and the last copy is never removed as surplus.
        """
        match action:
            case AddRule(rule, insert):
                if self._ask(rule, "-C") and self.observe([rule]).copies.get(rule):
                    return False
                self._ask(rule, "-I" if insert else "-A", answers=(0,))
                return True
            case MoveToFront(rule):
                return self._delete(rule, 1, _line(rule, "-I"))
            case RemoveSurplus(rule):
                return self._remove_surplus(rule)
            case RemoveRule(rule, copies):
                return self._remove(rule, copies)

    def _remove(self, rule: Rule, copies: int) -> bool:
        if copies == 1 and rule not in self._confusable:
            return self._ask(rule, "-D")
        removed = [self._delete(rule, number) for number in self._chunks(rule, copies)]
        return any(removed)

    def _removals(self, rule: Rule, copies: int) -> list[Command]:
        if copies == 1 and rule not in self._confusable:
            return [(self.argv(*_line(rule, "-D")), "")]
        return [self._deletion(rule, number) for number in self._chunks(rule, copies)]

    def _chunks(self, rule: Rule, copies: int) -> list[int]:
        """Return how many copies go at once, one number for each time; beside lookalikes it is all or nothing."""
        if self._is_mistaken(rule):
            return [copies]
        return [min(MOST_AT_ONCE, copies - done) for done in range(0, copies, MOST_AT_ONCE)]

    def _is_mistaken(self, rule: Rule) -> bool:
        """Whether iptables may delete another rule when asked to delete this one."""
        return rule in self._confusable and not self._compares_prefixes

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
        return self.restore([*[_line(rule, "-D")] * copies, *then])

    def _deletion_of_lookalikes(self, rule: Rule) -> list[Line]:
        lines = self.listing(rule.place)
        back = [
            (rule.table, ("-I", rule.chain, str(place), *match)) for place, match in places_of_lookalikes(lines, rule)
        ]
        return [*[_line(rule, "-D")] * (len(back) + lines.count(rule.line)), *back]

    def _remove_surplus(self, rule: Rule) -> bool:
        """Replace all copies of a rule (of very many: some) by one in the place of the first, where it has its effect.

        In one transaction, which fails unless all copies that were just counted are still there. So if two sidecars
        both count two copies and remove one, one of them fails, and a copy is there at every moment.
        """
        copies, first = self._counted(rule)
        if copies <= 1:
            return False
        return self._delete(rule, self._chunks(rule, copies)[0], first)

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

    def _found(self, listings: Mapping[Chain, Sequence[str]], rules: Sequence[Rule]) -> Seen:
        copies = {rule: listings[rule.place].count(rule.line) for rule in rules}
        hindrances = {}
        for rule, number in copies.items():
            lines = listings[rule.place]
            if any(is_lookalike(line, rule) for line in lines):
                self._confusable.add(rule)
            else:
                self._confusable.discard(rule)
            if number and (found := walk.hindrance(rule, lines[: lines.index(rule.line)])):
                hindrances[rule] = found
        return Seen(copies, hindrances)

    def _ask(self, rule: Rule, verb: str, *, answers: Sequence[int] = YES_OR_NO) -> bool:
        """Run iptables with one verb on one rule: True for exit status 0, False for another of `answers`."""
        argv = self.argv(*_line(rule, verb))
        result = self.run(*argv)
        if result.exit not in answers:
            raise self.failure(argv, "", result)
        return result.exit == 0

    def _say_that_it_cannot_count(self, chain: Chain, failure: SidecarError) -> None:
        if not self._said_that_it_cannot_count:
            self._said_that_it_cannot_count = True
            logger.warning(
                f"{self.command} cannot list {' '.join(chain)}, so a second copy of a rule in it would go unnoticed: "
                f"{failure}"
            )


def _chains(rules: Sequence[Rule]) -> list[Chain]:
    return sorted({rule.place for rule in rules})


def _line(rule: Rule, verb: str) -> Line:
    return rule.table, (verb, rule.chain, *rule.match)
