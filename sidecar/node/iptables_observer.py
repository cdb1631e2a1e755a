"""Looks at our rules: how many copies of each there are, what stands in front of them, and what cannot be known.

What was measured about the ways to look (1.8.9 and 1.8.11) and matters here:

- A listing can be trusted: these rules have been printed in this spelling by every release since 2013. A `-C` that
  says yes cannot: on nft it ignores what iptables does not know, so a narrower rule passes for ours; and
  `ip6tables-legacy` 1.8.9 finds a rule that has another port. So listings decide what is there, and count it.
- But of some narrower rules nft's iptables lists the rest, just like ours (see nft_expressions). So the kernel is asked
  about each line like ours; that takes no process.
- A chain cannot be listed if one of its rules is of a kind that only nft has, or needs an extension that is not
  installed. There a `-C` that says no is right. `-D` of legacy compares rightly and with `--test` changes nothing.
- iptables exits with 0 even if it could not write all of a listing.
"""

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from loguru import logger

from sidecar.errors import (
    BackendUnusable,
    ChainUnreadable,
    CommandError,
    LooksContradict,
    NotSupported,
    OutputUnreadable,
    RulesChanged,
    SidecarError,
)
from sidecar.node import nft_rules
from sidecar.node.command import Run
from sidecar.node.iptables_program import NOT_SUPPORTED, REFUSED, YES_OR_NO, IptablesProgram, Line
from sidecar.node.listings import resembles
from sidecar.node.nft_expressions import handle, is_as_listed
from sidecar.node.seen import Narrower, Places, Seen, places, seen_in
from sidecar.state.model import NFT_FAMILIES, Chain, Family, Rule

#: Why a rule in a chain that nft's iptables cannot list is unknown.
_PERHAPS_NARROWER: Final = "`-C` finds one, but it may be a narrower rule of another program"
_ADDED_ONCE: Final = "it was added, but `-C` does not find it"
_NO_ANSWER: Final = "`-C` cannot tell either"


@dataclass(frozen=True, slots=True)
class _Look:
    """A look by one process that showed all rules."""

    stdout: str
    rules: Sequence[Rule]
    generation: bytes | None
    places: Places
    narrower: Narrower | None
    seen: Seen


