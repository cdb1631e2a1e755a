"""What a rule does to a packet: whether it matches, and what becomes of the packet then."""

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from sidecar.firewall.packet import Hook, Packet

_Rule = TypeVar("_Rule")


class Matches(enum.Enum):
    """Whether a condition, or a rule, matches a packet."""

    ALL = enum.auto()
    NOTHING = enum.auto()
    PERHAPS = enum.auto()  # it depends on something that is not known


class Effect(enum.Enum):
    """What becomes of a packet that a rule matches."""

    CONTINUE = enum.auto()  # the next rule sees it
    ACCEPT = enum.auto()  # it passes this base chain
    DROP = enum.auto()
    TAKE = enum.auto()  # it gets another destination
    RETURN = enum.auto()
    JUMP = enum.auto()
    GOTO = enum.auto()
    UNKNOWN = enum.auto()  # it may go on, or not


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a rule does to a packet, or may do."""

    matches: Matches
    effect: Effect
    target: str = ""  # as the rule has it; the chain of a jump
    change: Callable[[Packet], Packet] | None = None  # what it changes on a packet that it matches


class Rules(Protocol[_Rule]):
    """The rules of a table, in whichever language."""

    def of(self, chain: str) -> Sequence[_Rule] | None:
        """Return the rules of a chain; None if they are not known."""

    def policy(self, chain: str) -> _Rule | None:
        """Return what happens at the end of a base chain, as a rule; None if the packet passes."""

    def judge(self, rule: _Rule, packet: Packet) -> Sequence[Judgement] | None:
        """Return what the rule does to the packet: several if it may do one or another, none if nothing.

        None: it took next to no time to see that it does nothing.
        """

    def text(self, rule: _Rule) -> str:
        """Return a rule as its program lists it."""

    def texts(self) -> Iterable[str]:
        """Return the text of all rules."""


@dataclass(frozen=True, slots=True)
class BaseChain(Generic[_Rule]):
    """A chain that the kernel calls at a hook, in the order of the priorities."""

    hook: Hook
    priority: int
    table: str  # for people: `table inet firewalld`, `raw`
    name: str
    rules: Rules[_Rule]
    is_nat: bool = False  # whether it sees only the first packet of a connection, and none that is untracked


def inverted(matches: Matches) -> Matches:
    """Return whether the opposite of a condition matches."""
    return {Matches.ALL: Matches.NOTHING, Matches.NOTHING: Matches.ALL}.get(matches, Matches.PERHAPS)


def certainly(answer: bool | None) -> Matches:  # noqa: FBT001 - it turns an answer into another kind of answer
    """Return a known answer as such; None becomes PERHAPS."""
    return Matches.PERHAPS if answer is None else Matches.ALL if answer else Matches.NOTHING


def together(matches: Iterable[Matches]) -> Matches:
    """Return whether all of these conditions match."""
    found = set(matches)
    if Matches.NOTHING in found:
        return Matches.NOTHING
    return Matches.PERHAPS if Matches.PERHAPS in found else Matches.ALL
