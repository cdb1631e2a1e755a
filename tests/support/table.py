"""Figures as a table in Markdown, for the scripts that measure."""

from collections.abc import Sequence
from typing import TypeAlias

Row: TypeAlias = dict[str, str | float]


def table(rows: Sequence[Row]) -> str:
    """Return rows as a table in Markdown."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([shown(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(names))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    return "\n".join((lines[0], "|" + "---|" * len(names), *lines[1:]))


def shown(value: str | float) -> str:
    if isinstance(value, float):
        return f"{value:.1f}" if value >= 1 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else value
