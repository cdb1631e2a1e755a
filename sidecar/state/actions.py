"""The actions that change a node, and the report of a pass or a cleanup.

`todo` and `done` are the words for an action in the log, `facts` the same as values.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from sidecar.errors import SidecarError
from sidecar.state.model import Address, Facts, Observed, Rule


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

    @property
    def todo(self) -> str:
        return f"create interface {self.interface} ({self.kind})"

    @property
    def done(self) -> str:
        return f"interface {self.interface} missing, created ({self.kind})"


@dataclass(frozen=True, slots=True)
class SetLinkUp(_OnInterface):
    @property
    def todo(self) -> str:
        return f"set interface {self.interface} up"

    @property
    def done(self) -> str:
        return f"interface {self.interface} was down, set up"


@dataclass(frozen=True, slots=True)
class DeleteLink(_OnInterface):
    """Delete an interface that this program created."""

    @property
    def todo(self) -> str:
        return f"delete interface {self.interface}"

    @property
    def done(self) -> str:
        return f"deleted interface {self.interface}"


@dataclass(frozen=True, slots=True)
class AddAddress(_OnAddress):
    scope: str

    @property
    def todo(self) -> str:
        return f"add {self.address.cidr} to {self.address.interface}"

    @property
    def done(self) -> str:
        return f"added {self.address.cidr} to {self.address.interface}"


@dataclass(frozen=True, slots=True)
class RemoveAddress(_OnAddress):
    @property
    def todo(self) -> str:
        return f"remove {self.address.cidr} from {self.address.interface}"

    @property
    def done(self) -> str:
        return f"removed {self.address.cidr} from {self.address.interface}"


@dataclass(frozen=True, slots=True)
class AddRule(_OnRule):
    insert: bool

    @property
    def todo(self) -> str:
        return f"add rule: {self.rule}"

    @property
    def done(self) -> str:
        where = ", in front" if self.insert else ""
        return f"rule missing, added{where}: {self.rule}"


@dataclass(frozen=True, slots=True)
class MoveToFront(_OnRule):
    """Put a rule in front of all others, without ever leaving it out."""

    behind: str

    @property
    def todo(self) -> str:
        return f"move to the front, behind `{self.behind}` it has no effect: {self.rule}"

    @property
    def done(self) -> str:
        return f"moved to the front, it was behind `{self.behind}`: {self.rule}"

    @property
    def facts(self) -> Facts:
        return self.rule.facts | {"behind": self.behind}


@dataclass(frozen=True, slots=True)
class RemoveSurplus(_OnRule):
    """Remove all copies of a rule but one."""

    surplus: int

    @property
    def todo(self) -> str:
        return f"remove {_copies(self.surplus)} too many: {self.rule}"

    @property
    def done(self) -> str:
        return f"removed {_copies(self.surplus)} too many: {self.rule}"

    @property
    def facts(self) -> Facts:
        return self.rule.facts | {"copies": self.surplus}


@dataclass(frozen=True, slots=True)
class RemoveRule(_OnRule):
    """Remove every copy of a rule."""

    copies: int

    @property
    def todo(self) -> str:
        return f"remove rule{self._times}: {self.rule}"

    @property
    def done(self) -> str:
        return f"removed rule{self._times}: {self.rule}"

    @property
    def facts(self) -> Facts:
        return self.rule.facts | {"copies": self.copies}

    @property
    def _times(self) -> str:
        return f" ({_copies(self.copies)})" if self.copies > 1 else ""


def _copies(number: int) -> str:
    return "1 copy" if number == 1 else f"{number} copies"


LinkAction: TypeAlias = CreateLink | SetLinkUp | DeleteLink | AddAddress | RemoveAddress
RuleAction: TypeAlias = AddRule | MoveToFront | RemoveSurplus | RemoveRule
Action: TypeAlias = LinkAction | RuleAction


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt that failed."""

    attempt: str
    error: SidecarError
    about: Facts = field(default_factory=dict)
    """The objects of the attempt."""

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
    certain: bool = True
    """If False, it may not matter, and is logged only at a higher verbosity."""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Report:
    """How a pass or a cleanup ended, according to what was read back, not to what was attempted."""

    changed: tuple[Action, ...]
    remaining: tuple[Action, ...]
    """Actions that are still to be done."""

    failures: tuple[Failure, ...]
    notices: tuple[Notice, ...] = ()
    observed: Observed | None = None
    """The state that the last look of a pass observed."""

    @property
    def in_sync(self) -> bool:
        return not self.remaining and not self.failures

    @property
    def exit_code(self) -> int:
        return exit_code(self.failures, in_sync=self.in_sync)


def exit_code(failures: Sequence[Failure], *, in_sync: bool) -> int:
    """Return the exit code of the worst failure; without failures, 0 if in sync and else 1."""
    return max((failure.error.exit_code for failure in failures), default=0 if in_sync else 1)
