"""The values that all packages share: immutable, and independent of how they are observed or applied."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Literal, TypeAlias

IPAddress: TypeAlias = IPv4Address | IPv6Address
Family: TypeAlias = Literal[4, 6]

IPV4: Final = 4
IPV6: Final = 6

NFT_FAMILIES: Final[Mapping[Family, str]] = {4: "ip", 6: "ip6"}  # what nft calls them

LOOPBACK: Final = "lo"

#: A table and one of its chains.
Chain: TypeAlias = tuple[str, str]

#: The content of a log line, as values; they become the fields of a JSON log.
Facts: TypeAlias = dict[str, str | int | float]


class Part(enum.Enum):
    """What one look covers."""

    LINKS = enum.auto()  # with their addresses
    RULES = enum.auto()


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
    """One iptables rule; `match` holds everything after the chain's name, including the target."""

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
    """The five rules for an IP address and a port."""

    ip: IPAddress
    port: int

    def __str__(self) -> str:
        return f"the rules for {socket_name(self.ip, self.port)}"


def socket_name(ip: IPAddress, port: int) -> str:
    """Return an address with a port, as you would type it."""
    return f"[{ip}]:{port}" if ip.version == IPV6 else f"{ip}:{port}"


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface, identified by its name."""

    name: str

    def __str__(self) -> str:
        return f"interface {self.name}"


@dataclass(frozen=True, slots=True)
class RulesBackend:
    """The backend that holds the rules of a family, or only `rules`."""

    family: Family
    backend: str
    rules: RuleSet | None = None


@dataclass(frozen=True, slots=True)
class Foreign:
    """An interface that others created: if it is missing, it is waited for."""

    interface: str


#: An object that an instance needs on the node, so that no other instance removes it.
Claim: TypeAlias = Address | RuleSet | Interface

#: An object that can be repaired, and is counted separately.
Object: TypeAlias = Interface | Address | Rule


@dataclass(frozen=True, slots=True)
class Desired:
    """The desired state of the node."""

    interface: str
    addresses: tuple[Address, ...]
    scope: str
    rules: tuple[Rule, ...]
    insert: bool  # whether rules go in front of the others in their chain, not behind them
    link_kind: str  # the kind of link to create if the interface is missing; if empty, none is created
    remove_duplicates: bool  # whether to remove the addresses from other interfaces
    waits_because: str = ""  # why a missing interface is waited for; if empty, it is created


class AddressState(enum.Enum):
    """The kernel's state of an IPv6 address (linux/if_addr.h); an IPv4 address is always usable."""

    USABLE = enum.auto()
    TENTATIVE = enum.auto()  # duplicate address detection is under way
    DUPLICATE = enum.auto()  # duplicate address detection failed: another host on the link has the address


@dataclass(frozen=True, slots=True)
class LinkAddress:
    """An IP address as found on a link."""

    ip: IPAddress
    prefix_length: int
    scope: str
    state: AddressState = AddressState.USABLE
    is_peer: bool = False  # whether it is one end of a point-to-point link
    made_by_kernel: bool = False  # whether the kernel derived it from the link's hardware address
    is_deprecated: bool = False
    """Whether the kernel chooses it as a source address only if there is no other (RFC 6724, rule 3); IPv6 only."""

    @property
    def cidr(self) -> str:
        return f"{self.ip}/{self.prefix_length}"


@dataclass(frozen=True, slots=True)
class Link:
    """An interface as found on the node."""

    name: str
    altnames: tuple[str, ...] = ()
    index: int = 0  # the kernel's number of it, which stays if it is renamed; 0: not known
    kind: str = ""  # the kind of a virtual link: dummy, veth, …
    alias: str = ""
    is_up: bool = True
    addresses: tuple[LinkAddress, ...] = ()
    has_dependents: bool = False  # whether other links are stacked on it, or enslaved to it
    problem: str = ""
    """Why some of it could not be read; of that, nothing is known. A link without a name may be any link."""

    def goes_by(self, name: str) -> bool:
        return name == self.name or name in self.altnames


@dataclass(frozen=True, slots=True)
class Hindrance:
    """A rule in front of one of our rules that keeps traffic from reaching it."""

    line: str
    certain: bool  # if False, it does so perhaps, for only some of the traffic, or in the chain that it jumps to

    def effect_on(self, rule: Rule) -> str:
        return f"{'' if self.certain else 'perhaps '}without effect behind `{self.line}`: {rule}"


@dataclass(frozen=True, slots=True)
class BackendInUse:
    """The iptables that observes and changes the rules of a family, and why it was chosen."""

    family: Family
    command: str
    version: str
    is_legacy: bool
    reason: str
    contrary: str = ""  # why this node would now get the other backend; empty if it would not, or that is unknown

    @property
    def name(self) -> str:
        """Return the backend as --iptables-backend spells it."""
        return self.command.partition("-")[2] or "system"


@dataclass(frozen=True, slots=True)
class History:
    """What earlier looks of this run have shown of the interface."""

    was_foreign: bool = False  # whether the last link that was there was not created by this program
    index: int = 0  # the index of the link that is the interface; 0: it is missing
    renamed: frozenset[int] = frozenset()
    """The indexes of links that were the interface, have another name now, and still have one of the addresses."""


@dataclass(frozen=True, slots=True)
class Observed:
    """The observed state of the node. Objects that could not be observed are unknown, never absent."""

    links: tuple[Link, ...] | None  # all interfaces, with their addresses; None if they could not be observed
    copies: Mapping[Rule, int]
    """The number of copies of each of our rules; a rule that is not in here could not be observed."""

    hindrances: Mapping[Rule, Hindrance] = field(default_factory=dict)  # the hindrance in front of a rule that is there
    backends: tuple[BackendInUse, ...] = ()  # the backends in use, one for each family for which it is known
    unknown: Mapping[Rule, str] = field(default_factory=dict)
    """Why it cannot be known, now or later, whether a rule is there; no action follows from such a rule."""

    dormant: frozenset[tuple[Family, str]] = frozenset()
    """The tables whose rules have no effect, as they have nft's `flags dormant`."""

    former: Mapping[Rule, int] = field(default_factory=dict)
    """The number of copies of our rules in the backend that was in use before, and that nobody needs there."""

    history: History = History()

    def is_dormant(self, rule: Rule) -> bool:
        """Whether a rule has no effect, as its table has none."""
        return (rule.family, rule.table) in self.dormant

    def link(self, name: str) -> Link | None:
        """Return the link with this name or alternative name, or else one that may be it, as its name is unknown."""
        links = self.links or ()
        nameless = next((link for link in links if not link.name), None)
        return next((link for link in links if link.goes_by(name)), nameless)
