"""Judges rules as `iptables -S` prints them, and what stands in front of ours."""

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, pairwise
from typing import Final, NamedTuple

from sidecar.firewall.conditions import Condition, holds
from sidecar.firewall.packet import TRACKED, UNTRACKED, Packet
from sidecar.firewall.verdicts import Effect, Judgement, Matches, together
from sidecar.state.model import Hindrance, Rule

#: Targets that let a packet go on to the next rule (man iptables-extensions), besides those that change it.
_PASSING: Final = frozenset(
    {"LOG", "NFLOG", "ULOG", "TRACE", "CONNSECMARK", "SECMARK", "AUDIT", "CT", "SET", "LED"}
    | {
        "CLASSIFY",
        "CHECKSUM",
        "DSCP",
        "TOS",
        "TTL",
        "HL",
        "TCPMSS",
        "TCPOPTSTRIP",
        "TEE",
        "RATEEST",
        "IDLETIMER",
        "ECN",
    }
)

_EFFECTS: Final[Mapping[str, Effect]] = {
    "ACCEPT": Effect.ACCEPT,
    "RETURN": Effect.RETURN,
    # For the traffic that we follow, these say where it goes; SNAT and MASQUERADE leave its destination alone.
    **dict.fromkeys(("DROP", "REJECT", "TARPIT"), Effect.DROP),
    **dict.fromkeys(("DNAT", "REDIRECT", "NETMAP", "TPROXY"), Effect.TAKE),
    **dict.fromkeys(("SNAT", "MASQUERADE"), Effect.ACCEPT),
    **dict.fromkeys(("QUEUE", "NFQUEUE", "SYNPROXY"), Effect.UNKNOWN),
    **dict.fromkeys(_PASSING, Effect.CONTINUE),
}

#: A comment as iptables prints it; its text plays no part here.
_COMMENT: Final = re.compile(r'--comment (?:"(?:[^"\\]|\\.)*"|[^\s"]\S*)')

_ALL_BITS: Final = "0xffffffff"  # the mask of a mark that is meant as a whole

_NOTHING: Final[Sequence[Judgement]] = ()


class _Read(NamedTuple):
    """A rule, taken apart."""

    conditions: Sequence[Condition]
    target: str
    goes: bool  # whether it goes to the target without coming back
    options: Sequence[str]  # those of the target


class IptablesRules:
    """The rules of one table, in listings that `node.listings.parse_listings` has read: a policy comes last."""

    def __init__(self, listings: Mapping[str, Sequence[str]]) -> None:
        self._listings = listings
        self._read: dict[str, _Read] = {}
        self._quick: _Quick | None = None  # that of the last packet: the same one meets many rules

    def of(self, chain: str) -> Sequence[str] | None:
        lines = self._listings.get(chain)
        return lines[:-1] if lines and lines[-1].startswith("-P ") else lines

    def policy(self, chain: str) -> str | None:
        lines = self._listings.get(chain)
        return lines[-1] if lines and lines[-1].startswith("-P ") else None

    def text(self, rule: str) -> str:
        return rule

    def texts(self) -> Iterable[str]:
        return chain.from_iterable(self._listings.values())

    def judge(self, rule: str, packet: Packet) -> Sequence[Judgement] | None:
        if self._quick_for(packet).never(rule):
            return None
        if (read := self._read.get(rule)) is None:
            read = self._read[rule] = _taken_apart(rule)
        return _judged(read, packet)

    def jumps(self, chain: str, packet: Packet) -> Iterator[str]:
        """Yield the chains that a packet may come to from the rules of a chain itself."""
        quick = self._quick_for(packet)
        for rule in self.of(chain) or ():
            if quick.never_all(rule) and _target(rule) in _EFFECTS:
                continue  # some of the packets go on, and none to another chain
            for each in self.judge(rule, packet) or ():
                if each.effect in (Effect.JUMP, Effect.GOTO):
                    yield each.target
                if each.matches is Matches.ALL and each.effect not in (Effect.CONTINUE, Effect.JUMP, Effect.UNKNOWN):
                    return

    def _quick_for(self, packet: Packet) -> "_Quick":
        if self._quick is None or self._quick.packet is not packet:
            self._quick = _Quick(packet)
        return self._quick


