"""Whether a rule has any effect where it stands: pure text, as `iptables -S` prints it.

A rule behind another that drops the same traffic does nothing. What can be said for certain is said; what depends on
an interface, a set, a chain that is jumped to, or on anything else that is not known here, is called uncertain.
"""

import enum
import re
import shlex
from collections.abc import Mapping, Sequence
from ipaddress import ip_network
from typing import Final

from sidecar.state.model import Hindrance, Rule

#: Targets that let a packet go on to the next rule (man iptables-extensions).
PASSING: Final = frozenset(
    {"LOG", "NFLOG", "ULOG", "TRACE", "MARK", "CONNMARK", "CONNSECMARK", "SECMARK", "AUDIT", "CT", "NOTRACK", "SET"}
    | {"CLASSIFY", "CHECKSUM", "DSCP", "TOS", "TTL", "HL", "TCPMSS", "TCPOPTSTRIP", "TEE", "RATEEST", "IDLETIMER"}
)
BLOCKING: Final = frozenset(("DROP", "REJECT"))

#: The value of -i or -o, of traffic that comes or goes over some interface that is not lo.
NOT_LO: Final = "! lo"

#: Matches that say nothing by themselves: what they match, their options say. Of any other one it is not known.
_IDLE_MATCHES: Final = frozenset(("tcp", "comment", "multiport", "conntrack", "state"))


#: A comment as `iptables -S` prints it; what it says matters to nobody here.
_COMMENT: Final = re.compile(r'--comment (?:"(?:[^"\\]|\\.)*"|\S+)')


class Matches(enum.Enum):
    """Whether a condition holds for the traffic that our rule is for."""

    ALL = enum.auto()
    NOTHING = enum.auto()
    PERHAPS = enum.auto()


def hindrance(rule: Rule, before: Sequence[str]) -> Hindrance | None:
    """Return the first of the lines before a rule that keeps its traffic from reaching it; a certain one if there is.

    For ACCEPT that is a line that drops, for NOTRACK any that ends the way through the chain.
    """
    ours = _conditions(rule.match)
    quick = Quick(ours)
    ending = BLOCKING if rule.match[-1] == "ACCEPT" else BLOCKING | {"ACCEPT"}
    uncertain: Hindrance | None = None
    for line in before:
        if quick.never(line) or (uncertain and quick.never_all(line)):
            continue
        conditions, target = _read(line)
        sets_zone = target[:1] == ["CT"] and "--notrack" not in target and rule.match[-1] == "NOTRACK"
        if not target or (target[0] in PASSING and not sets_zone):
            continue
        matches = _matches(conditions, ours, untracked=rule.table != "raw")
        if matches is Matches.NOTHING:
            continue
        is_direct = target[0] in ending or sets_zone
        if matches is Matches.ALL and (is_direct or target[0] == "ACCEPT"):
            return Hindrance(line, certain=True) if is_direct else uncertain
        if target[0] != "ACCEPT" or is_direct:
            uncertain = uncertain or Hindrance(line, certain=False)
    return uncertain


class Quick:
    """Tells quickly of nearly all of very many rules that they do not matter for some traffic."""

    def __init__(self, traffic: Mapping[str, str]) -> None:
        """`traffic`: option → value, as of `judge`."""
        self._option = "-d" if "-d" in traffic else "-s"
        self._address = traffic[self._option]
        self._length = "/" + self._address.partition("/")[2]
        self._unknown = tuple(f" {option} " for option in ("-s", "-d", "-i", "-o") if option not in traffic)

    def never(self, line: str) -> bool:
        """Whether a rule is for another address."""
        before, found, rest = line.partition(f" {self._option} ")
        if not found or before.endswith(" !") or '"' in before:
            return False
        network = rest.split(" ", 1)[0]
        return network != self._address and network.endswith(self._length)

    def never_all(self, line: str) -> bool:
        """Whether a rule has a condition that does not hold for all of the traffic, as that says nothing of it."""
        # A network that holds every address is not printed as a condition (iptables/xshared.c, print_rule4).
        return '"' not in line and any(option in line for option in self._unknown)


