"""Helpers that several commands print with: width, colour, wrapping, JSON, and the terminal."""

import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO, TypeAlias

from sidecar.text import WIDTH, visible, width

GREEN, YELLOW, RED, MAGENTA = "32", "33", "31", "35"

#: What a command prints, and its exit code.
Answer: TypeAlias = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Terminal:
    """The terminal, file or pipe that the answer is printed to."""

    is_tty: bool
    is_coloured: bool
    encoding: str
    width: int  # columns to fill
    is_read: Callable[[], bool]  # returns whether anybody still reads the output

    @classmethod
    def of(cls, stream: TextIO, environment: Mapping[str, str], is_read: Callable[[], bool]) -> "Terminal":
        """Return what a stream can show; a terminal that knows no control sequences counts as a file."""
        is_tty = stream.isatty() and environment.get("TERM") != "dumb"
        is_coloured = is_tty and "NO_COLOR" not in environment
        return cls(is_tty, is_coloured, stream.encoding or "ascii", width(stream), is_read)


def wrapped(text: str, indent: int = 2, *, columns: int = WIDTH, breaks_words: bool = True) -> list[str]:
    """Return the text, escaped, in lines of at most so many columns; all but the first are indented."""
    return textwrap.wrap(
        visible(text), columns, subsequent_indent=" " * indent, break_long_words=breaks_words, break_on_hyphens=False
    )


def coloured(text: str, colour: str, columns: int) -> str:
    """Return the text with its first columns in a colour (man 4 console_codes)."""
    return f"\x1b[{colour}m{text[:columns]}\x1b[0m{text[columns:]}"


def notes(warnings: Sequence[str], errors: Sequence[str], columns: int = WIDTH) -> list[str]:
    """Return one or more lines for each warning and each error."""
    texts = [*(f"warning: {text}" for text in warnings), *(f"error: {text}" for text in errors)]
    return [line for text in texts for line in wrapped(text, columns=columns)]


def as_json(value: dict[str, object], indent: int | None = None) -> str:
    """Return the object as JSON, in ASCII whatever the terminal's encoding."""
    return json.dumps(value, indent=indent)
