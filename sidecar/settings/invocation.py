"""Parses what the user typed: a command word, and the values of its flags, without knowing what they mean."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from sidecar.settings import command_line
from sidecar.settings.options import FLAGS, ON_A_NODE, SHORT
from sidecar.settings.values import BOOLEANS
from sidecar.text import nearest, quoted

#: The command words; the first is the default.
COMMANDS: Final = (*ON_A_NODE, "version", "completion", "help")

SHELLS: Final = ("bash", "zsh", "fish")

#: Words that other programs have for a command.
_SYNONYMS: Final = {
    "start": "run",
    "apply": "run",
    "show": "status",
    "list": "status",
    "get": "status",
    "diff": "plan",
    "check": "doctor",
    "diagnose": "doctor",
    "debug": "doctor",
    "remove": "cleanup",
    "delete": "cleanup",
    "uninstall": "cleanup",
}

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
    topic: str = ""  # the command that help is asked for, or the shell that completion is for


def parse(argv: Sequence[str]) -> Invocation:
    """Parse the arguments of this program (without its own name)."""
    booleans = [*_ASIDE, *(flag.name for flag in FLAGS.values() if flag.is_boolean)]
    line = command_line.parse(argv, flags=[*FLAGS, *_ASIDE], booleans=booleans, short=SHORT)
    asked = {name for name in _ASIDE if BOOLEANS.get(line.values.pop(name, ["false"])[-1], True)}
    words = line.words[line.words[:1] == ["help"] :]
    if asked & {"help", "h"} or len(words) < len(line.words):
        return _help(words)
    command, *rest = words or (["version"] if "version" in asked else COMMANDS[:1])
    if command not in COMMANDS and _hint(command):  # a value that lost its flag
        command, rest = "run", words
    elif command not in COMMANDS:
        return Invocation("unknown", line.values, [*line.faults, _unknown(command)])
    command = "version" if asked else command
    topic = rest.pop(0) if command == "completion" and rest and rest[0] in SHELLS else ""
    faults = [*line.faults, *_misplaced(command, line.values), *map(_unexpected, rest)]
    if command == "completion" and not topic:
        faults.append(f"completion needs the name of a shell: one of {', '.join(SHELLS)}")
    return Invocation(command, line.values, faults, topic)


def _help(words: Sequence[str]) -> Invocation:
    """Return the request for the help on a command, or for that on all; it has no faults but an unknown word."""
    topic = words[0] if words else ""
    if topic in COMMANDS:
        return Invocation("help", {}, [], topic)
    return Invocation("help", {}, [] if not topic or _hint(topic) else [_unknown(topic)])


def _unknown(command: str) -> str:
    meant = _SYNONYMS.get(command.lower())
    hint = f"; did you mean {meant}?" if meant else nearest(command, COMMANDS)
    return f"unknown command {quoted(command)}: it is one of {', '.join(COMMANDS)}{hint}"


def _misplaced(command: str, names: Collection[str]) -> Iterator[str]:
    """Yield a line for each flag that the command has no use for."""
    for name in names:
        commands = [f"`{each}`" for each in FLAGS[name].commands]
        if f"`{command}`" not in commands:
            where = " and ".join(filter(None, (", ".join(commands[:-1]), commands[-1])))
            hint = "; `plan` shows what `run` would do" if (command, name) == ("run", "dry-run") else ""
            yield f"{FLAGS[name].spelled} works only with {where}{hint}"


def _unexpected(word: str) -> str:
    return f"unexpected word {quoted(word)}{_hint(word)}"


def _hint(word: str) -> str:
    """Return a hint at what the user may have meant by a word."""
    if word.lower() in _WORDS_OF_A_BOOLEAN:
        return "; a boolean takes its value with =, like --cleanup=false"
    if _ADDRESS.fullmatch(word):
        return "; several addresses are separated by commas: --ip-address=10.96.0.2,10.96.0.3"
    return ""
