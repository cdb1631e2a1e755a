"""Decides whether a condition of nft matches a packet, and what a map has for it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from sidecar.firewall.nft_values import MALFORMED, Json, Value, evaluate
from sidecar.firewall.packet import Packet
from sidecar.firewall.verdicts import Matches, certainly

#: The element that stands for all keys that have none (man nft, catchall).
CATCHALL: Final = "*"

#: Never so: a packet that gets another destination is not followed any further.
_HAS_OTHER_DESTINATION: Final = {"op": "in", "left": {"ct": {"key": "status"}}, "right": "dnat"}


@dataclass(frozen=True, slots=True)
class Question:
    """Which elements a named set or map has; `nft list set` or `nft list map` answers it.

    `nft get element` would not be quicker: it reads the elements of every set, too (nftables' src/cache.c).
    """

    family: str  # as nft names it
    table: str
    kind: str  # set or map
    name: str


@dataclass(slots=True)
class Elements:
    """The elements of sets and maps that a terse listing leaves out, as far as they are known."""

    answers: dict[Question, Sequence[Json] | None] = field(default_factory=dict)  # None: they could not be read
    questions: set[Question] = field(default_factory=set)  # those without an answer that a judgement depended on

    def ask(self, question: Question) -> Sequence[Json] | None:
        """Return the elements, as in nft's JSON; None if they are not known. Without an answer, note the question."""
        if question not in self.answers:
            self.questions.add(question)
        return self.answers.get(question)


class Sets:
    """The named sets and maps of a table."""

    def __init__(self, family: str, table: str, listed: Mapping[str, Json], elements: Elements) -> None:
        """Take sets and maps as in nft's JSON; a terse listing has none of their elements."""
        self._family = family
        self._table = table
        self._listed = listed
        self._elements = elements

    def has(self, reference: Json, key: Sequence[Value]) -> bool | None:
        """Whether a set, named or not, has an element for a key; None: that is not known."""
        elements = self._elements_of(reference, key)
        return None if elements is None else _any(_is_element(each, key) for each in elements)

    def data(self, reference: Json, key: Sequence[Value]) -> list[tuple[Matches, Json]] | None:
        """Return what a map may have for a key; if it has something for certain, the last one matches ALL.

        None: nothing is known.
        """
        elements = self._elements_of(reference, key)
        if elements is None:
            return None
        perhaps: list[tuple[Matches, Json]] = []
        catchall: list[tuple[Matches, Json]] = []
        for each, data in elements:
            if _plain(each) == CATCHALL:
                catchall = [(Matches.ALL, data)]
            elif (is_it := _is_element(each, key)) is True:
                return [(Matches.ALL, data)]
            elif is_it is None:
                perhaps.append((Matches.PERHAPS, data))
        return perhaps + catchall

    def _elements_of(self, reference: Json, key: Sequence[Value]) -> Sequence[Json] | None:
        """Return the elements of a set; None if they are not known, or if nothing of the key is."""
        match reference:
            case {"set": list(elements)} | list(elements):
                return elements
            case {"set": element}:
                return [element]
            case str() if reference.startswith("@"):
                name = reference[1:]
                listed: Sequence[Json] | None = self._listed[name].get("elem")
                if listed is not None or all(each.data is None for each in key):
                    return listed
                kind = "map" if "map" in self._listed[name] else "set"
                return self._elements.ask(Question(self._family, self._table, kind, name))
            case _:
                raise ValueError


def holds(match: Json, packet: Packet, sets: Sets) -> Matches:  # noqa: PLR0911 - one for each operator
    """Return whether a match, as nft's JSON has it, holds for a packet. Raises ValueError for a malformed one."""
    if match == _HAS_OTHER_DESTINATION:
        return Matches.NOTHING
    key = key_of(match["left"], packet)
    if key is None:
        return Matches.NOTHING
    operator, right = match.get("op", "=="), match["right"]
    match operator:
        case "==":
            return certainly(_equals(right, key, sets))
        case "!=":
            answer = _equals(right, key, sets)
            return certainly(None if answer is None else not answer)
        case "in" | "!" if not _is_set(right):  # any of these flags, or none
            (value,) = key
            if value.number is None:
                return Matches.PERHAPS
            return certainly(bool(value.number & value.kind.number(right)) is (operator == "in"))
        case "in":
            return certainly(_equals(right, key, sets))
        case "<" | ">" | "<=" | ">=":
            (value,) = key
            return certainly(_is_ordered(operator, value, right))
        case _:
            return Matches.PERHAPS


def key_of(expression: Json, packet: Packet) -> list[Value] | None:
    """Return the parts of a key; None if the packet does not have one of them."""
    match expression:
        case {"concat": list(parts)}:
            key = [evaluate(each, packet) for each in parts]
        case _:
            key = [evaluate(expression, packet)]
    return key if all(each.applies for each in key) else None


def _is_set(right: Json) -> bool:
    return (isinstance(right, dict) and "set" in right) or (isinstance(right, str) and right.startswith("@"))


def _equals(right: Json, key: Sequence[Value], sets: Sets) -> bool | None:
    return sets.has(right, key) if _is_set(right) else _is_element(right, key)


def _is_ordered(operator: str, value: Value, right: Json) -> bool | None:
    number, bound = value.number, value.kind.number(right)
    if number is None:
        return None
    return {"<": number < bound, ">": number > bound, "<=": number <= bound, ">=": number >= bound}[operator]


def _plain(element: Json) -> Json:
    """Return the key of an element, without its timeout, counter or comment."""
    match element:
        case {"elem": {"val": key}}:
            return key
        case _:
            return element


def _is_element(element: Json, key: Sequence[Value]) -> bool | None:
    """Whether an element, or a literal, is for a key."""
    plain = _plain(element)
    if plain == CATCHALL:
        return True
    if len(key) == 1:
        return _is_value(plain, key[0])
    match plain:
        case {"concat": list(parts)} if len(parts) == len(key):
            found = [_is_value(part, value) for part, value in zip(parts, key, strict=True)]
            return False if False in found else None if None in found else True
        case _:
            return None


def _is_value(literal: Json, value: Value) -> bool | None:  # noqa: PLR0911 - one for each form of a literal
    """Whether a value is in a literal, a range or a network."""
    if value.data is None:
        return None
    try:
        match literal:
            case {"range": [first, last]}:
                return value.number is not None and (
                    value.kind.number(first) <= value.number <= value.kind.number(last)
                )
            case {"prefix": {"addr": network, "len": int(length)}}:
                shift = value.kind.bits - length
                return value.number is not None and value.number >> shift == value.kind.number(network) >> shift
            case {"set": list(elements)}:
                return _any(_is_value(_plain(each), value) for each in elements)
            case 0 | "0" if value.kind.is_text:  # an index: no interface at all
                return value.data == ""
            case int() if value.kind.is_text:  # of an interface that is gone, else nft prints its name
                return False
            case str() if value.kind.is_text:
                return _is_name(literal, str(value.data))
            case _:
                return value.data == value.kind.value(literal)
    except MALFORMED:
        return None


def _any(answers: Iterable[bool | None]) -> bool | None:
    found = set(answers)
    return True if True in found else None if None in found else False


def _is_name(pattern: str, name: str) -> bool:
    if pattern.endswith("*") and not pattern.endswith("\\*"):
        return name.startswith(pattern[:-1])
    return name == pattern.replace("\\*", "*")
