"""What a look at the node found, one fact each, and what they add up to."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from sidecar.state.model import Facts

#: The topics that decide whether the address can be used at all: not to know one of them is no success.
DECISIVE: Final = frozenset(("interface", "address", "rules", "listener"))


class Level(enum.Enum):
    """How much a finding matters, the worst first."""

    FAULT = "fault"
    WARNING = "warning"
    UNKNOWN = "unknown"
    """It could not be looked at; the finding says why."""
    NOTE = "note"
    """Worth knowing, no alarm."""
    OK = "ok"


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact: what was looked at (`topic`), what was found there, and what to do about it.

    `commands` do it, one after the other in a shell; `remedy` is what a person has to do, besides or instead.
    """

    level: Level
    topic: str
    found: str
    remedy: str = ""
    commands: tuple[str, ...] = ()
    facts: Facts = field(default_factory=dict)
    node_lacks: bool = False
    """Whether the node cannot do it as it is: a command, a privilege or kernel support is missing."""


def exit_code(findings: Sequence[Finding]) -> int:
    """Return 3 if the node cannot do it, 1 if something is wrong or not known that decides, else 0."""
    if any(each.node_lacks for each in findings):
        return 3
    faulty = (
        each.level is Level.FAULT or (each.level is Level.UNKNOWN and each.topic in DECISIVE) for each in findings
    )
    return int(any(faulty))
