"""Follows packets through the base chains of all hooks, to find the rules that stop them or may do so.

One walker for both languages: what a rule does to a packet is up to `iptables.py` and `nft.py`. A packet passes a hook
if no base chain there drops it: ACCEPT ends only the base chain that it stands in. A rule is met for certain only if
nothing before it may have ended the way.
"""

import enum
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, TypeVar

from sidecar.firewall.packet import ESTABLISHED, INVALID, NEW, TRACKED, UNTRACKED, Hook, Journey, Packet
from sidecar.firewall.verdicts import BaseChain, Effect, Judgement, Matches

_Rule = TypeVar("_Rule")

CONNTRACK: Final = -200  # NF_IP_PRI_CONNTRACK (linux/netfilter_ipv4.h): chains before it see no state of a connection

_DEEPEST: Final = 64  # how deep chains may call each other. Beyond that, nothing is known
MOST_RULES: Final = 20_000  # rules that are judged on one way; what comes after is not known

#: Hooks at which connection tracking looks at a packet for the first time.
_TRACKING: Final = (Hook.PREROUTING, Hook.OUTPUT)


@dataclass(frozen=True, slots=True)
class Met:
    """A rule that ends the way of a packet, for certain or perhaps."""

    chain: str
    line: str
    effect: Effect
    certain: bool  # whether every packet that fits comes to its target
    base: BaseChain[Any]  # the base chain by which it came here


@dataclass(frozen=True, slots=True)
class Way:
    """The rules of a base chain that end the way of a packet, or may, in order."""

    met: tuple[Met, ...]
    ends: bool  # whether it ends for every packet that fits
    packet: Packet  # as the chain leaves it

    def certainly(self, effect: Effect) -> Met | None:
        """Return the rule by which every packet meets this effect."""
        found = next((each for each in self.met if each.certain and each.effect is effect), None)
        if not found and self.ends and all(each.effect is effect for each in self.met):
            return self.met[-1]
        return found

    def perhaps(self, *effects: Effect) -> Met | None:
        """Return the first rule by which some may meet one of these effects."""
        return next((each for each in self.met if each.effect in effects), None)


@dataclass(frozen=True, slots=True)
class Passage:
    """What the firewall does to a packet on its journey, until a rule certainly stops it."""

    stopped: Met | None = None  # the rule that certainly drops it, or sends it elsewhere
    doubts: tuple[Met, ...] = ()  # rules before that which may do so
    marks: Mapping[Hook, int | None] | None = None  # its mark behind each hook
    state: str | None = None  # what connection tracking says of it in the end


def passage(chains: Sequence[BaseChain[Any]], journey: Journey, before: Passage | None = None) -> Passage:
    """Follow a packet through the hooks; for a reply, `before` is the passage of the request."""
    tracked = NEW if not journey.is_reply else INVALID if before and before.state == UNTRACKED else ESTABLISHED
    mark, state = journey.steps[0][1].mark, None
    doubts: list[Met] = []
    marks: dict[Hook, int | None] = {}
    for hook, begun in journey.steps:
        packet = replace(begun, mark=mark, state=state)
        for base in sorted((each for each in chains if each.hook is hook), key=lambda each: each.priority):
            if hook in _TRACKING and base.priority > CONNTRACK:
                packet = replace(packet, state=_seen(packet.state, tracked))
            if base.is_nat and packet.state != NEW:
                continue
            found = way(base, packet)
            packet = found.packet
            if stopped := found.certainly(Effect.DROP) or found.certainly(Effect.TAKE):
                return Passage(stopped, tuple(doubts), marks, packet.state)
            doubts += (each for each in found.met if each.effect in (Effect.DROP, Effect.TAKE, Effect.UNKNOWN))
        mark = marks[hook] = packet.mark
        state = _seen(packet.state, tracked) if hook in _TRACKING else packet.state
    return Passage(None, tuple(doubts), marks, state)


def _seen(state: str | None, tracked: str) -> str:
    """Return the state of a packet once connection tracking has seen it."""
    return tracked if state in (None, TRACKED) else state


