import os
import pty
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from sidecar.commands.output import Terminal


@pytest.fixture
def terminal() -> Iterator[TextIO]:
    """A real terminal, without a size."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours), os.fdopen(theirs, "w") as stream:
        yield stream


def of(stream: TextIO, **environment: str) -> Terminal:
    return Terminal.of(stream, {"TERM": "xterm", **environment}, lambda: True)


@pytest.mark.parametrize(("columns", "width"), [(0, 100), (20, 60), (60, 60), (80, 80), (100, 100), (300, 100)])
def test_the_width_is_that_of_the_terminal_within_limits(terminal: TextIO, columns: int, width: int) -> None:
    termios.tcsetwinsize(terminal, (24, columns))
    assert of(terminal).width == width


def test_a_file_is_wide_and_plain(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as stream:
        found = of(stream)
    assert (found.width, found.is_tty, found.is_coloured) == (100, False, False)


def test_colour_is_for_terminals_that_know_it(terminal: TextIO) -> None:
    assert (of(terminal).is_tty, of(terminal).is_coloured) == (True, True)
    assert (of(terminal, NO_COLOR="").is_tty, of(terminal, NO_COLOR="").is_coloured) == (True, False)
    dumb = of(terminal, TERM="dumb")
    assert (dumb.is_tty, dumb.is_coloured) == (False, False)
