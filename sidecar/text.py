"""Text for people: values from outside made fit to stand in one line, and what a typo was perhaps meant to be."""

import difflib
from collections.abc import Collection


def visible(text: str) -> str:
    """Return the text with everything that is not printable escaped, so that no line can be forged by it."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def quoted(text: str, longest: int = 60) -> str:
    """Return a value that somebody typed, visible and cut to a bounded length."""
    shown = visible(text[: longest + 1])
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def nearest(name: str, known: Collection[str], prefix: str = "") -> str:
    """Return `; did you mean --x?` for the known name that looks most like this one, or nothing."""
    match = difflib.get_close_matches(name[:100], known, n=1)
    return f"; did you mean {prefix}{match[0]}?" if match else ""
