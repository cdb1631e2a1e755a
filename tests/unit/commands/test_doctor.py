import json
import subprocess
from dataclasses import replace

import pytest

from sidecar.commands.doctor import findings_json, findings_text
from sidecar.doctor.findings import Finding, Level, exit_code
from support.findings import finding

FINDINGS = [
    finding(Level.OK, "address", "10.96.0.2/32 on lo, scope host", facts={"address": "10.96.0.2/32"}),
    finding(Level.NOTE, "backend", "a fact"),
    finding(Level.WARNING, "rules", "2 copies"),
    finding(Level.FAULT, "listener", "nothing listens on 10.96.0.2:443", "start the apiserver-proxy"),
    finding(Level.UNKNOWN, "conntrack", "Permission denied"),
]
UNKNOWN_RULES = finding(Level.UNKNOWN, "rules", "no answer")
HUNG = replace(finding(Level.UNKNOWN, "commands", "ip does not answer"), leads=True)
DRIFT = replace(finding(Level.NOTE, "sync", "the sidecar would change something"), is_drift=True)


def text(*findings: Finding, encoding: str = "utf-8", coloured: bool = False, columns: int = 100) -> str:
    return findings_text(findings, is_coloured=coloured, encoding=encoding, columns=columns)


def test_the_most_important_first_and_a_line_for_each() -> None:
    assert text(*FINDINGS).splitlines() == [
        "1 fault, 1 warning, 1 unknown; first: listener: nothing listens on 10.96.0.2:443",
        "✓ address     10.96.0.2/32 on lo, scope host",
        "· backend     a fact",
        "! rules       2 copies",
        "✗ listener    nothing listens on 10.96.0.2:443",
        "    do: start the apiserver-proxy",
        "? conntrack   Permission denied",
    ]


@pytest.mark.parametrize(
    ("findings", "first"),
    [
        ([], "nothing wrong found"),
        (FINDINGS[:2], "nothing wrong found"),
        (FINDINGS[4:], "nothing wrong found in what could be looked at; 1 unknown"),
        (
            [*FINDINGS[4:], UNKNOWN_RULES],
            "nothing wrong found in what could be looked at; 2 unknown; first: rules: no answer",
        ),
        ([FINDINGS[2], FINDINGS[2], UNKNOWN_RULES], "2 warnings, 1 unknown; first: rules: 2 copies"),
        ([*FINDINGS, HUNG], "1 fault, 1 warning, 2 unknown; first: commands: ip does not answer"),
        ([FINDINGS[2], DRIFT], "1 warning, not in sync; first: rules: 2 copies"),
        ([DRIFT], "not in sync"),
    ],
)
def test_the_first_line(findings: list[Finding], first: str) -> None:
    assert text(*findings).splitlines()[0] == first


def test_the_first_line_and_the_exit_code_agree() -> None:
    """Without a fault, what decides is named; with nothing named, it is a success."""
    for findings in ([], FINDINGS[:2], FINDINGS[4:], [*FINDINGS[4:], UNKNOWN_RULES], [DRIFT], FINDINGS):
        first = text(*findings).splitlines()[0]
        assert ("first: " in first or "not in sync" in first) == bool(exit_code(findings))


def test_a_terminal_without_these_letters_gets_others() -> None:
    shown = text(*FINDINGS, encoding="latin-1").splitlines()
    assert [line[0] for line in shown[1:] if not line.startswith("  ")] == ["+", "-", "!", "X", "?"]


def test_colour_takes_nothing_away() -> None:
    shown = text(*FINDINGS, coloured=True)
    assert "\x1b[31m✗\x1b[0m listener" in shown
    for sequence in ("\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[35m", "\x1b[0m"):
        shown = shown.replace(sequence, "")
    assert shown == text(*FINDINGS)


@pytest.mark.parametrize("columns", [60, 100])
def test_long_lines_are_wrapped_with_an_indent(columns: int) -> None:
    shown = text(finding(Level.FAULT, "rules", "word " * 60, "advice " * 60), columns=columns).splitlines()
    assert max(map(len, shown)) <= columns
    assert {line[: line.index("word")] for line in shown if "word" in line} >= {"✗ rules       ", " " * 14}
    assert shown[-1].startswith(" " * 8 + "advice")


@pytest.mark.parametrize("columns", [60, 100])
def test_a_block_of_commands_does_what_each_of_them_does(columns: int) -> None:
    long = "echo " + " ".join(f"word-{number}" for number in range(40))
    quoted = "echo " + "word " * 15 + "'two  words' \"three   more words\" a'b  c'd | cat"
    shown = text(finding(Level.FAULT, "rules", "x", commands=(long, quoted, "echo end")), columns=columns).splitlines()
    assert max(map(len, shown)) <= columns
    block = "\n".join(shown[shown.index(next(line for line in shown if "do: " in line)) :]).replace("do: ", "", 1)
    said = subprocess.run(["sh", "-c", block], capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == [long.removeprefix("echo "), "word " * 15 + "two  words three   more words ab  cd", "end"]


def test_commands_come_before_advice() -> None:
    shown = text(finding(Level.FAULT, "rules", "x", "and keep it so", ("true",))).splitlines()
    assert shown[-2:] == ["    do: true", "  note: and keep it so"]


def test_nothing_from_outside_forges_a_line() -> None:
    forged = finding(Level.NOTE, "lock", "held by a\n✓ lock\x1b[2J", "a\nb", ("c\nd",), {"name": "x\udcff"})
    assert len(text(forged).splitlines()) == 4
    assert "\x1b" not in text(forged)
    shown = json.loads(findings_json([forged]))["findings"][0]
    assert shown["found"] == "held by a\\n✓ lock\\x1b[2J"
    assert shown["facts"] == {"name": "x\\udcff"}


def test_json_is_ascii_whatever_the_terminal_has() -> None:
    shown = findings_json([finding(Level.NOTE, "lock", "é ✓ 😀")])
    assert shown.isascii()
    assert json.loads(shown)["findings"][0]["found"] == "é ✓ 😀"


def test_json() -> None:
    shown = json.loads(findings_json(FINDINGS))
    assert (shown["schema"], shown["exit"]) == ("doctor/v1", 1)
    assert shown["summary"] == text(*FINDINGS).splitlines()[0]
    assert shown["findings"][0] == {
        "level": "ok",
        "topic": "address",
        "found": "10.96.0.2/32 on lo, scope host",
        "remedy": "",
        "commands": [],
        "facts": {"address": "10.96.0.2/32"},
    }
