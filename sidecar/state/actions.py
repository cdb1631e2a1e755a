"""The actions that change a node, and the report of a pass or a cleanup.

`todo` and `done` are the words for an action in the log, `facts` the same as values.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from sidecar.errors import SidecarError
from sidecar.state.model import Address, Facts, Observed, Rule


class _Words:
    """An action in words: a template (see `str.format`) that is filled in with the action."""

    def __init__(self, template: str) -> None:
        self._template = template

    def __get__(self, action: object, _owner: type | None = None) -> str:
        return self._template.format(action)


@dataclass(frozen=True, slots=True)
class _OnInterface:
    interface: str

    @property
    def facts(self) -> Facts:
        return {"interface": self.interface}


@dataclass(frozen=True, slots=True)
class _OnAddress:
    address: Address

    @property
    def facts(self) -> Facts:
        return self.address.facts


@dataclass(frozen=True, slots=True)
class _OnRule:
    rule: Rule

    @property
    def facts(self) -> Facts:
        return self.rule.facts


@dataclass(frozen=True, slots=True)
class CreateLink(_OnInterface):
    """Create an interface, mark it as ours, and set it up."""

    kind: str
    todo = _Words("create interface {0.interface} ({0.kind})")
    done = _Words("interface {0.interface} missing, created ({0.kind})")


@dataclass(frozen=True, slots=True)
class SetLinkUp(_OnInterface):
    todo = _Words("set interface {0.interface} up")
    done = _Words("interface {0.interface} was down, set up")


@dataclass(frozen=True, slots=True)
class DeleteLink(_OnInterface):
    """Delete an interface that this program created."""

    todo = _Words("delete interface {0.interface}")
    done = _Words("deleted interface {0.interface}")


@dataclass(frozen=True, slots=True)
class AddAddress(_OnAddress):
    scope: str
    todo = _Words("add {0.address.cidr} to {0.address.interface}")
    done = _Words("added {0.address.cidr} to {0.address.interface}")


@dataclass(frozen=True, slots=True)
class DeprecateAddress(_OnAddress):
    """Keep the kernel from choosing an IPv6 address as a source address."""

    @property
    def todo(self) -> str:
        return f"deprecate {self.address}, which may become a source address"

    @property
    def done(self) -> str:
        return f"deprecated {self.address}, which could become a source address"


@dataclass(frozen=True, slots=True)
class RemoveAddress(_OnAddress):
    todo = _Words("remove {0.address.cidr} from {0.address.interface}")
    done = _Words("removed {0.address.cidr} from {0.address.interface}")


@dataclass(frozen=True, slots=True)
class AddRule(_OnRule):
    insert: bool
    todo = _Words("add rule: {0.rule}")

    @property
    def done(self) -> str:
        return f"rule missing, added{', in front' if self.insert else ''}: {self.rule}"


@dataclass(frozen=True, slots=True)
class MoveToFront(_OnRule):
    """Put a rule in front of all others, without ever leaving it out."""

    behind: str
    todo = _Words("move to the front, as it has no effect behind `{0.behind}`: {0.rule}")
    done = _Words("moved to the front, it was behind `{0.behind}`: {0.rule}")

    @property
    def facts(self) -> Facts:
        return self.rule.facts | {"behind": self.behind}


@dataclass(frozen=True, slots=True)
class _OnCopies(_OnRule):
    copies: int

    @property
    def facts(self) -> Facts:
        return self.rule.facts | {"copies": self.copies}

    @property
    def number(self) -> str:
        return "1 copy" if self.copies == 1 else f"{self.copies} copies"


@dataclass(frozen=True, slots=True)
class RemoveSurplus(_OnCopies):
    """Remove this many copies of a rule, all but one."""

    todo = _Words("remove {0.number} too many: {0.rule}")
    done = _Words("removed {0.number} too many: {0.rule}")


@dataclass(frozen=True, slots=True)
class RemoveRule(_OnCopies):
    """Remove every copy of a rule."""

    todo = _Words("remove rule{0.times}: {0.rule}")
    done = _Words("removed rule{0.times}: {0.rule}")

    @property
    def times(self) -> str:
        return f" ({self.number})" if self.copies > 1 else ""


@dataclass(frozen=True, slots=True)
class RemoveFormer(_OnCopies):
    """Remove every copy of a rule from the backend that was in use before."""

    todo = _Words("remove from the backend that was in use before: {0.rule}")
    done = _Words("removed from the backend that was in use before: {0.rule}")


LinkAction: TypeAlias = CreateLink | SetLinkUp | DeleteLink | AddAddress | DeprecateAddress | RemoveAddress
RuleAction: TypeAlias = AddRule | MoveToFront | RemoveSurplus | RemoveRule | RemoveFormer
Action: TypeAlias = LinkAction | RuleAction

#: What came of an action: how much it changed, or why it failed.
Outcome: TypeAlias = int | SidecarError


def counted(action: Action, number: int) -> Action:
    """Return the action that was carried out, if that changed this number of copies; others meanwhile did the rest."""
    match action:
        case RemoveSurplus(rule):
            return RemoveSurplus(rule, number)
        case RemoveRule(rule):
            return RemoveRule(rule, number)
        case _:
            return action


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt that failed."""

    attempt: str
    error: SidecarError
    about: Facts = field(default_factory=dict)  # the objects of the attempt

    @property
    def facts(self) -> Facts:
        return {**self.about, **self.error.facts}

    def __str__(self) -> str:
        return f"could not {self.attempt}: {self.error}"


@dataclass(frozen=True, slots=True)
class Notice:
    """A fact that an operator should know, although nothing is missing because of it."""

    text: str
    facts: Facts = field(default_factory=dict)
    certain: bool = True  # if False, it may not matter, and is logged only at a higher verbosity

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Report:
    """How a pass or a cleanup ended, according to what was read back, not to what was attempted."""

    changed: tuple[Action, ...]
    remaining: tuple[Action, ...]  # actions that are still to be done
    failures: tuple[Failure, ...]
    notices: tuple[Notice, ...] = ()
    observed: Observed | None = None  # the state that the last look observed

    @property
    def in_sync(self) -> bool:
        return not self.remaining and not self.failures

    @property
    def exit_code(self) -> int:
        return exit_code(self.failures, in_sync=self.in_sync)


def exit_code(failures: Sequence[Failure], *, in_sync: bool) -> int:
    """Return the exit code of the worst failure; without failures, 0 if in sync and else 1."""
    return max((failure.error.exit_code for failure in failures), default=0 if in_sync else 1)
