"""Decides what a rule of nft does to a packet, statement by statement."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from sidecar.firewall.nft_conditions import Sets, holds, key_of
from sidecar.firewall.nft_values import MALFORMED, Json, mark
from sidecar.firewall.packet import TRACKED, UNTRACKED, Packet
from sidecar.firewall.verdicts import Effect, Judgement, Matches, together

#: Statements that do nothing to a packet's way; a policy, which is followed by its verdict.
_IDLE: Final = frozenset(
    ("counter", "log", "last", "secmark", "ct helper", "ct timeout", "ct expectation", "dup", "flow", "map", "policy")
)
#: Statements that end a rule.
_EFFECTS: Final = {
    "continue": Effect.CONTINUE,
    "accept": Effect.ACCEPT,
    "drop": Effect.DROP,
    "reject": Effect.DROP,
    "return": Effect.RETURN,
    "jump": Effect.JUMP,
    "goto": Effect.GOTO,
    "queue": Effect.UNKNOWN,  # it goes to a program
    "synproxy": Effect.UNKNOWN,
    "fwd": Effect.TAKE,  # it leaves by another device
    "dnat": Effect.TAKE,
    "redirect": Effect.TAKE,
    "tproxy": Effect.TAKE,
    "snat": Effect.ACCEPT,  # which ends a chain of type nat (net/netfilter/nft_nat.c)
    "masquerade": Effect.ACCEPT,
}
#: Targets of iptables that a rule of iptables-nft may have, whose options nft does not list.
_XT_TARGETS: Final = {
    "REJECT": "reject",
    "DNAT": "dnat",
    "REDIRECT": "redirect",
    "TPROXY": "tproxy",
    "LOG": "log",
    "NFLOG": "log",
}
_XT_MARKS: Final = ("MARK", "CONNMARK")

#: What `mangle` may set of a payload, by which the packet becomes another one.
_IDENTITY: Final = frozenset(("saddr", "daddr", "sport", "dport"))


class Judge:
    """Follows one packet through the statements of one rule."""

    def __init__(self, packet: Packet, sets: Sets) -> None:
        self._begun = packet
        self._sets = sets
        self._packet = packet  # as the statements leave it, if all of them are carried out
        self._certain = packet  # as those leave it that are certainly carried out
        self._matches = Matches.ALL  # whether the statements so far let it go on
        self._is_understood = True

    def judge(self, statements: Sequence[Json]) -> Sequence[Judgement] | None:
        """Return what the rule does; None if nothing."""
        verdicts: Sequence[Judgement] | None = None
        for each in statements:
            try:
                verdicts = self._statement(each)
            except MALFORMED:
                self._not_understood()
            if verdicts is not None or self._matches is Matches.NOTHING:
                break
        else:
            verdicts = [] if self._is_understood else [Judgement(Matches.PERHAPS, Effect.UNKNOWN)]
        verdicts = [each for each in verdicts or () if each.effect is not Effect.CONTINUE]
        if self._packet == self._begun:
            return verdicts or None
        found = [replace(each, change=_becomes(self._packet)) for each in verdicts]
        if not any(each.matches is Matches.ALL for each in verdicts):
            found.append(Judgement(Matches.ALL, Effect.CONTINUE, change=_becomes(self._certain, self._packet)))
        return found

    def _statement(self, statement: Json) -> Sequence[Judgement] | None:  # noqa: C901 - a case for each
        """Carry out a statement; return what becomes of the packet if it ends the rule."""
        name: str = statement if isinstance(statement, str) else next(iter(statement))
        value: Json = None if isinstance(statement, str) else statement[name]
        if name == "xt" and value["type"] == "target" and value["name"] not in _XT_MARKS:
            name = _XT_TARGETS.get(value["name"], "queue")
        if name in _IDLE:
            return None
        if name in _EFFECTS:
            return [_judgement(self._matches, name, value)]
        match name, value:
            case "vmap", {"key": key, "data": data}:
                return self._vmap(key, data)
            case "mangle", {"key": {"meta": {"key": "mark"}}, "value": made}:
                self._becomes(replace(self._packet, mark=mark(made, self._packet)))
            case "mangle", {"key": {"payload": {"field": field}}} if field in _IDENTITY:
                return [Judgement(self._matches, Effect.TAKE, field)]
            case "mangle", {"key": {"ct": {"key": "zone"}}}:  # so our NOTRACK rules come too late
                self._becomes(replace(self._packet, state=self._packet.state or TRACKED))
            case "mangle", {"key": dict()}:
                pass
            case "xt", {"type": "target"}:
                self._becomes(replace(self._packet, mark=None))
            case "xt", {"type": "match", "name": "comment"}:
                pass
            case "notrack", _:
                # It has no effect once connection tracking has seen the packet (net/netfilter/nft_ct.c).
                self._becomes(replace(self._packet, state=self._packet.state or UNTRACKED))
            case _:
                self._condition(name, value)
        return None

    def _condition(self, name: str, value: Json) -> None:
        match name, value:
            case "match", _:
                self._only_if(holds(value, self._packet, self._sets))
            case "set", {"op": "add" | "update", "elem": {"elem": {"val": key}} | key}:
                is_there = key_of(key, self._packet) is not None
                is_limit = any("counter" not in each for each in value.get("stmt", ()))
                self._only_if(Matches.NOTHING if not is_there else Matches.PERHAPS if is_limit else Matches.ALL)
            case (("limit" | "quota" | "ct count" | "meter" | "set" | "xt"), _):
                self._only_if(Matches.PERHAPS)
            case _:
                self._not_understood()

    def _only_if(self, matches: Matches) -> None:
        self._matches = together((self._matches, matches))

    def _not_understood(self) -> None:
        self._is_understood = False
        self._packet = replace(self._packet, mark=None)
        self._only_if(Matches.PERHAPS)

    def _becomes(self, packet: Packet) -> None:
        self._packet = packet
        if self._matches is Matches.ALL:
            self._certain = packet

    def _vmap(self, expression: Json, data: Json) -> Sequence[Judgement]:
        key = key_of(expression, self._packet)
        if key is None:
            self._only_if(Matches.NOTHING)
            return []
        found = self._sets.data(data, key)
        if found is None:
            return [Judgement(Matches.PERHAPS, Effect.UNKNOWN)]
        if found and len(found) == _choices(expression):  # each of them perhaps, one of them for certain
            found[-1] = Matches.ALL, found[-1][1]
        return [_judgement(together((self._matches, each)), *next(iter(verdict.items()))) for each, verdict in found]


def _becomes(one: Packet, other: Packet | None = None) -> Callable[[Packet], Packet]:
    """Return the change after which a packet is marked and tracked as one of these, whichever it is."""
    mark = one.mark if other is None or other.mark == one.mark else None
    state = one.state if other is None or other.state == one.state else None
    return lambda packet: replace(packet, mark=mark, state=state)


def _judgement(matches: Matches, name: str, value: Json) -> Judgement:
    effect = _EFFECTS[name]
    return Judgement(matches, effect, value["target"] if effect in (Effect.JUMP, Effect.GOTO) else name)


def _choices(key: Json) -> int | None:
    """Return how many values a key has that is chosen by chance or by a hash."""
    match key:
        case {"numgen": {"mod": int(number)}} | {"jhash": {"mod": int(number)}} | {"symhash": {"mod": int(number)}}:
            return number
        case _:
            return None