def hindrance(rule: Rule, before: Sequence[str]) -> Hindrance | None:
    """Return the first line before a rule that keeps traffic from reaching it, preferably one that certainly does.

    For ACCEPT that is a line that drops. NOTRACK is hindered by any that ends the way through the chain, and by CT:
    of a packet's connection tracking, the first target decides.
    """
    packet, is_accept = Packet.of(rule), rule.match[-1] == "ACCEPT"
    quick = _Quick(packet)
    uncertain: Hindrance | None = None
    for line in before:
        if quick.never(line) or (uncertain and quick.never_all(line)):
            continue
        for each in _judged(read := _taken_apart(line), packet):
            passes = each.effect is Effect.ACCEPT if is_accept else False
            if each.effect is Effect.CONTINUE and (is_accept or read.target != "CT"):
                continue
            is_end = each.effect in (Effect.DROP, Effect.ACCEPT) or read.target == "CT"
            if each.matches is Matches.ALL and is_end and not passes:
                return Hindrance(line, certain=True)
            if not passes:
                uncertain = uncertain or Hindrance(line, certain=False)  # the first is enough
            if each.matches is Matches.ALL and each.effect not in (Effect.JUMP, Effect.UNKNOWN, Effect.CONTINUE):
                return uncertain
    return uncertain


class _Quick:
    """Recognizes, without taking them apart, most of the rules that do not matter for a packet."""

    def __init__(self, packet: Packet) -> None:
        self.packet = packet
        ends = {"-s": packet.source, "-d": packet.destination}
        self._known = [
            (f" {option} ", f"{ip}/{ip.max_prefixlen}", f"/{ip.max_prefixlen}") for option, ip in ends.items() if ip
        ]
        links = {"-i": packet.came_in, "-o": packet.goes_out}
        self._unknown = [f" {option} " for option, value in {**ends, **links}.items() if value is None]

    def never(self, line: str) -> bool:
        """Whether a rule is for another address."""
        for option, address, length in self._known:
            before, found, rest = line.partition(option)
            if not found or before.endswith(" !") or '"' in before:
                continue
            network = rest.split(" ", 1)[0]
            if network != address and network.endswith(length):
                return True
        return False

    def never_all(self, line: str) -> bool:
        """Whether a rule has a condition that cannot match every packet, as nothing is known about it."""
        # A network that holds every address is not printed as a condition (iptables/xshared.c, print_rule4).
        return '"' not in line and any(option in line for option in self._unknown)


def _target(line: str) -> str:
    """Return the target of a rule without quotes, without taking it apart."""
    return line.rpartition(" -j ")[2].partition(" ")[0]


def _judged(read: _Read, packet: Packet) -> Sequence[Judgement]:
    """Return what a rule does to a packet."""
    if not read.target:
        return _NOTHING
    matches = together(holds(each, packet) for each in read.conditions)
    if matches is Matches.NOTHING:
        return _NOTHING
    effect = _EFFECTS.get(read.target)
    if read.target in _MARKING:
        change = _MARKING[read.target](read.options)
        return (Judgement(matches, Effect.CONTINUE, read.target, change),)
    if effect is None:
        effect = Effect.GOTO if read.goes else Effect.JUMP
    return (Judgement(matches, effect, read.target),)


