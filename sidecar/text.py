"""Formats text for people: makes values from outside fit for one line, and suggests a name for a typo."""

import difflib
import os
from collections.abc import Collection
from typing import Final, TextIO

WIDTH: Final = 100  # columns per line, at most, and where nobody says how wide the terminal is
_NARROWEST: Final = 60  # columns. In fewer, a rule or a command falls to pieces


def width(stream: TextIO) -> int:
    """Return the number of columns to fill of a stream: those of its terminal, within limits."""
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):  # it is not a terminal, or not even a file, as in tests
        columns = 0
    return max(_NARROWEST, min(columns or WIDTH, WIDTH))  # a terminal without a known size has 0


def visible(text: str) -> str:
    """Return the text with all unprintable characters escaped, so that it cannot forge a line."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def quoted(text: str, longest: int = 60) -> str:
    """Return a value that somebody typed, escaped and cut to a bounded length."""
    shown = visible(text[: longest + 1])
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def nearest(name: str, known: Collection[str], prefix: str = "") -> str:
    """Return `; did you mean --x?` for the known name most like this one, or an empty string."""
    match = difflib.get_close_matches(name[:100], known, n=1)
    return f"; did you mean {prefix}{match[0]}?" if match else ""
