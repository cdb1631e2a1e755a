"""Follows traffic through the chains of one table, to find the rules that decide what happens to it.

The input is listings of `iptables -S`; the output each rule that ends the way, or may end it. `way` answers for
all chains, `hindrance` for the lines before one of our rules, `jumps` for what has to be listed next. A rule is met
for certain only if nothing before it may have ended the way.
"""

import enum
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sidecar.firewall.conditions import Matches, Quick, Traffic, judge
from sidecar.state.model import Hindrance, Rule

ACCEPT: Final = "ACCEPT"
BLOCKING: Final = frozenset(("DROP", "REJECT"))

#: Targets that let a packet go on to the next rule (man iptables-extensions).
PASSING: Final = frozenset(
    {"LOG", "NFLOG", "ULOG", "TRACE", "MARK", "CONNMARK", "CONNSECMARK", "SECMARK", "AUDIT", "CT", "NOTRACK", "SET"}
    | {"CLASSIFY", "CHECKSUM", "DSCP", "TOS", "TTL", "HL", "TCPMSS", "TCPOPTSTRIP", "TEE", "RATEEST", "IDLETIMER"}
)

#: Targets other than chains after which a packet does not go on in its chain.
ENDING: Final = BLOCKING | frozenset(
    {ACCEPT, "RETURN", "QUEUE", "NFQUEUE", "DNAT", "REDIRECT", "NETMAP", "TPROXY", "SYNPROXY", "SNAT", "MASQUERADE"}
    | {"TARPIT"}
)

_DEEPEST: Final = 64  # how deep chains may call each other. Beyond that, nothing is known
MOST_RULES: Final = 20_000  # rules that are judged on one way; what comes after is not known


@dataclass(frozen=True, slots=True)
class Met:
    """A rule that ends the way of the traffic, for certain or perhaps."""

    chain: str
    line: str
    target: str
    certain: bool  # whether all of the traffic comes to its target
    matches_all: bool = True  # whether it matches all that comes to it


@dataclass(frozen=True, slots=True)
class Way:
    """The rules that end the way of the traffic, or may, in order; and whether it ends for all of it."""

    met: tuple[Met, ...]
    ends: bool

    def certainly(self, targets: frozenset[str]) -> Met | None:
        """Return the rule by which all of the traffic comes to one of these targets."""
        found = next((each for each in self.met if each.certain and each.target in targets), None)
        if not found and self.ends and all(each.target in targets for each in self.met):
            return self.met[-1]
        return found

    def perhaps(self, targets: frozenset[str]) -> Met | None:
        """Return the first rule by which some of it may come to one of these targets."""
        return next((each for each in self.met if each.target in targets), None)


def way(listings: Mapping[str, Sequence[str]], start: str, traffic: Traffic) -> Way:
    """Return what happens to the traffic that enters the chain `start`, or an empty Way if that is not listed.

    A jump to a chain that is not in `listings`, or to a target that is not known, may end it.
    """
    walk = _Walk(listings, traffic)
    return Way(tuple(walk.follow(start)), walk.ends)


def hindrance(rule: Rule, before: Sequence[str]) -> Hindrance | None:
    """Return the first line before a rule that keeps traffic from reaching it, preferably one that certainly does.

    For ACCEPT that is a line that drops. NOTRACK is hindered by any that ends the way through the chain, and by CT:
    of a packet's connection tracking, the first target decides.
    """
    is_accept = rule.match[-1] == ACCEPT
    hindering = BLOCKING if is_accept else BLOCKING | {ACCEPT, "CT"}
    passing = PASSING if is_accept else PASSING - {"CT"}
    walk = _Walk({rule.chain: before}, Traffic.of(rule), passing, most=len(before))
    uncertain: Hindrance | None = None
    for met in walk.follow(rule.chain):
        if met.matches_all and met.target in hindering:
            return Hindrance(met.line, certain=True)
        if met.target != ACCEPT or not is_accept:
            uncertain = uncertain or Hindrance(met.line, certain=False)
            walk.skips_uncertain = True  # the first is enough
    return uncertain


def jumps(lines: Sequence[str], traffic: Traffic, *, certain: bool) -> Iterator[str]:
    """Yield the chains (or targets not known here) that the traffic reaches from these rules.

    Unless `certain`, include those that it may reach.
    """
    for met in _Walk({"": lines}, traffic).follow(""):
        if met.target not in ENDING and (met.matches_all or not certain):
            yield met.target


class _Outcome(enum.Enum):
    """What becomes of the traffic that enters a chain."""

    PASSES = enum.auto()
    PERHAPS = enum.auto()
    ENDS = enum.auto()


class _Walk:
    def __init__(
        self,
        listings: Mapping[str, Sequence[str]],
        traffic: Traffic,
        passing: frozenset[str] = PASSING,
        most: int = MOST_RULES,
    ) -> None:
        self._listings = listings
        self._options = traffic.options
        self._untracked = traffic.untracked
        self._quick = Quick(self._options)
        self._passing = passing
        self._left = most
        self.skips_uncertain = False  # whether to pass over rules that cannot match all of the traffic
        self.ends = False  # whether the way ends for all of the traffic; known once it has been followed

    def follow(self, start: str) -> Iterator[Met]:
        """Yield the rules that end the way, or may, in order."""
        self.ends = (yield from self._through(start, 0, certain=True)) is _Outcome.ENDS

    def _through(self, chain: str, depth: int, *, certain: bool) -> Generator[Met, None, _Outcome]:
        """Go through a chain, which all of the traffic comes to if `certain`."""
        outcome = _Outcome.PASSES
        stays = True  # whether all that entered is still in the chain, if it has not ended
        for line in self._listings.get(chain, ()):
            if self._quick.never(line) or (self.skips_uncertain and self._quick.never_all(line)):
                continue
            self._left -= 1
            if self._left < 0 or depth > _DEEPEST:
                return _Outcome.PERHAPS
            matches, target = judge(line, self._options, untracked=self._untracked)
            if not target or matches is Matches.NOTHING or target in self._passing:
                continue
            for_all = matches is Matches.ALL
            all_come = certain and stays and outcome is _Outcome.PASSES and for_all
            ended = _Outcome.PASSES
            if target in self._listings:
                ended = yield from self._through(target, depth + 1, certain=all_come)
            elif target != "RETURN":
                ended = _Outcome.ENDS if target in ENDING else _Outcome.PERHAPS
            if target not in self._listings and (target != "RETURN" or not depth):  # of the first chain it is an end
                yield Met(chain, line, target, all_come, for_all)
            if ended is not _Outcome.PASSES:
                outcome = _Outcome.ENDS if ended is _Outcome.ENDS and for_all and stays else _Outcome.PERHAPS
            leaves = target == "RETURN" or f" -g {target}" in line
            if for_all and (leaves or ended is _Outcome.ENDS):
                break
            stays = stays and not leaves
        return outcome
