"""Parses what the user typed: a command word, and the values of its flags, without knowing what they mean."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sidecar.settings import command_line
from sidecar.settings.options import FLAGS
from sidecar.settings.values import BOOLEANS
from sidecar.text import nearest, quoted

#: The command words; the first is the default.
COMMANDS: Final = ("run", "status", "plan", "cleanup", "doctor", "version", "help")

_ASIDE: Final = ("help", "h", "version")

_WORDS_OF_A_BOOLEAN: Final = {*map(str.lower, BOOLEANS), "yes", "no", "auto"}

#: Text that looks like an address rather than a word.
_ADDRESS: Final = re.compile(r"[0-9.,]+|[0-9a-fA-F:.,]*:[0-9a-fA-F:.,]*")


@dataclass(frozen=True, slots=True)
class Invocation:
    """A command, and the values of each flag on the command line, in order; `faults` says what is wrong with it.

    An unknown command becomes "unknown"; `faults` names it.
    """

    command: str
    values: dict[str, list[str]]
    faults: list[str]


def parse(argv: Sequence[str]) -> Invocation:
    """Parse the arguments of this program (without its own name)."""
    booleans = [*_ASIDE, *(flag.name for flag in FLAGS.values() if flag.is_boolean)]
    line = command_line.parse(argv, flags=[*FLAGS, *_ASIDE], booleans=booleans)
    command, *rest = line.words or COMMANDS[:1]
    asked = {name for name in _ASIDE if BOOLEANS.get(line.values.pop(name, ["false"])[-1], True)}
    if command == "help" or asked & {"help", "h"}:
        return Invocation("help", {}, [])
    if command in COMMANDS:
        return Invocation("version" if asked else command, line.values, [*line.faults, *map(_unexpected, rest)])
    if _hint(command):  # a value that lost its flag
        return Invocation("run", line.values, [*line.faults, *map(_unexpected, line.words)])
    fault = f"unknown command {quoted(command)}: it is one of {', '.join(COMMANDS)}{nearest(command, COMMANDS)}"
    return Invocation("unknown", line.values, [*line.faults, fault, *map(_unexpected, rest)])


def _unexpected(word: str) -> str:
    return f"unexpected word {quoted(word)}{_hint(word)}"


def _hint(word: str) -> str:
    """Return a hint at what the user may have meant by a word."""
    if word.lower() in _WORDS_OF_A_BOOLEAN:
        return "; a boolean takes its value with =, like --cleanup=false"
    if _ADDRESS.fullmatch(word):
        return "; several addresses are separated by commas: --ip-address=10.96.0.2,10.96.0.3"
    return ""
