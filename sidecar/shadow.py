"""Whether a rule has any effect where it stands: pure text, as `iptables -S` prints it.

A rule behind another that drops the same traffic does nothing. What can be said for certain is said; what depends on
an interface, a set, a chain that is jumped to, or on anything else that is not known here, is called uncertain.
"""

import enum
import shlex
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

from sidecar.model import Hindrance, Rule

#: Targets that let a packet go on to the next rule (man iptables-extensions).
_PASSING: Final = frozenset(
    {"LOG", "NFLOG", "ULOG", "TRACE", "MARK", "CONNMARK", "CONNSECMARK", "SECMARK", "AUDIT", "CT", "NOTRACK", "SET"}
    | {"CLASSIFY", "CHECKSUM", "DSCP", "TOS", "TTL", "HL", "TCPMSS", "TCPOPTSTRIP", "TEE", "RATEEST", "IDLETIMER"}
)
_BLOCKING: Final = frozenset(("DROP", "REJECT"))

#: Matches that say nothing by themselves: what they match, their options say. Of any other one it is not known.
_IDLE_MATCHES: Final = frozenset(("tcp", "comment", "multiport", "conntrack", "state"))


class _Matches(enum.Enum):
    """Whether a condition holds for the traffic that our rule is for."""

    ALL = enum.auto()
    NOTHING = enum.auto()
    PERHAPS = enum.auto()


def hindrance(rule: Rule, before: Sequence[str]) -> Hindrance | None:
    """Return the first of the lines before a rule that keeps its traffic from reaching it; a certain one if there is.

    For ACCEPT that is a line that drops, for NOTRACK any that ends the way through the chain.
    """
    ours = _conditions(rule.match)
    ending = _BLOCKING if rule.match[-1] == "ACCEPT" else _BLOCKING | {"ACCEPT"}
    uncertain: Hindrance | None = None
    for line in before:
        conditions, target = _read(line)
        sets_zone = target[:1] == ["CT"] and "--notrack" not in target and rule.match[-1] == "NOTRACK"
        if not target or (target[0] in _PASSING and not sets_zone):
            continue
        matches = _matches(conditions, rule.table, ours)
        if matches is _Matches.NOTHING:
            continue
        is_direct = target[0] in ending or sets_zone
        if matches is _Matches.ALL and (is_direct or target[0] == "ACCEPT"):
            return Hindrance(line, certain=True) if is_direct else uncertain
        if target[0] != "ACCEPT" or is_direct:
            uncertain = uncertain or Hindrance(line, certain=False)
    return uncertain


def _read(line: str) -> tuple[list[tuple[str, str, bool]], list[str]]:
    """Return the conditions of a rule, each as option, value, negated; and its target with the target's options."""
    try:
        words = shlex.split(line)
    except ValueError:  # a quote in a comment that is not closed: too odd to be judged
        return [("unreadable", "", False)], ["unreadable"]
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


def _matches(conditions: Sequence[tuple[str, str, bool]], table: str, ours: dict[str, str]) -> _Matches:
    answers = []
    for option, value, negated in conditions:
        answer = _holds(option, value, table, ours)
        answers.append(_negated(answer) if negated else answer)
    if _Matches.NOTHING in answers:
        return _Matches.NOTHING
    return _Matches.PERHAPS if _Matches.PERHAPS in answers else _Matches.ALL


def _holds(option: str, value: str, table: str, ours: dict[str, str]) -> _Matches:
    try:
        return _judge(option, value, table, ours)
    except ValueError:  # a mask with holes in it, a port by name
        return _Matches.PERHAPS


def _judge(option: str, value: str, table: str, ours: dict[str, str]) -> _Matches:  # noqa: PLR0911 - one for each option
    match option:
        case "--comment":
            return _Matches.ALL
        case "-m":
            return _Matches.ALL if value in _IDLE_MATCHES else _Matches.PERHAPS
        case "-p":
            return _known(value in ("tcp", "6", "all"))
        case "-s" | "-d":
            return _covers(ip_network(value, strict=False), ours.get(option))
        case "--sport" | "--dport":
            return _has_port([value], ours.get(option))
        case "--sports" | "--dports":
            return _has_port(value.split(","), ours.get(option.removesuffix("s")))
        case "--ctstate" | "--state" if table != "raw":  # there nothing is tracked yet
            return _known("UNTRACKED" in value.split(","))  # which our rules see to
        case _:
            return _Matches.PERHAPS


def _covers(network: IPv4Network | IPv6Network, address: str | None) -> _Matches:
    if network.prefixlen == 0:
        return _Matches.ALL
    if address is None:
        return _Matches.PERHAPS
    return _known(ip_network(address).network_address in network)


def _has_port(ranges: Sequence[str], port: str | None) -> _Matches:
    if port is None:
        return _Matches.PERHAPS
    for each in ranges:
        first, _, last = each.partition(":")
        if int(first or 0) <= int(port) <= int(last or first or 65535):
            return _Matches.ALL
    return _Matches.NOTHING


def _known(answer: bool) -> _Matches:  # noqa: FBT001 - it turns an answer into another kind of answer
    return _Matches.ALL if answer else _Matches.NOTHING


def _negated(answer: _Matches) -> _Matches:
    return {_Matches.ALL: _Matches.NOTHING, _Matches.NOTHING: _Matches.ALL}.get(answer, answer)