class IptablesObserver(IptablesProgram):
    """Observes the rules of one address family through one backend."""

    def __init__(self, run: Run, family: Family, backend: str, wait: float) -> None:
        super().__init__(run, family, backend, wait)
        self.family = family
        self._said_that_it_cannot_count = False
        self._last: _Look | None = None
        #: Rules beside which there are some that iptables takes for the same.
        self.confusable: set[Rule] = set()
        #: Rules beside which there are narrower ones that it lists, and deletes, like them.
        self.beside_narrower: set[Rule] = set()
        #: Whether it lists rules of newer releases without their ports.
        self.loses_ports = False
        #: Rules that were added, and not seen since.
        self.added: set[Rule] = set()

    def observe(self, rules: Sequence[Rule], *, is_second: bool = False) -> Seen:
        """Look at the chains of these rules; raise a SidecarError if nothing could be looked at.

        One process, if all chains can be listed and show all rules, and do not change meanwhile.
        """
        chains = sorted({rule.place for rule in rules})
        generation = nft_rules.generation() if self._legacy is False else None
        argv, stdin = self.restore([(table, ("-S", chain)) for table, chain in chains])
        result = self.run(*argv, stdin=stdin)
        if result.exit == REFUSED and not isinstance(failure := self.failure(argv, stdin, result), NotSupported):
            raise failure
        # A node in sync answers the same again and again: it need not be read again.
        last = self._last
        if result.exit == 0 and last and (last.stdout, last.rules) == (result.stdout, rules):
            is_same = generation and generation == last.generation
            if is_same or self._narrower(last.places) == last.narrower:
                self.added.difference_update(rules)
                self._last = replace(last, generation=generation)
                return last.seen
        with contextlib.suppress(OutputUnreadable):
            if result.exit == 0:
                listings = self.read(argv, stdin, result, chains)
                narrower = self._narrower(like := places(listings, rules))
                if narrower is None and not is_second:
                    return self.observe(rules, is_second=True)
                seen = self._seen_in(listings, rules, narrower, chains[-1:])
                # What is missing is looked for in other ways each time.
                is_whole = all(map(seen.copies.get, rules))
                self._last = _Look(result.stdout, rules, generation, like, narrower, seen) if is_whole else None
                return seen
        # The batch ends at the first chain that cannot be listed, and says little of it: one by one, then.
        return self._observe_chains(chains, rules)

    def _observe_chains(self, chains: Sequence[Chain], rules: Sequence[Rule]) -> Seen:
        """Look at each chain alone, and ask for rules one by one where a chain cannot be listed.

        The answer that a rule is not there is also what a backend says that does not work at all: it counts only if
        the same backend can list something else, or at least starts.
        """
        listings, failures = self.list_each(chains)
        if not (listings or self.starts({table for table, _ in chains})):
            first = next(iter(failures.values()))
            raise first if isinstance(first, NotSupported) else BackendUnusable(self.command, str(first))
        answers: dict[Rule, int | str | SidecarError] = {}
        errors: list[SidecarError] = []
        for chain, failure in failures.items():
            try:
                if not listings and isinstance(failure, OutputUnreadable):
                    raise failure
                answers |= {rule: self._asked(rule, failure) for rule in rules if rule.place == chain}
            except (CommandError, NotSupported) as error:
                if error.transient:
                    raise
                is_table_missing = isinstance(failure, NotSupported) and all(chain[0] != table for table, _ in listings)
                errors.append(failure if is_table_missing else ChainUnreadable(str(failure)))
        if len(errors) == len(chains):
            raise next(iter(failures.values()))
        listed = [rule for rule in rules if rule.place in listings]
        seen = self._seen_in(listings, listed, self._narrower(places(listings, listed)), listings)
        errors += [answer for answer in answers.values() if isinstance(answer, SidecarError)]
        return replace(
            seen,
            copies=seen.copies | {rule: answer for rule, answer in answers.items() if isinstance(answer, int)},
            errors=(*seen.errors, *errors),
            unknown=seen.unknown | {rule: answer for rule, answer in answers.items() if isinstance(answer, str)},
        )

    def _asked(self, rule: Rule, failure: SidecarError) -> int | str | SidecarError:
        """Return the number of copies of a rule whose chain cannot be listed: 0 or 1; or else why it is unknown.

        `failure` is that of the listing. It is a failure of the look, too, if a listing that can be read would show it.
        """
        if isinstance(failure, OutputUnreadable):
            return self._contradiction(rule) if rule in self.added or self.are_there([rule]) else 0
        if self.is_legacy():
            copies = int(self.are_there([rule]))
            self._say_that_it_cannot_count(rule.place, failure)
            return copies
        answer = self.run(*self.argv(*line(rule, "-C"))).exit
        if answer not in (*YES_OR_NO, NOT_SUPPORTED) or (answer == NOT_SUPPORTED and not self.has_table(rule.table)):
            raise failure
        if answer == 1 and rule not in self.added:
            return 0
        if answer == 0:
            self.added.discard(rule)
        why = {0: _PERHAPS_NARROWER, 1: _ADDED_ONCE}.get(answer, _NO_ANSWER)
        return f"{failure}; {why}; see `nft list chain {NFT_FAMILIES[self.family]} {' '.join(rule.place)}`"

    def _seen_in(
        self,
        listings: Mapping[Chain, Sequence[str]],
        rules: Sequence[Rule],
        narrower: Narrower | None,
        ends: Collection[Chain],
    ) -> Seen:
        """Return what listings show of rules, without those that they do not show, although they are there.

        A listing that was cut off hides rules, and they would be added at each look. Of several chains that are listed
        at once only the last may be cut off: `ends`.
        """
        seen = seen_in(listings, rules, narrower, self.command if self.loses_ports else "")
        self.confusable = self.confusable.difference(rules) | seen.confusable
        self.beside_narrower = self.beside_narrower.difference(rules) | seen.beside_narrower
        self.added -= {rule for rule, copies in seen.copies.items() if copies}
        missing = [rule for rule, copies in seen.copies.items() if not copies]
        hidden = [
            rule for rule in missing if self._is_suspect(rule, listings[rule.place] if rule.place in ends else ())
        ]
        if hidden and not self.are_there(hidden):
            hidden = [rule for rule in hidden if rule in self.added and self.are_there([rule])]
        copies = {rule: number for rule, number in seen.copies.items() if rule not in hidden}
        return replace(seen, copies=copies, errors=(*seen.errors, *map(self._contradiction, hidden)))

    def _contradiction(self, rule: Rule) -> LooksContradict:
        return LooksContradict(self.argv(rule.table, ("-S", rule.chain)), str(rule))

    def _is_suspect(self, rule: Rule, cut_off: Sequence[str]) -> bool:
        """Whether a rule that is not listed may be there: it was just added, or these lines may be cut off.

        Not if there is another rule that iptables takes for it.
        """
        if rule in self.confusable | self.beside_narrower:
            return False
        return rule in self.added or (bool(cut_off) and not any(resembles(each, rule) for each in cut_off))

    def are_there(self, rules: Sequence[Rule]) -> bool:
        """Whether iptables finds all of these rules, without a listing. It changes nothing."""
        verb = "-D" if self.is_legacy() else "-C"
        return self.succeeds(self.restore([line(rule, verb) for rule in rules], *["--test"] * self.is_legacy()))

    def _narrower(self, like: Places) -> Narrower | None:
        """Return which of these lines are of narrower rules; None if the rules changed meanwhile."""
        return {} if self.is_legacy() else nft_rules.narrower(self.family, like)

    def handles(self, rule: Rule) -> list[int]:
        """Return the kernel's numbers of the copies of a rule; raise RulesChanged if it does not say which are ours."""
        argv, lines = self.argv(rule.table, ("-S", rule.chain)), self.listing(rule.place)
        number, like = places({rule.place: lines}, [rule]).get(rule.place, (0, ()))
        known = nft_rules.rules(self.family, rule.place) or ()
        if like and len(known) != number:
            raise RulesChanged(argv, "", "does not match what the kernel says: the rules changed meanwhile")
        return [handle(known[at]) for at, _ in like if is_as_listed(known[at], rule)]

    def _say_that_it_cannot_count(self, chain: Chain, failure: SidecarError) -> None:
        if not self._said_that_it_cannot_count:
            self._said_that_it_cannot_count = True
            logger.warning(
                f"{self.command} cannot list {' '.join(chain)}, so a second copy of a rule in it would go unnoticed: "
                f"{failure}"
            )


def line(rule: Rule, verb: str) -> Line:
    """Return the line that does something with a rule."""
    return rule.table, (verb, rule.chain, *rule.match)