def way(base: BaseChain[Any], packet: Packet) -> Way:
    """Return what happens to a packet that enters a base chain; nothing if its rules are not known.

    A jump to a chain whose rules are not known may end it.
    """
    walk = _Walk(base, packet)
    met = tuple(walk.follow(base.name))
    return Way(met, walk.ends, walk.packet)


class _Outcome(enum.Enum):
    """What becomes of the packets that enter a chain."""

    PASSES = enum.auto()
    PERHAPS = enum.auto()
    ENDS = enum.auto()


class _Walk(Generic[_Rule]):
    def __init__(self, base: BaseChain[_Rule], packet: Packet) -> None:
        self._base = base
        self._rules = base.rules
        self._left = MOST_RULES
        self.packet = packet  # as it is now; what may have changed is not known any more
        self.ends = False  # whether the way ends for every packet; known once it has been followed

    def follow(self, start: str) -> Iterator[Met]:
        """Yield the rules that end the way, or may, in order; the policy of the base chain comes last."""
        outcome = yield from self._through(start, 0, certain=True)
        policy = self._rules.policy(start)
        if policy is not None and outcome is not _Outcome.ENDS:
            (judged,) = self._rules.judge(policy, self.packet) or ()
            yield self._met(start, policy, judged, certain=outcome is _Outcome.PASSES)
            outcome = _Outcome.ENDS
        self.ends = outcome is _Outcome.ENDS

    def _met(self, chain: str, rule: _Rule, judged: Judgement, *, certain: bool) -> Met:
        return Met(chain, self._rules.text(rule), judged.effect, certain, self._base)

    def _through(self, chain: str, depth: int, *, certain: bool) -> Generator[Met, None, _Outcome]:
        """Go through a chain, which every packet comes to if `certain`."""
        outcome = _Outcome.PASSES
        left: list[Packet] = []  # what those that left the chain early, but go on, looked like
        for rule in self._rules.of(chain) or ():
            judgements = self._rules.judge(rule, self.packet)
            if judgements is None:
                continue
            self._left -= 1
            if self._left < 0 or depth > _DEEPEST:
                self._forget(*left)
                return _Outcome.PERHAPS
            before = self.packet
            for judged in judgements:
                for_all = judged.matches is Matches.ALL
                all_come = certain and not left and outcome is _Outcome.PASSES and for_all
                ended = yield from self._do(chain, rule, judged, depth, certain=all_come)
                leaves = judged.effect in (Effect.RETURN, Effect.GOTO)
                if leaves and ended is not _Outcome.ENDS:
                    left.append(self.packet)
                if for_all and ended is _Outcome.ENDS:
                    self._forget(*left)
                    return _Outcome.PERHAPS if left else _Outcome.ENDS
                if ended is not _Outcome.PASSES:
                    outcome = _Outcome.PERHAPS
                if for_all and leaves:
                    self._forget(*left)
                    return outcome
                if not for_all:
                    self._go_on(before, ended)
        self._forget(*left)
        return outcome

    def _do(
        self, chain: str, rule: _Rule, judged: Judgement, depth: int, *, certain: bool
    ) -> Generator[Met, None, _Outcome]:
        """Do what a rule does, and follow where it leads."""
        if judged.change:
            self.packet = judged.change(self.packet)
        match judged.effect:
            case Effect.CONTINUE | Effect.RETURN:
                return _Outcome.PASSES
            case Effect.JUMP | Effect.GOTO if self._rules.of(judged.target) is not None:
                return (yield from self._through(judged.target, depth + 1, certain=certain))
            case Effect.JUMP | Effect.GOTO:
                judged = replace(judged, effect=Effect.UNKNOWN)
        yield self._met(chain, rule, judged, certain=certain)
        return _Outcome.PERHAPS if judged.effect is Effect.UNKNOWN else _Outcome.ENDS

    def _go_on(self, before: Packet, ended: _Outcome) -> None:
        """Go on with the packets that a rule does not match, and with those that it lets go on."""
        if ended is _Outcome.ENDS:
            self.packet = before
        else:
            self._forget(before)

    def _forget(self, *others: Packet) -> None:
        """From now on, do not know what differs between the packet and others that took another way."""
        for other in others:
            if other.mark != self.packet.mark:
                self.packet = replace(self.packet, mark=None)
            if other.state != self.packet.state:
                self.packet = replace(self.packet, state=None)
