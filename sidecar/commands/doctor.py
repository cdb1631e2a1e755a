"""The command `doctor`: turns settings into findings, and prints them for people or as JSON for programs."""

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from loguru import logger

from sidecar.commands.output import GREEN, MAGENTA, RED, YELLOW, Answer, Terminal, as_json, coloured, wrapped
from sidecar.doctor.checks import diagnose
from sidecar.doctor.findings import Finding, Level, exit_code, unknown
from sidecar.doctor.view import View
from sidecar.errors import ProgramHangs
from sidecar.log.setup import start_logging
from sidecar.node.access import access
from sidecar.node.brief import LONGEST_LOOK, BriefCommands
from sidecar.settings.options import Loaded, Options
from sidecar.text import WIDTH, visible

SCHEMA: Final = "doctor/v1"  # the version of the JSON: it changes when a field is removed or its meaning changes
_ON_HANG: Final = "if it hangs there, too, see `dmesg`, and whether the disk that it is on answers"
_INDENT: Final = 14  # columns before each finding's text

_MARKS: Final = {Level.OK: "✓", Level.NOTE: "·", Level.WARNING: "!", Level.FAULT: "✗", Level.UNKNOWN: "?"}
#: For a terminal that cannot print these characters.
_PLAIN_MARKS: Final = {Level.OK: "+", Level.NOTE: "-", Level.WARNING: "!", Level.FAULT: "X", Level.UNKNOWN: "?"}
#: A word of a shell command, including quoted parts.
_WORD: Final = re.compile(r"""(?:'[^']*'|"(?:[^"\\]|\\.)*"|[^\s'"])+""")

_COLOURS: Final = {Level.OK: GREEN, Level.WARNING: YELLOW, Level.FAULT: RED, Level.UNKNOWN: MAGENTA}


def answers(loaded: Loaded, terminal: Terminal) -> Iterator[Answer]:
    """Yield the findings. Raises OSError if no command can be run at all."""
    found = doctor(loaded.options, loaded.warnings, loaded.origin.detail)
    if loaded.options.output == "json":
        text = findings_json(found)
    else:
        text = findings_text(
            found, is_coloured=terminal.is_coloured, encoding=terminal.encoding, columns=terminal.width
        )
    yield text, exit_code(found)


def doctor(options: Options, warnings: Sequence[str], origin: str) -> list[Finding]:
    """Find out what keeps the node from the desired state; change nothing. `origin` says whose settings these are.

    Raises OSError if no command can be run at all.
    """
    if options.v or options.vmodule.levels:
        start_logging(options)
    else:
        logger.remove()  # the findings say it all
    commands = BriefCommands(options.command_timeout)
    node = access(options, commands, creates=False, has_rules=True, longest_look=LONGEST_LOOK)
    view = View(
        node.desired, options.port, commands.run, node.backends, warnings=warnings, time_left=commands.time_left
    )
    view.origins = options.from_
    view.settings = f"{shlex.join(options.changed())} ({origin})" if origin else ""
    found = diagnose(view)
    return [*map(_hang, commands.hung.values()), *found]


def _hang(error: ProgramHangs) -> Finding:
    """Return the finding that a program does not answer; it comes first, as others follow from it."""
    return replace(unknown(error), remedy=_ON_HANG, commands=(error.command,), leads=True, topic="commands")


def findings_text(findings: Sequence[Finding], *, is_coloured: bool, encoding: str, columns: int = WIDTH) -> str:
    """Return a summary, then each finding with the commands to run, ready to paste."""
    marks = _MARKS if _can_print("".join(_MARKS.values()), encoding) else _PLAIN_MARKS
    lines = wrapped(summary(findings), 0, columns=columns, breaks_words=False)
    for each in findings:
        begin = f"{marks[each.level]} {each.topic:<{_INDENT - 3}} "
        first, *rest = wrapped(begin + each.found, _INDENT, columns=columns, breaks_words=False)
        if is_coloured and (colour := _COLOURS.get(each.level)):
            first = coloured(first, colour, 1)
        lines += [first, *rest]
        lines += _what_to_do(each, columns)
    text = "\n".join(lines)
    return text.encode(encoding, errors="backslashreplace").decode(encoding)


def findings_json(findings: Sequence[Finding]) -> str:
    """Return the same as one JSON object, with the facts as values."""
    shown: dict[str, object] = {"schema": SCHEMA, "exit": exit_code(findings), "summary": summary(findings)}
    shown["findings"] = [
        {
            "level": each.level.value,
            "topic": each.topic,
            "found": visible(each.found),
            "remedy": each.remedy,
            "commands": [visible(command) for command in each.commands],
            "facts": {name: visible(value) if isinstance(value, str) else value for name, value in each.facts.items()},
        }
        for each in findings
    ]
    return as_json(shown, indent=2)


def summary(findings: Sequence[Finding]) -> str:
    """Return one line: the number of faults, warnings and unknowns, and the first of the worst."""
    numbers = Counter(each.level for each in findings)
    counted = list(_counted(numbers))
    if any(each.is_drift for each in findings):
        counted.append("not in sync")
    if not counted:
        return "nothing wrong found"
    is_wrong = numbers[Level.FAULT] or numbers[Level.WARNING] or any(each.is_drift for each in findings)
    text = ", ".join(counted) if is_wrong else f"nothing wrong found in what could be looked at; {counted[0]}"
    first = next((each for each in findings if each.leads), None) or _worst(findings)
    return f"{text}; first: {first.topic}: {visible(first.found)}" if first else text


def _worst(findings: Sequence[Finding]) -> Finding | None:
    """Return the first of the worst findings; of what is unknown, only what decides the exit code."""
    for level in (Level.FAULT, Level.WARNING, Level.UNKNOWN):
        for each in findings:
            if each.level is level and (level is not Level.UNKNOWN or exit_code([each])):
                return each
    return None


def _counted(numbers: Counter[Level]) -> Iterator[str]:
    for level in (Level.FAULT, Level.WARNING, Level.UNKNOWN):
        if number := numbers[level]:
            yield f"{number} {level.value}{'' if number == 1 or level is Level.UNKNOWN else 's'}"


def _what_to_do(finding: Finding, columns: int) -> Iterator[str]:
    """Yield the commands as one block that is ready to paste, and then the remedy in words."""
    begin = "    do: "
    for command in map(visible, finding.commands):
        for line in _continued(command, columns - len(begin)):
            yield f"{begin}{line}"
            begin = " " * len(begin)
    if finding.remedy:
        also = "  note: " if finding.commands else begin
        yield from wrapped(f"{also}{finding.remedy}", len(begin), columns=columns, breaks_words=False)


def _continued(command: str, width: int) -> Iterator[str]:
    """Yield the lines of a command, continued between words so that a shell reads them as one command."""
    line = ""
    for word in _WORD.findall(command):
        if line.strip() and len(line) + len(word) + len(" \\") > width:
            yield f"{line}\\"
            line = "    "
        line += f"{word} "
    yield line.rstrip()


def _can_print(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
