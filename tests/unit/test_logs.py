import os
import re

import pytest
from loguru import logger

from sidecar import logs

HEADER = re.compile(r"([IWEC])\d{4} \d\d:\d\d:\d\d\.\d{6} {1,7}(\d+) test_logs\.py:\d+\] (.*)")


@pytest.mark.parametrize(("level", "letter"), [("INFO", "I"), ("WARNING", "W"), ("ERROR", "E")])
def test_a_line_has_klogs_header(level: str, letter: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup()
    logger.log(level, "added {braces} <red>10.96.0.2/32</red> to lo")
    (line,) = capsys.readouterr().err.splitlines()
    match = HEADER.fullmatch(line)
    assert match
    assert match.groups() == (letter, str(os.getpid()), "added {braces} <red>10.96.0.2/32</red> to lo")


def test_no_line_can_be_forged(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup()
    logger.error("said: first\nE1122 00:00:00.000000 1 x.py:1] second \x1b[31m \r \u2028 ü")
    output = capsys.readouterr().err
    assert output.count("\n") == 1
    assert output.rstrip("\n").isprintable()


def test_what_is_printable_is_left_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup()
    logger.info("µ für „Größe“")
    assert "µ für „Größe“" in capsys.readouterr().err
