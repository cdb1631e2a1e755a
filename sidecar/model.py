"""The values that travel between the floors: all frozen, none knows how it is observed or applied."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Literal, TypeAlias

from sidecar.errors import SidecarError

IPAddress: TypeAlias = IPv4Address | IPv6Address
Family: TypeAlias = Literal[4, 6]

#: What a line of the log tells, as values; they become the fields of a log in JSON.
Facts: TypeAlias = dict[str, str | int | float]


@dataclass(frozen=True, slots=True)
class Address:
    """An IP address on an interface."""

    ip: IPAddress
    prefix_length: int
    interface: str

    @property
    def cidr(self) -> str:
        return f"{self.ip}/{self.prefix_length}"

    @property
    def facts(self) -> Facts:
        return {"address": self.cidr, "interface": self.interface}

    def __str__(self) -> str:
        return f"{self.cidr} on {self.interface}"


@dataclass(frozen=True, slots=True)
class Rule:
    """One iptables rule; `match` holds everything behind the chain's name, target included."""

    family: Family
    table: str
    chain: str
    match: tuple[str, ...]

    @property
    def line(self) -> str:
        """The rule as `iptables -S` prints it."""
        return f"-A {self.chain} {' '.join(self.match)}"

    @property
    def facts(self) -> Facts:
        return {"rule": str(self), "family": self.family}

    def __str__(self) -> str:
        return f"-t {self.table} {self.line}"


@dataclass(frozen=True, slots=True)
class Desired:
    """What should be on the node."""

    interface: str
    addresses: tuple[Address, ...]
    scope: str
    rules: tuple[Rule, ...]
    insert: bool
    """True: rules go in front of the others in their chain; False: behind them."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What is on the node, as far as it could be seen. What could not be seen is unknown, never absent."""

    links: frozenset[str] | None
    """The names of all interfaces; None: could not look."""

    addresses: frozenset[Address] | None
    """Every address on every interface; None: could not look."""

    copies: Mapping[Rule, int]
    """How many copies of each of our rules there are; a rule that is not in here could not be looked for."""


# What can be done to a node. `todo` and `done` are the words for it in the log, `facts` the same as values.


@dataclass(frozen=True, slots=True)
class AddAddress:
    address: Address
    scope: str

    @property
    def todo(self) -> str:
        return f"add {self.address.cidr} to {self.address.interface}"

    @property
    def done(self) -> str:
        return f"added {self.address.cidr} to {self.address.interface}"

    @property
    def facts(self) -> Facts:
        return self.address.facts


@dataclass(frozen=True, slots=True)
class RemoveAddress:
    address: Address

    @property
    def todo(self) -> str:
        return f"remove {self.address.cidr} from {self.address.interface}"

    @property
    def done(self) -> str:
        return f"removed {self.address.cidr} from {self.address.interface}"

    @property
    def facts(self) -> Facts:
        return self.address.facts


@dataclass(frozen=True, slots=True)
class AddRule:
    rule: Rule
    insert: bool

    @property
    def todo(self) -> str:
        return f"add rule: {self.rule}"

    @property
    def done(self) -> str:
        where = ", in front" if self.insert else ""
        return f"rule missing, added{where}: {self.rule}"

    @property
    def facts(self) -> Facts:
        return self.rule.facts


@dataclass(frozen=True, slots=True)
class RemoveSurplus:
    """Remove copies of a rule, but one."""

    rule: Rule
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
class RemoveRule:
    """Remove every copy of a rule."""

    rule: Rule
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


AddressAction: TypeAlias = AddAddress | RemoveAddress
RuleAction: TypeAlias = AddRule | RemoveSurplus | RemoveRule
Action: TypeAlias = AddressAction | RuleAction


@dataclass(frozen=True, slots=True)
class Failure:
    """Something that was tried in vain."""

    attempt: str
    error: SidecarError
    about: Facts = field(default_factory=dict)
    """What it was tried with."""

    @property
    def facts(self) -> Facts:
        return {**self.about, **self.error.facts}

    def __str__(self) -> str:
        return f"could not {self.attempt}: {self.error}"


@dataclass(frozen=True, slots=True)
class Report:
    """How a pass, or a cleanup, ended: what was read back, not what was asked for."""

    changed: tuple[Action, ...]
    remaining: tuple[Action, ...]
    """What would still have to be done."""

    failures: tuple[Failure, ...]

    @property
    def in_sync(self) -> bool:
        return not self.remaining and not self.failures

    @property
    def exit_code(self) -> int:
        if self.in_sync:
            return 0
        return max((failure.error.exit_code for failure in self.failures), default=1)