def _read(line: str) -> tuple[list[tuple[str, str, bool]], list[str]]:
    """Return the conditions of a rule, each as option, value, negated; and its target with the target's options."""
    try:
        # There can be very many rules. Most have no quotes but those of a comment, and then this is ten times as quick.
        plain = _COMMENT.sub("--comment x", line)
        words = shlex.split(plain) if set("\"'\\") & set(plain) else plain.split()
    except ValueError:  # a quote in a comment that is not closed: too odd to be judged
        return [("unreadable", "", False)], ["unreadable"]
    if words[0] == "-P":  # a chain's policy: for all that comes to its end
        return [], words[2:]
    conditions: list[tuple[str, str, bool]] = []
    negated = False
    at = 2  # behind `-A CHAIN`
    while at < len(words):
        option = words[at]
        if option in ("-j", "-g"):
            return conditions, words[at + 1 :]
        if option == "!":
            negated = True
            at += 1
            continue
        has_value = option == "--comment" or (at + 1 < len(words) and not words[at + 1].startswith(("-", "!")))
        conditions.append((option, words[at + 1] if has_value else "", negated))
        negated = False
        at += 2 if has_value else 1
    return conditions, []


def _conditions(words: Sequence[str]) -> dict[str, str]:
    """Return option → value."""
    return {word: words[at + 1] for at, word in enumerate(words[:-1]) if word.startswith("-")}


def judge(line: str, traffic: dict[str, str], *, untracked: bool) -> tuple[Matches, list[str]]:
    """Return whether a rule matches TCP traffic (option → value, of those in our rules), and its target's words.

    `untracked`: whether connection tracking was told to leave this traffic alone.
    """
    conditions, target = _read(line)
    return _matches(conditions, traffic, untracked=untracked), target


def _matches(conditions: Sequence[tuple[str, str, bool]], ours: dict[str, str], *, untracked: bool) -> Matches:
    answers = []
    for option, value, negated in conditions:
        answer = _holds(option, value, ours, untracked=untracked)
        answers.append(_negated(answer) if negated else answer)
    if Matches.NOTHING in answers:
        return Matches.NOTHING
    return Matches.PERHAPS if Matches.PERHAPS in answers else Matches.ALL


def _holds(option: str, value: str, ours: dict[str, str], *, untracked: bool) -> Matches:
    try:
        return _judge(option, value, ours, untracked=untracked)
    except ValueError:  # a mask with holes in it, a port by name
        return Matches.PERHAPS


def _judge(option: str, value: str, ours: dict[str, str], *, untracked: bool) -> Matches:  # noqa: PLR0911 - one for each option
    match option:
        case "--comment":
            return Matches.ALL
        case "-m":
            return Matches.ALL if value in _IDLE_MATCHES else Matches.PERHAPS
        case "-p":
            return _known(value in ("tcp", "6", "all"))
        case "-s" | "-d":
            return _covers(value, ours.get(option))
        case "-i" | "-o" if value == "lo" and ours.get(option) == NOT_LO:
            return Matches.NOTHING
        case "--sport" | "--dport":
            return _has_port([value], ours.get(option))
        case "--sports" | "--dports":
            return _has_port(value.split(","), ours.get(option.removesuffix("s")))
        case "--ctstate" | "--state" if untracked:  # in raw nothing is tracked yet
            return _known("UNTRACKED" in value.split(","))  # which our rules see to
        case _:
            return Matches.PERHAPS


def _covers(network: str, address: str | None) -> Matches:
    if network.endswith("/0"):
        return Matches.ALL
    if address is None:
        return Matches.PERHAPS
    if network.partition("/")[2] == address.partition("/")[2]:  # as of most, and it is quicker
        return _known(network == address)
    return _known(ip_network(address).network_address in ip_network(network, strict=False))


def _has_port(ranges: Sequence[str], port: str | None) -> Matches:
    if port is None:
        return Matches.PERHAPS
    for each in ranges:
        first, _, last = each.partition(":")
        if int(first or 0) <= int(port) <= int(last or first or 65535):
            return Matches.ALL
    return Matches.NOTHING


def _known(answer: bool) -> Matches:  # noqa: FBT001 - it turns an answer into another kind of answer
    return Matches.ALL if answer else Matches.NOTHING


def _negated(answer: Matches) -> Matches:
    return {Matches.ALL: Matches.NOTHING, Matches.NOTHING: Matches.ALL}.get(answer, answer)
