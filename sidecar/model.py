"""The values that travel between the floors: all frozen, none knows how it is observed or applied."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Literal, TypeAlias

from sidecar.errors import SidecarError

IPAddress: TypeAlias = IPv4Address | IPv6Address
Family: TypeAlias = Literal[4, 6]

#: A table and one of its chains.
Chain: TypeAlias = tuple[str, str]

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
    def place(self) -> Chain:
        return self.table, self.chain

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

    link_kind: str
    """The kind of link to create where the interface is missing; empty: none is created."""

    remove_duplicates: bool
    """Whether the addresses are taken off other interfaces."""


class AddressState(enum.Enum):
    """What the kernel thinks of an IPv6 address (linux/if_addr.h); an IPv4 address is always usable."""

    USABLE = enum.auto()
    TENTATIVE = enum.auto()
    """Duplicate address detection is under way."""
    DUPLICATE = enum.auto()
    """It failed: another host on the link has the address."""


@dataclass(frozen=True, slots=True)
class LinkAddress:
    """An IP address as it was found on a link."""

    ip: IPAddress
    prefix_length: int
    scope: str
    state: AddressState = AddressState.USABLE
    is_peer: bool = False
    """Whether it is one end of a point-to-point link."""

    made_by_kernel: bool = False
    """Whether the kernel gave it to the link by itself, from its hardware address."""

    @property
    def cidr(self) -> str:
        return f"{self.ip}/{self.prefix_length}"


@dataclass(frozen=True, slots=True)
class Link:
    """An interface as it was found."""

    name: str
    altnames: tuple[str, ...] = ()
    kind: str = ""
    """Of a virtual link: dummy, veth, …"""

    alias: str = ""
    is_up: bool = True
    addresses: tuple[LinkAddress, ...] = ()
    has_dependents: bool = False
    """Whether other links are stacked upon it, or enslaved to it."""

    def goes_by(self, name: str) -> bool:
        return name == self.name or name in self.altnames


@dataclass(frozen=True, slots=True)
class Hindrance:
    """A rule in front of one of ours that keeps its traffic from it."""

    line: str
    certain: bool
    """False: perhaps, or only some of it; or what it jumps to does."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What is on the node, as far as it could be seen. What could not be seen is unknown, never absent."""

    links: tuple[Link, ...] | None
    """All interfaces, with their addresses; None: could not look."""

    copies: Mapping[Rule, int]
    """How many copies of each of our rules there are; a rule that is not in here could not be looked for."""

    hindrances: Mapping[Rule, Hindrance] = field(default_factory=dict)
    """What stands before a rule that is there."""

    def link(self, name: str) -> Link | None:
        """Return the link that goes by this name, if it was seen."""
        return next((link for link in self.links or () if link.goes_by(name)), None)


# What can be done to a node. `todo` and `done` are the words for it in the log, `facts` the same as values.


@dataclass(frozen=True, slots=True)
class CreateLink:
    """Create an interface, marked as ours, and set it up."""

    interface: str
    kind: str

    @property
    def todo(self) -> str:
        return f"create interface {self.interface} ({self.kind})"

    @property
    def done(self) -> str:
        return f"interface {self.interface} missing, created ({self.kind})"

    @property
    def facts(self) -> Facts:
        return {"interface": self.interface}


@dataclass(frozen=True, slots=True)
class SetLinkUp:
    interface: str

    @property
    def todo(self) -> str:
        return f"set interface {self.interface} up"

    @property
    def done(self) -> str:
        return f"interface {self.interface} was down, set up"

    @property
    def facts(self) -> Facts:
        return {"interface": self.interface}


@dataclass(frozen=True, slots=True)
class DeleteLink:
    """Delete an interface that this program created."""

    interface: str

    @property
    def todo(self) -> str:
        return f"delete interface {self.interface}"

    @property
    def done(self) -> str:
        return f"deleted interface {self.interface}"

    @property
    def facts(self) -> Facts:
        return {"interface": self.interface}


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
class MoveToFront:
    """Put a rule in front of all others, without a moment in which it is missing."""

    rule: Rule
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


LinkAction: TypeAlias = CreateLink | SetLinkUp | DeleteLink | AddAddress | RemoveAddress
RuleAction: TypeAlias = AddRule | MoveToFront | RemoveSurplus | RemoveRule
Action: TypeAlias = LinkAction | RuleAction


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
class Notice:
    """Something that an operator should know, though nothing is missing because of it."""

    text: str
    facts: Facts = field(default_factory=dict)
    certain: bool = True
    """False: perhaps it matters; said to who asks for more than the usual log."""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Report:
    """How a pass, or a cleanup, ended: what was read back, not what was asked for."""

    changed: tuple[Action, ...]
    remaining: tuple[Action, ...]
    """What would still have to be done."""

    failures: tuple[Failure, ...]
    notices: tuple[Notice, ...] = ()
    observed: Observed | None = None
    """What the last look of a pass has seen."""

    @property
    def in_sync(self) -> bool:
        return not self.remaining and not self.failures

    @property
    def exit_code(self) -> int:
        if self.in_sync:
            return 0
        return max((failure.error.exit_code for failure in self.failures), default=1)
