"""Decides whether a rule, as `iptables -S` prints it, matches some traffic.

The answer is PERHAPS if it depends on an interface, a set, or anything else that is not known here.
"""

import enum
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final, Self, TypeAlias

from sidecar.state.model import LOOPBACK, Rule

NOT_LOOPBACK: Final = f"! {LOOPBACK}"  # any interface but lo

#: Stands for the port of a client: the first of net.ipv4.ip_local_port_range, as the kernel sets it.
_CLIENT_PORT: Final = "32768"

#: Matches that hold by themselves; only their options are conditions. The outcome of any other match is unknown.
_IDLE_MATCHES: Final = frozenset(("tcp", "comment", "multiport", "conntrack", "state"))

#: A comment as `iptables -S` prints it; its text plays no part here.
_COMMENT: Final = re.compile(r'--comment (?:"(?:[^"\\]|\\.)*"|\S+)')

#: Option, value, and whether it is negated.
_Condition: TypeAlias = tuple[str, str, bool]


class Matches(enum.Enum):
    """Whether a condition, or a rule, matches some traffic."""

    ALL = enum.auto()
    NOTHING = enum.auto()
    PERHAPS = enum.auto()


@dataclass(frozen=True, slots=True)
class Traffic:
    """TCP packets to an address and port, or from them."""

    address: str  # as /32 or /128
    port: int
    inward: bool
    untracked: bool  # whether a NOTRACK rule has exempted it from connection tracking
    interface: str = NOT_LOOPBACK
    """LOOPBACK: from this node to itself, so both from and to the address; empty: any interface."""

    @classmethod
    def of(cls, rule: Rule) -> Self:
        """Return the traffic that one of our rules is for."""
        conditions = dict(zip(rule.match[:-1], rule.match[1:], strict=True))
        inward = "-d" in conditions
        address, port = ("-d", "--dport") if inward else ("-s", "--sport")
        # In raw nothing is tracked yet; after raw, our NOTRACK rules have exempted it.
        untracked = rule.table != "raw"
        return cls(conditions[address], int(conditions[port]), inward, untracked, interface="")

    @property
    def options(self) -> dict[str, str]:
        """What is known of it, as options of iptables."""
        address, port, interface = ("-d", "--dport", "-i") if self.inward else ("-s", "--sport", "-o")
        if self.interface == LOOPBACK:
            other_port = "--sport" if self.inward else "--dport"
            return {"-s": self.address, "-d": self.address, port: str(self.port), other_port: _CLIENT_PORT}
        known = {address: self.address, port: str(self.port)}
        return known | ({interface: self.interface} if self.interface else {})


class Quick:
    """Recognizes, without parsing them, most of the rules that do not matter for some traffic."""

    def __init__(self, options: Mapping[str, str]) -> None:
        """`options` are those of the traffic."""
        self._option = "-d" if "-d" in options else "-s"
        self._address = options[self._option]
        self._length = "/" + self._address.partition("/")[2]
        self._unknown = tuple(f" {option} " for option in ("-s", "-d", "-i", "-o") if option not in options)

    def never(self, line: str) -> bool:
        """Whether a rule is for another address."""
        before, found, rest = line.partition(f" {self._option} ")
        if not found or before.endswith(" !") or '"' in before:
            return False
        network = rest.split(" ", 1)[0]
        return network != self._address and network.endswith(self._length)

    def never_all(self, line: str) -> bool:
        """Whether a rule has a condition that cannot match all of the traffic, as nothing is known about it."""
        # A network that holds every address is not printed as a condition (iptables/xshared.c, print_rule4).
        return '"' not in line and any(option in line for option in self._unknown)


def judge(line: str, options: Mapping[str, str], *, untracked: bool) -> tuple[Matches, str]:
    """Return whether a rule, or a chain's policy, matches the traffic with these options; and its target, if any."""
    conditions, target = _read(line)
    answers = [_holds(*condition, options, untracked=untracked) for condition in conditions]
    if Matches.NOTHING in answers:
        return Matches.NOTHING, target
    return Matches.PERHAPS if Matches.PERHAPS in answers else Matches.ALL, target


def _read(line: str) -> tuple[list[_Condition], str]:
    """Return the conditions of a rule, and its target."""
    try:
        # There can be very many rules. Most have no quotes but those of a comment, and then this is ten times as quick.
        plain = _COMMENT.sub("--comment x", line)
        # Only a space parts words; str.split() would do so at characters that the name of a chain may hold.
        words = shlex.split(plain) if set("\"'\\") & set(plain) else list(filter(None, plain.split(" ")))
    except ValueError:  # a quote in a comment that is not closed: too odd to be judged
        return [("unreadable", "", False)], "unreadable"
    if words[0] == "-P":  # a chain's policy: for all that comes to its end
        return [], words[2]
    conditions: list[_Condition] = []
    negated = False
    at = 2  # behind `-A CHAIN`
    while at < len(words):
        option = words[at]
        if option in ("-j", "-g"):
            # Both names of one target, which iptables prints by its release.
            return conditions, "NOTRACK" if words[at + 1 :] == ["CT", "--notrack"] else words[at + 1]
        if option == "!":
            negated = True
            at += 1
            continue
        has_value = option == "--comment" or (at + 1 < len(words) and not words[at + 1].startswith(("-", "!")))
        conditions.append((option, words[at + 1] if has_value else "", negated))
        negated = False
        at += 2 if has_value else 1
    return conditions, ""


def _holds(option: str, value: str, negated: bool, known: Mapping[str, str], *, untracked: bool) -> Matches:  # noqa: FBT001 - a part of a condition
    try:
        answer = _evaluate(option, value, known, untracked=untracked)
    except ValueError:  # a mask with holes in it, a port by name
        return Matches.PERHAPS
    if negated and answer is not Matches.PERHAPS:
        return _certainly(answer is Matches.NOTHING)
    return answer


def _evaluate(option: str, value: str, known: Mapping[str, str], *, untracked: bool) -> Matches:  # noqa: PLR0911 - one for each option
    match option:
        case "--comment":
            return Matches.ALL
        case "-m":
            return Matches.ALL if value in _IDLE_MATCHES else Matches.PERHAPS
        case "-p":
            return _certainly(value in ("tcp", "6", "all"))
        case "-s" | "-d":
            return _covers(value, known.get(option))
        case "-i" | "-o" if value == LOOPBACK and known.get(option) == NOT_LOOPBACK:
            return Matches.NOTHING
        case "--sport" | "--dport":
            return _has_port([value], known.get(option))
        case "--sports" | "--dports":
            return _has_port(value.split(","), known.get(option.removesuffix("s")))
        case "--ctstate" | "--state" if untracked:
            return _certainly("UNTRACKED" in value.split(","))
        case _:
            return Matches.PERHAPS


def _covers(network: str, address: str | None) -> Matches:
    if network.endswith("/0"):
        return Matches.ALL
    if address is None:
        return Matches.PERHAPS
    if network.partition("/")[2] == address.partition("/")[2]:  # the usual case, and quicker
        return _certainly(network == address)
    return _certainly(ip_network(address).network_address in ip_network(network, strict=False))


def _has_port(ranges: Sequence[str], port: str | None) -> Matches:
    if port is None:
        return Matches.PERHAPS
    for each in ranges:
        first, _, last = each.partition(":")
        if int(first or 0) <= int(port) <= int(last or first or 65535):
            return Matches.ALL
    return Matches.NOTHING


def _certainly(answer: bool) -> Matches:  # noqa: FBT001 - it turns an answer into another kind of answer
    return Matches.ALL if answer else Matches.NOTHING
