"""Rules, by `iptables` and `ip6tables`.

What was measured about them and matters here (1.8.9 and 1.8.11, both backends):

- `iptables-restore --noflush` takes `-S` and `-C` lines as well. One process looks at any number of chains in any
  number of tables, for the price of one `-C`, and changes nothing.
- A listing can be trusted: these rules have been printed in this spelling by every release since 2013. A `-C` that
  says yes can not: `ip6tables-legacy` 1.8.9 finds a rule that has another port (1.8.11 does not). `-D` compares
  rightly in both. So listings decide what is there, and count it on the way.
- What stands between `*table` and `COMMIT` is one transaction: if a line fails, none has an effect. The nft
  backend has the kernel do that; legacy holds the lock and writes the table back only at `COMMIT`.
- `iptables-save` has no place here: on the nft backend it reads every table, seconds on a node with many rules.

Exit status, not wording, decides what a command's failure means.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from loguru import logger

from sidecar.errors import (
    ChainUnreadable,
    CommandError,
    LockHeld,
    LockUnusable,
    NotSupported,
    OutputUnreadable,
    PermissionMissing,
    SidecarError,
)
from sidecar.firewall import walk
from sidecar.node import capabilities, xtables_lock
from sidecar.node.command import Command, Result, Run
from sidecar.node.listings import is_lookalike, parse_listings, places_of_lookalikes
from sidecar.state.actions import AddRule, MoveToFront, RemoveRule, RemoveSurplus, RuleAction
from sidecar.state.model import BackendInUse, Chain, Family, Hindrance, Rule

#: Backend → how its commands' names end. "system" is what the node's administrator chose `iptables` to be.
_SUFFIX: Final = {"nft": "-nft", "legacy": "-legacy", "system": ""}
_PREFIX: Final[dict[Family, str]] = {4: "iptables", 6: "ip6tables"}

#: Exit statuses (iptables' include/xtables.h, enum xtables_exittype). -C and -D say 1 for: no such rule.
_YES_OR_NO: Final = (0, 1)
_NOT_SUPPORTED: Final = 3
_TRY_AGAIN: Final = 4

#: How many rules one transaction changes: without privileges in the initial user namespace, nft gets a socket buffer
#: that does not hold 500.
MOST_AT_ONCE: Final = 100

#: A table, and the words of one line for it.
_Line: TypeAlias = tuple[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at rules found."""

    copies: dict[Rule, int]
    """How many copies of each rule there are; one that is not in here could not be looked for."""

    hindrances: dict[Rule, Hindrance] = field(default_factory=dict)
    errors: tuple[SidecarError, ...] = ()
    """Why some could not be looked for."""


