"""Text from outside, made fit to stand in one line: of the log, or of an error."""


def visible(text: str) -> str:
    """Return the text with everything that is not printable escaped, so that no line can be forged by it."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def quoted(text: str, longest: int = 60) -> str:
    """Return a value that somebody typed, visible and cut to a bounded length."""
    shown = visible(text[: longest + 1])
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"
