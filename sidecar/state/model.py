"""The values that travel between the floors: all frozen, none knows how it is observed or applied."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Literal, TypeAlias

IPAddress: TypeAlias = IPv4Address | IPv6Address
Family: TypeAlias = Literal[4, 6]

IPV4: Final = 4
IPV6: Final = 6

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
class RuleSet:
    """The five rules of an IP address and a port."""

    ip: IPAddress
    port: int

    def __str__(self) -> str:
        host = f"[{self.ip}]" if self.ip.version == IPV6 else str(self.ip)
        return f"the rules for {host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface by its name."""

    name: str

    def __str__(self) -> str:
        return f"interface {self.name}"


#: What an instance needs on the node, so that no other one removes it.
Claim: TypeAlias = Address | RuleSet | Interface

#: What can be repaired, and counted by itself.
Object: TypeAlias = Interface | Address | Rule


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
class BackendInUse:
    """The iptables by which the rules of a family are observed and changed, and why it is this one."""

    family: Family
    command: str
    version: str
    is_legacy: bool
    reason: str

    @property
    def name(self) -> str:
        """Return it as --iptables-backend spells it."""
        return self.command.partition("-")[2] or "system"


@dataclass(frozen=True, slots=True)
class Observed:
    """What is on the node, as far as it could be seen. What could not be seen is unknown, never absent."""

    links: tuple[Link, ...] | None
    """All interfaces, with their addresses; None: could not look."""

    copies: Mapping[Rule, int]
    """How many copies of each of our rules there are; a rule that is not in here could not be looked for."""

    hindrances: Mapping[Rule, Hindrance] = field(default_factory=dict)
    """What stands before a rule that is there."""

    backends: tuple[BackendInUse, ...] = ()
    """By family, as far as it is known which are in use."""

    def link(self, name: str) -> Link | None:
        """Return the link that goes by this name, if it was seen."""
        return next((link for link in self.links or () if link.goes_by(name)), None)
