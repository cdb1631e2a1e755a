"""Helpers that several commands print with: width, colour, wrapping, JSON, and the terminal."""

import json
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from sidecar.text import visible

WIDTH: Final = 100  # columns per line

GREEN, YELLOW, RED, MAGENTA = "32", "33", "31", "35"

#: What a command prints, and its exit code.
Answer: TypeAlias = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Terminal:
    """The terminal, file or pipe that the answer is printed to."""

    is_tty: bool
    is_coloured: bool
    encoding: str
    is_read: Callable[[], bool]  # returns whether anybody still reads the output


def wrapped(text: str, indent: int = 2, *, breaks_words: bool = True) -> list[str]:
    """Return the text, escaped, in lines of at most WIDTH columns; all but the first are indented."""
    return textwrap.wrap(
        visible(text), WIDTH, subsequent_indent=" " * indent, break_long_words=breaks_words, break_on_hyphens=False
    )


def coloured(text: str, colour: str, columns: int) -> str:
    """Return the text with its first columns in a colour (man 4 console_codes)."""
    return f"\x1b[{colour}m{text[:columns]}\x1b[0m{text[columns:]}"


def notes(warnings: Sequence[str], errors: Sequence[str]) -> list[str]:
    """Return one or more lines for each warning and each error."""
    texts = [*(f"warning: {text}" for text in warnings), *(f"error: {text}" for text in errors)]
    return [line for text in texts for line in wrapped(text)]


def as_json(value: dict[str, object], indent: int | None = None) -> str:
    """Return the object as JSON, in ASCII whatever the terminal's encoding."""
    return json.dumps(value, indent=indent)