def _taken_apart(line: str) -> _Read:
    """Return the parts of a rule, or of a chain's policy."""
    try:
        # There can be very many rules. Most have no quotes but those of a comment, and then this is ten times as quick.
        plain = _COMMENT.sub("--comment x", line)
        # Only a space parts words; str.split() would do so at characters that the name of a chain may hold.
        words = shlex.split(plain) if set("\"'\\") & set(plain) else list(filter(None, plain.split(" ")))
    except ValueError:  # a quote in a comment that is not closed: too odd to be judged
        return _Read([Condition("", "unreadable", (), is_negated=False)], "unreadable", goes=False, options=())
    if words[0] == "-P":  # a chain's policy: for all that comes to its end
        return _Read((), words[2], goes=False, options=())
    conditions: list[Condition] = []
    module, is_negated, at = "", False, 2  # behind `-A CHAIN`
    while at < len(words):
        option = words[at]
        at += 1
        if option in ("-j", "-g"):
            # Both names of one target, which iptables prints by its release.
            is_notrack = words[at:] == ["CT", "--notrack"]
            return _Read(conditions, "NOTRACK" if is_notrack else words[at], option == "-g", words[at + 1 :])
        if option == "!":
            is_negated = True
            continue
        begin = at
        while at < len(words) and (not words[at].startswith(("-", "!")) or (at == begin and option == "--comment")):
            at += 1
        values = tuple(words[begin:at])
        if option == "-m" and values:
            module = values[0]
        if option == "--invert":  # of the match as a whole
            at_match = max(number for number, each in enumerate(conditions) if each.option == "-m")
            conditions[at_match] = conditions[at_match]._replace(is_negated=True)
            continue
        if option.startswith("--limit-iface"):  # then only an address of that interface is local
            conditions = [each._replace(option=option) if "-type" in each.option else each for each in conditions]
        # Behind --ctstate, other options fit what has no connection, whatever they say (net/netfilter/xt_conntrack.c).
        is_idle = option != "--ctstate" and any(each[:2] == ("conntrack", "--ctstate") for each in conditions)
        conditions.append(Condition("" if is_idle and module == "conntrack" else module, option, values, is_negated))
        is_negated = False
    return _Read(conditions, "", goes=False, options=())


def _marked(options: Sequence[str]) -> "partial[Packet]":
    """Return what MARK changes; iptables prints all its options as --set-xmark VALUE/MASK."""
    return partial(_with_mark, bits=_bits(options, "--set-xmark"))


def _connmarked(options: Sequence[str]) -> "partial[Packet]":
    """Return what CONNMARK changes: only --restore-mark does; the mark of a new connection is 0."""
    if "--restore-mark" not in options:
        return partial(_with_mark, bits=(0, 0))
    mask = dict(pairwise(options)).get("--nfmask", _ALL_BITS)
    return partial(_with_mark, bits=(0, int(mask, 0)), if_tracked=True)


def _bits(options: Sequence[str], option: str) -> tuple[int, int] | None:
    value, _, mask = dict(pairwise(options)).get(option, "").partition("/")
    try:
        return int(value, 0), int(mask or _ALL_BITS, 0)
    except ValueError:
        return None


def _with_mark(packet: Packet, *, bits: tuple[int, int] | None, if_tracked: bool = False) -> Packet:
    """Return a packet with these bits of its mark set as the kernel does: (mark & ~mask) ^ value."""
    if bits is None or (packet.mark is None and bits[1] != int(_ALL_BITS, 0)):
        return packet if bits == (0, 0) else packet.changed(mark=None)
    if if_tracked and packet.state == UNTRACKED:
        return packet
    return packet.changed(mark=((packet.mark or 0) & ~bits[1]) ^ bits[0])


def _with_state(packet: Packet, *, state: str) -> Packet:
    """Return a packet to which CT has been applied: the first time decides (net/netfilter/xt_CT.c)."""
    return packet.changed(state=packet.state or state)


_MARKING: Final[Mapping[str, Callable[[Sequence[str]], Callable[[Packet], Packet]]]] = {
    "MARK": _marked,
    "CONNMARK": _connmarked,
    "NOTRACK": lambda _: partial(_with_state, state=UNTRACKED),
    "CT": lambda _: partial(_with_state, state=TRACKED),
}
