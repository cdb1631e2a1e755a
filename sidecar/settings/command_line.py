"""Parses a command line by the grammar of Go's pflag (https://pkg.go.dev/github.com/spf13/pflag).

`--name=value` and `--name value`; a boolean is `--name` or `--name=value`, never two words; `-v2`, `-v 2`, `-v=2`
for a flag of one letter; `--` ends the flags. Flags and words may be mixed. `-` and `_` in a name are equal, as in the
programs of Kubernetes (component-base, WordSepNormalizeFunc). This module does not know what the values mean.
"""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from sidecar.text import nearest, quoted


@dataclass(slots=True)
class CommandLine:
    """A parsed command line; `values` holds each flag's values in the order of the command line."""

    words: list[str] = field(default_factory=list)
    values: dict[str, list[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def parse(
    argv: Sequence[str], *, flags: Collection[str], booleans: Collection[str], short: Mapping[str, str]
) -> CommandLine:
    """Parse a command line; `flags` are all known names, `booleans` those among them that need no value.

    `short` has the names of flags by the letter that stands for them.
    """
    line = CommandLine()
    known = {_normal(name): name for name in flags}
    rest = deque(argv)
    while rest:
        argument = rest.popleft()
        if argument == "--":
            line.words += rest
            break
        if not argument.startswith("-") or argument == "-":
            line.words.append(argument)
        else:
            _flag(_in_full(argument, known, short), rest, line, known, booleans)
    return line


def _in_full(argument: str, known: Collection[str], short: Mapping[str, str]) -> str:
    """Return -ojson as --output=json; leave -output=json, a typo, as it is."""
    letter, value = argument[1], argument[2:]
    if letter not in short or _normal(argument[1:].partition("=")[0]) in known:
        return argument
    return f"--{short[letter]}={value.removeprefix('=')}" if value else f"--{short[letter]}"


def _flag(argument: str, rest: deque[str], line: CommandLine, known: dict[str, str], booleans: Collection[str]) -> None:
    if argument.startswith("--"):
        typed, equals, value = argument[2:].partition("=")
        text = value if equals else None
    else:
        typed = argument[1]
        text = argument[2:].removeprefix("=") if argument[2:] else None
    name = known.get(_normal(typed))
    word = argument.partition("=")[0]
    # To pflag, -vmodule=x is the flag -v with the rest as its value; here it counts as a typo.
    is_slip = not argument.startswith("--") and _normal(word[1:]) != name and _normal(word[1:]) in known
    if name is None or is_slip:
        line.faults.append(f"unknown flag {quoted(word)}{nearest(word.strip('-'), known.values(), '--')}")
        if word == argument and rest and not rest[0].startswith("-"):
            rest.popleft()  # probably its value, not a fault of its own
        return
    if text is None and name in booleans:
        text = "true"
    elif text is None:
        if not rest:
            line.faults.append(f"{'-' if len(name) == 1 else '--'}{name}: needs a value")
            return
        text = rest.popleft()
    line.values.setdefault(name, []).append(text)


def _normal(name: str) -> str:
    return name.replace("_", "-")
