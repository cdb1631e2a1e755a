"""Decides whether a condition of nft matches a packet, and what a map has for it; asks for elements of named sets."""

import contextlib
from collections.abc import Mapping, Sequence
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
    """Whether a named set or map has an element; `nft get element` answers it."""

    family: str  # as nft names it
    table: str
    name: str
    element: str  # as nft spells it: `10.244.0.5 . tcp . 443`


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether there is such an element, and what a map has for it: a verdict or a value, as in nft's JSON."""

    is_there: bool
    data: Json = None


@dataclass(slots=True)
class Elements:
    """What is known of elements that a terse listing leaves out, and what has to be asked."""

    answers: dict[Question, Answer] = field(default_factory=dict)
    questions: set[Question] = field(default_factory=set)  # those without an answer that a judgement depended on

    def ask(self, question: Question) -> Answer | None:
        """Return the answer; None, and note the question, if there is none yet."""
        answer = self.answers.get(question)
        if answer is None:
            self.questions.add(question)
        return answer


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
        elements = self._known(reference)
        if elements is None:
            answer = self._asked(reference, key)
            return None if answer is None else answer.is_there
        found = {_is_element(each, key) for each in elements}
        return True if True in found else None if None in found else False

    def data(self, reference: Json, key: Sequence[Value]) -> list[tuple[Matches, Json]] | None:
        """Return what a map may have for a key; if it has something for certain, the last one matches ALL.

        None: nothing is known.
        """
        elements = self._known(reference)
        if elements is None:
            answer = self._asked(reference, key)
            if answer is None:
                return None
            return [(Matches.ALL, answer.data)] if answer.is_there else []
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

    def _known(self, reference: Json) -> Sequence[Json] | None:
        """Return the elements of a set, as far as they are listed."""
        match reference:
            case {"set": list(elements)} | list(elements):
                return elements
            case {"set": element}:
                return [element]
            case str() if reference.startswith("@"):
                found: Sequence[Json] | None = self._listed[reference[1:]].get("elem")
                return found
            case _:
                raise ValueError

    def _asked(self, reference: str, key: Sequence[Value]) -> Answer | None:
        name = reference[1:]
        parts = [None if each.data is None else each.kind.spelled(each.data) for each in key]
        if None in parts:
            return None
        answer = self._elements.ask(Question(self._family, self._table, name, " . ".join(filter(None, parts))))
        if answer and not answer.is_there:
            return self._elements.ask(Question(self._family, self._table, name, CATCHALL))
        return answer


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
            found = {_is_value(part, value) for part, value in zip(parts, key, strict=True)}
            return False if False in found else None if None in found else True
        case _:
            return None


def _is_value(literal: Json, value: Value) -> bool | None:  # noqa: PLR0911 - one for each form of a literal
    """Whether a value is in a literal, a range or a network."""
    if value.data is None:
        return None
    with contextlib.suppress(*MALFORMED):
        match literal:
            case {"range": [first, last]}:
                return value.number is not None and (
                    value.kind.number(first) <= value.number <= value.kind.number(last)
                )
            case {"prefix": {"addr": network, "len": int(length)}}:
                shift = value.kind.bits - length
                return value.number is not None and value.number >> shift == value.kind.number(network) >> shift
            case {"set": list(elements)}:
                found = {_is_value(_plain(each), value) for each in elements}
                return True if True in found else None if None in found else False
            case str() if value.kind.is_text:
                return _is_name(literal, str(value.data))
            case 0 | "0" if value.kind.is_text:  # no interface at all
                return value.data == ""
            case int() if value.kind.is_text:  # an interface that is gone, else nft prints its name
                return False
            case _:
                return value.data == value.kind.value(literal)
    return None


def _is_name(pattern: str, name: str) -> bool:
    if pattern.endswith("*") and not pattern.endswith("\\*"):
        return name.startswith(pattern[:-1])
    return name == pattern.replace("\\*", "*")
