"""Findings: one fact each, and the exit code for all of them."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from sidecar.errors import NodeError, SidecarError
from sidecar.state.model import Facts

#: The topics that decide whether the address can be used at all: if one of them is unknown, that is not a success.
DECISIVE: Final = frozenset(("interface", "address", "rules", "listener", "connect", "tls"))


class Level(enum.Enum):
    """How much a finding matters, the worst first."""

    FAULT = "fault"
    WARNING = "warning"
    UNKNOWN = "unknown"  # the check could not run; the finding says why
    NOTE = "note"  # worth knowing, but not a problem
    OK = "ok"


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact: what was found, and what to do about it.

    `commands` do it, one after the other in a shell; `remedy` is what a person has to do, besides or instead.
    """

    level: Level
    found: str
    remedy: str = ""
    commands: tuple[str, ...] = ()
    facts: Facts = field(default_factory=dict)
    node_lacks: bool = False
    """Whether the node cannot do it as it is: a command, a privilege or kernel support is missing."""

    topic: str = ""  # the check that found it; whoever runs the check sets it
    leads: bool = False  # whether it is likely the cause of others: the summary names it first
    is_drift: bool = False  # whether `run` would change something that no fault says


def unknown(error: SidecarError, subject: str = "") -> Finding:
    """Return the finding that something is unknown, and why."""
    text = f"{subject}: {error}" if subject else str(error)
    return Finding(Level.UNKNOWN, text, facts=error.facts, node_lacks=isinstance(error, NodeError))


def counted(number: int, one: str, several: str = "") -> str:
    """Return a number of something, in words that fit: `1 rule`, `2 rules`."""
    return f"{number} {one if number == 1 else several or f'{one}s'}"


def exit_code(findings: Sequence[Finding]) -> int:
    """Return 3 if the node cannot do it, else 1 for what is not a success, else 0.

    Not a success are a fault, something decisive that is unknown, and drift that `run` would repair: for that, `status`
    has the same exit code. Warnings, and other things that are unknown, change nothing: the summary counts them.
    """
    if any(each.node_lacks for each in findings):
        return 3
    return int(any(map(_fails, findings)))


def _fails(finding: Finding) -> bool:
    is_decisive = finding.level is Level.UNKNOWN and finding.topic in DECISIVE
    return finding.level is Level.FAULT or is_decisive or finding.is_drift