class Iptables:
    """Observes and changes the rules of one address family through one backend."""

    def __init__(self, run: Run, family: Family, backend: str, wait: float) -> None:
        """`backend` is nft, legacy or system; `wait` the seconds to wait for the xtables lock."""
        self._run = run
        #: None: not known yet.
        self._legacy = None if backend == "system" else backend == "legacy"
        self.command = _PREFIX[family] + _SUFFIX[backend]
        # iptables takes whole seconds, and with 0 it would not wait at all.
        self._wait = ("-w", str(max(1, math.ceil(wait))))
        self._said_that_it_cannot_count = False
        self._last: tuple[str, Sequence[Rule], Seen] | None = None
        #: Rules beside which there are some that iptables takes for the same.
        self._confusable: set[Rule] = set()
        self._compares_prefixes = self._legacy is True

    @property
    def in_use(self) -> BackendInUse | None:
        """None: it does not know why it was chosen, or of what release it is."""
        return None

    @property
    def programs(self) -> tuple[str, str]:
        """The programs that have to be installed."""
        return self.command, f"{self.command}-restore"

    def observe(self, rules: Sequence[Rule]) -> Seen:
        """Look at the chains of these rules; raise a SidecarError if nothing could be looked at.

        One process, if all chains can be listed.
        """
        chains = _chains(rules)
        argv, stdin = self._restore([(table, ("-S", chain)) for table, chain in chains])
        result = self._run(*argv, stdin=stdin)
        if result.exit == _TRY_AGAIN:
            raise self._failure(argv, stdin, result)
        if result.exit == 0:
            # A node in sync answers the same again and again: it need not be read again.
            if self._last is None or self._last[:2] != (result.stdout, rules):
                self._last = (result.stdout, rules, self._found(self._read(argv, stdin, result, chains), rules))
            return self._last[2]
        # The batch ends at the first chain that cannot be listed, and says little of it: one by one, then.
        return self._observe_chains(chains, rules)

    def listed(self, chains: Sequence[Chain]) -> dict[Chain, tuple[str, ...]]:
        """Return the rules of those of the chains that iptables can print.

        Raises a SidecarError if it can print none of them, or the look failed otherwise.
        """
        if not chains:
            return {}
        argv, stdin = self._restore([(table, ("-S", chain)) for table, chain in chains])
        result = self._run(*argv, stdin=stdin)
        if result.exit == 0:
            return self._read(argv, stdin, result, chains)
        listings, failures = self._list_each(chains)
        if not listings:  # it is the look that does not work
            raise next(iter(failures.values()))
        return listings

    def has_chain(self, chain: Chain) -> bool:
        """Whether there is such a chain; to be asked of a table that exists, as legacy would create it."""
        argv = self._argv(chain[0], ("-S", chain[1]))
        result = self._run(*argv)
        if result.exit not in _YES_OR_NO:
            raise self._failure(argv, "", result)
        return result.exit == 0

    def _observe_chains(self, chains: Sequence[Chain], rules: Sequence[Rule]) -> Seen:
        """Look at each chain alone, and ask for rules one by one where a chain cannot be listed.

        nft does not list a chain in which there is a rule that only it can express. There -C often tells all the
        same whether ours is in it; where that exits with 3, it cannot judge either. But its 1, not there, is also what
        a backend says that does not work at all: it counts only if the same backend can list something else.
        """
        listings, failures = self._list_each(chains)
        copies: dict[Rule, int] = {}
        errors = []
        for chain, failure in failures.items():
            answers = {}
            if not self.is_legacy() and (listings or self._works()):
                answers = {rule: self._ask_status(rule) for rule in rules if rule.place == chain}
            if answers and set(answers.values()) <= set(_YES_OR_NO):
                self._say_that_it_cannot_count(chain, failure)
                copies |= {rule: 1 - answer for rule, answer in answers.items()}
            else:
                errors.append(failure)
        if len(errors) == len(chains):
            raise errors[0]
        seen = self._found(listings, [rule for rule in rules if rule.place in listings])
        unreadable = tuple(ChainUnreadable(str(error)) for error in errors)
        return Seen({**seen.copies, **copies}, seen.hindrances, unreadable)

    def _list_each(
        self, chains: Sequence[Chain]
    ) -> tuple[dict[Chain, tuple[str, ...]], dict[Chain, CommandError | NotSupported]]:
        """Return the rules of each chain that can be listed, and why the others cannot."""
        listings: dict[Chain, tuple[str, ...]] = {}
        failures: dict[Chain, CommandError | NotSupported] = {}
        for chain in chains:
            argv = self._argv(chain[0], ("-S", chain[1]))
            result = self._run(*argv)
            if result.exit == 0:
                listings |= self._read(argv, "", result, [chain])
                continue
            failure = self._failure(argv, "", result)
            if isinstance(failure, LockHeld) or not isinstance(failure, CommandError | NotSupported):
                raise failure
            failures[chain] = failure
        return listings, failures

    def _works(self) -> bool:
        """Whether the backend lists a chain that nobody puts rules of another kind into."""
        return self._run(*self._argv("mangle", ("-S", "FORWARD"))).exit == 0

    def _ask_status(self, rule: Rule) -> int:
        return self._run(*self._argv(*_line(rule, "-C"))).exit

    def commands(self, action: RuleAction) -> list[Command]:
        """Return what carries out an action, in order, if nobody changes anything meanwhile."""
        match action:
            case AddRule(rule, insert):
                return [(self._argv(*_line(rule, "-I" if insert else "-A")), "")]
            case MoveToFront(rule):
                return [self._deletion(rule, 1, _line(rule, "-I"))]
            case RemoveSurplus(rule):
                return self._removals_of_surplus(rule)
            case RemoveRule(rule, copies):
                return self._removals(rule, copies)

    def apply(self, action: RuleAction) -> bool:
        """Carry out one action; return whether it changed anything. Raises a SidecarError if iptables refuses.

        Others change rules too, between our look and our act. So each action looks once more as it acts: what
        another program added meanwhile is not added again, and a surplus copy is never the last one.
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
            return [(self._argv(*_line(rule, "-D")), "")]
        return [self._deletion(rule, number) for number in self._chunks(rule, copies)]

    def _chunks(self, rule: Rule, copies: int) -> list[int]:
        """Return how many copies go at once, one number for each time; beside lookalikes it is all or nothing."""
        if self._is_mistaken(rule):
            return [copies]
        return [min(MOST_AT_ONCE, copies - done) for done in range(0, copies, MOST_AT_ONCE)]

    def _is_mistaken(self, rule: Rule) -> bool:
        """Whether there are rules that iptables takes for this one when it is to delete it."""
        return rule in self._confusable and not self._compares_prefixes

    def _delete(self, rule: Rule, copies: int, *then: _Line) -> bool:
        """Delete copies of a rule and do something else, in one transaction: all or nothing."""
        if self._is_mistaken(rule):
            for _ in range(2):  # once more, in case that somebody changed them meanwhile
                if self._transaction(self._deletion(rule, copies, *then)):
                    return True
            self._compares_prefixes = True
        return self._transaction(self._deletion(rule, copies, *then))

    def _deletion(self, rule: Rule, copies: int, *then: _Line) -> Command:
        """Return what deletes copies of a rule and does something else, in one transaction.

        ip6tables-nft (1.8.9) does not compare prefix lengths when it looks for the rule to delete. So where there are
        rules that it takes for ours, all of them go, and those that are not ours come back to their places. A release
        that does compare them finds fewer than that, and nothing happens: then the plain way is right.
        """
        if self._is_mistaken(rule):
            return self._restore([*self._deletion_of_lookalikes(rule), *then])
        return self._restore([*[_line(rule, "-D")] * copies, *then])

    def _deletion_of_lookalikes(self, rule: Rule) -> list[_Line]:
        lines = self._listing(rule.place)
        back = [
            (rule.table, ("-I", rule.chain, str(place), *match)) for place, match in places_of_lookalikes(lines, rule)
        ]
        return [*[_line(rule, "-D")] * (len(back) + lines.count(rule.line)), *back]

    def _remove_surplus(self, rule: Rule) -> bool:
        """Replace all copies of a rule (of very many: some) by one in the place of the first, where it has its effect.

        In one transaction: unless all copies that were just counted are still there, it comes to nothing. So of two
        sidecars that both count two and take one away, one fails, and there is a copy at every moment.
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

    def _counted(self, rule: Rule) -> tuple[int, _Line]:
        """Count the copies of a rule; return what puts one to the place of the first as well."""
        lines = self._listing(rule.place)
        place = lines.index(rule.line) + 1 if rule.line in lines else 1
        return lines.count(rule.line), (rule.table, ("-I", rule.chain, str(place), *rule.match))

    def _listing(self, chain: Chain) -> tuple[str, ...]:
        argv = self._argv(chain[0], ("-S", chain[1]))
        result = self._run(*argv)
        if result.exit:
            raise self._failure(argv, "", result)
        return self._read(argv, "", result, [chain])[chain]

    def _transaction(self, command: Command) -> bool:
        """Do all or nothing: True if all was done, False if there was no such rule for one of the lines."""
        argv, stdin = command
        result = self._run(*argv, stdin=stdin)
        if result.exit not in _YES_OR_NO:
            raise self._failure(argv, stdin, result)
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

    @staticmethod
    def _read(
        argv: tuple[str, ...], stdin: str, result: Result, chains: Sequence[Chain]
    ) -> dict[Chain, tuple[str, ...]]:
        try:
            return parse_listings(result.stdout, chains)
        except ValueError as error:
            raise OutputUnreadable(argv, stdin, f"cannot be understood: {error}") from error

    def _ask(self, rule: Rule, verb: str, *, answers: Sequence[int] = _YES_OR_NO) -> bool:
        """Run iptables with one verb on one rule: True for exit status 0, False for another of `answers`."""
        argv = self._argv(*_line(rule, verb))
        result = self._run(*argv)
        if result.exit not in answers:
            raise self._failure(argv, "", result)
        return result.exit == 0

    def _restore(self, lines: Sequence[_Line]) -> Command:
        """Return the command and the standard input that run these lines, table by table."""
        tables: dict[str, list[str]] = {}
        for table, words in lines:
            tables.setdefault(table, []).append(" ".join(words))
        stdin = "".join("\n".join((f"*{table}", *rows, "COMMIT", "")) for table, rows in tables.items())
        return (f"{self.command}-restore", "--noflush", *self._wait), stdin

    def _argv(self, table: str, words: Sequence[str]) -> tuple[str, ...]:
        return (self.command, *self._wait, "-t", table, *words)

    def _failure(self, argv: tuple[str, ...], stdin: str, result: Result) -> SidecarError:
        """Return what the exit status means.

        A missing privilege shows as 1, 3 or 4, by backend and verb: what tells it is what this process may do.
        """
        failure = CommandError(argv, stdin, f"exited with {result.exit}", result.stderr)
        needed = ("CAP_NET_ADMIN", "CAP_NET_RAW") if self.is_legacy() else ("CAP_NET_ADMIN",)
        if lacking := capabilities.missing(*needed):
            return PermissionMissing(lacking, str(failure))
        if result.exit == _NOT_SUPPORTED:
            return NotSupported(str(failure))
        if result.exit == _TRY_AGAIN:
            if self.is_legacy() and (problem := xtables_lock.problem()):
                return LockUnusable(f"{problem}; {failure}")
            return LockHeld(
                argv,
                stdin,
                "exited with 4 (the lock is held or cannot be had, or the rules just changed)",
                result.stderr,
            )
        return failure

    def is_legacy(self) -> bool:
        """Legacy works through a raw socket, and so needs CAP_NET_RAW as well."""
        if self._legacy is None:
            self._legacy = "(nf_tables)" not in self._run(self.command, "--version").stdout
        return self._legacy

    def _say_that_it_cannot_count(self, chain: Chain, failure: SidecarError) -> None:
        if not self._said_that_it_cannot_count:
            self._said_that_it_cannot_count = True
            logger.warning(
                f"{self.command} cannot list {' '.join(chain)}, so a second copy of a rule in it would go unnoticed: "
                f"{failure}"
            )


def _chains(rules: Sequence[Rule]) -> list[Chain]:
    return sorted({rule.place for rule in rules})


def _line(rule: Rule, verb: str) -> _Line:
    return rule.table, (verb, rule.chain, *rule.match)
