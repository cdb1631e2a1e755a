"""The way of some traffic through the chains of one table: which rules decide what becomes of it.

Pure: listings as `iptables -S` prints them in; each rule that ends the way, or may end it, out. How conditions are
judged, shadow.py says; a rule is met for certain only if nothing before it may have ended the way.
"""

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sidecar.firewall.conditions import NOT_LO, PASSING, Matches, Quick, judge

#: Targets that are no chains, and let no packet go on in its chain (man iptables-extensions).
ENDING: Final = frozenset(
    {"ACCEPT", "DROP", "REJECT", "RETURN", "QUEUE", "NFQUEUE", "DNAT", "REDIRECT", "NETMAP", "TPROXY", "SYNPROXY"}
    | {"SNAT", "MASQUERADE", "TARPIT"}
)

#: Stands for the port of a client: the first of net.ipv4.ip_local_port_range, as the kernel sets it.
_SOME_PORT: Final = "32768"

#: How deep chains may call each other. The kernel allows fewer than the number of chains; nobody has as many as this.
_DEEPEST: Final = 64

#: Rules that are judged on one way; what comes after is not known.
MOST_RULES: Final = 20_000


@dataclass(frozen=True, slots=True)
class Traffic:
    """TCP packets to an address and port, or from them."""

    address: str
    """As /32 or /128."""

    port: int
    inward: bool
    untracked: bool
    """Whether connection tracking was told to leave it alone."""

    of_this_node: bool = False
    """From this node to itself, over lo: from and to the address; otherwise over any other interface."""

    @property
    def options(self) -> dict[str, str]:
        """The conditions that it fulfils, as options of iptables."""
        address, port, interface = ("-d", "--dport", "-i") if self.inward else ("-s", "--sport", "-o")
        if not self.of_this_node:
            return {address: self.address, port: str(self.port), interface: NOT_LO}
        other_port = "--sport" if self.inward else "--dport"
        return {"-s": self.address, "-d": self.address, port: str(self.port), other_port: _SOME_PORT}


@dataclass(frozen=True, slots=True)
class Met:
    """A rule that ends the way of the traffic, for certain or perhaps."""

    chain: str
    line: str
    target: str
    certain: bool


def jumps(lines: Sequence[str], traffic: Traffic, *, certain: bool) -> Iterator[str]:
    """Yield the chains (or targets not known here) that the traffic comes to from these rules.

    If not `certain`, those too that it may come to.
    """
    wanted = (Matches.ALL,) if certain else (Matches.ALL, Matches.PERHAPS)
    quick = Quick(traffic.options)
    for line in lines:
        if not quick.never(line):
            matches, target = judge(line, traffic.options, untracked=traffic.untracked)
            if target and matches in wanted and target[0] not in PASSING | ENDING:
                yield target[0]


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
    """Return what becomes of the traffic that comes to the chain `start`.

    A jump to a chain that is not in `listings`, or to a target that is not known, may end it.
    """
    walk = _Walk(listings, traffic)
    outcome = walk.through(start, 0, certain=True)
    return Way(tuple(walk.met), outcome is _Outcome.ENDS)


class _Outcome(enum.Enum):
    """What becomes of the traffic that enters a chain."""

    PASSES = enum.auto()
    PERHAPS = enum.auto()
    ENDS = enum.auto()


class _Walk:
    def __init__(self, listings: Mapping[str, Sequence[str]], traffic: Traffic) -> None:
        self._listings = listings
        self._traffic = traffic
        self._quick = Quick(traffic.options)
        self._left = MOST_RULES
        self.met: list[Met] = []

    def through(self, chain: str, depth: int, *, certain: bool) -> _Outcome:
        """Go through a chain, which all of the traffic comes to if `certain`."""
        outcome = _Outcome.PASSES
        stays = True  # whether all that entered is still in the chain, if it has not ended
        for line in self._listings[chain]:
            if self._quick.never(line):
                continue
            self._left -= 1
            if self._left < 0 or depth > _DEEPEST:
                return _Outcome.PERHAPS
            matches, target = judge(line, self._traffic.options, untracked=self._traffic.untracked)
            if not target or matches is Matches.NOTHING or target[0] in PASSING:
                continue
            for_all = matches is Matches.ALL
            all_come = certain and stays and outcome is _Outcome.PASSES and for_all
            ended = _Outcome.PASSES if target[0] == "RETURN" else self._meet(chain, line, target[0], depth, all_come)
            if ended is not _Outcome.PASSES:
                outcome = _Outcome.ENDS if ended is _Outcome.ENDS and for_all and stays else _Outcome.PERHAPS
            leaves = target[0] == "RETURN" or f" -g {target[0]}" in line
            if for_all and (leaves or ended is _Outcome.ENDS):
                break
            stays = stays and not leaves
        return outcome

    def _meet(self, chain: str, line: str, target: str, depth: int, certain: bool) -> _Outcome:  # noqa: FBT001 - as in `through`
        if target in self._listings:
            return self.through(target, depth + 1, certain=certain)
        self.met.append(Met(chain, line, target, certain))
        return _Outcome.ENDS if target in ENDING else _Outcome.PERHAPS
