"""The grammar and the line format of klog v2 (https://github.com/kubernetes/klog). Pure, no I/O.

Each docstring names the function of klog that it follows; it is in klog.go unless another file is named.
"""

import enum
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Final

from sidecar.text import visible

#: Numbers are Go's int32 (`Level.Set`), of at most eleven characters.
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,10}", re.ASCII)
_HIGHEST: Final = 2**31 - 1


class Severity(enum.IntEnum):
    """internal/severity/severity.go."""

    INFO = 0
    WARNING = 1
    ERROR = 2
    FATAL = 3


@dataclass(frozen=True, slots=True)
class Vmodule:
    """The value of --vmodule: verbosity by source file."""

    levels: tuple[tuple[str, int], ...] = ()  # pairs of a pattern, for a file's name without its suffix, and a level

    def level(self, file: str) -> int:
        """Return the level for a source file's name, like `daemon.py`: the first matching pattern counts (`setV`)."""
        stem = file.removesuffix(".py")
        return next((level for pattern, level in self.levels if _matches(stem, pattern)), 0)

    def __str__(self) -> str:
        return ",".join(f"{pattern}={level}" for pattern, level in self.levels)


@dataclass(frozen=True, slots=True)
class Place:
    """The value of --log_backtrace_at: the place of a log statement; line 0 means none."""

    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One message, with everything that a line can say about it."""

    severity: Severity
    verbosity: int
    time: datetime
    pid: int
    path: str  # the source file that logs it
    line: int
    message: str
    facts: Mapping[str, object] = field(default_factory=dict)  # the content of the message as values, for JSON
    stack: str = ""


def parse_level(text: str) -> int:
    """Parse -v (`Level.Set`); a negative level has the same effect as 0."""
    level = _integer(text)
    if level is None:
        raise ValueError("not a verbosity: write a number like 2, where 0 is quiet")
    return level


def parse_vmodule(text: str) -> Vmodule:
    """Parse --vmodule (`parseModuleSpec`). As in klog, empty parts and levels of 0 are ignored."""
    levels = []
    for part in filter(None, text.split(",")):
        pattern, equals, number = part.partition("=")
        level = _integer(number)
        if not pattern or not equals or level is None or level < 0:
            raise ValueError("not a list of file=N: write it like reconcile=2,command=6, without .py")
        if level:
            levels.append((pattern, level))
    return Vmodule(tuple(levels))


def parse_severity(text: str) -> Severity:
    """Parse --stderrthreshold (`severityValue.Set`): a number, or a name in any case."""
    if text in ("0", "1", "2", "3"):
        return Severity(int(text))
    try:
        return Severity[text.upper()]
    except KeyError:
        raise ValueError("not a severity: write 0 to 3, or INFO, WARNING, ERROR or FATAL") from None


def parse_place(text: str) -> Place:
    """Parse --log_backtrace_at (`traceLocation.Set`); klog writes `:0` for none."""
    if text in ("", ":0"):
        return Place()
    file, _, number = text.partition(":")
    line = _integer(number)
    if "." not in file or line is None or line < 1:
        raise ValueError("not a place in the source: write it like daemon.py:90")
    return Place(file, line)


def as_text(entry: Entry, *, skip_headers: bool = False, add_dir_header: bool = False) -> str:
    """Return the line: `Lmmdd hh:mm:ss.uuuuuu threadid file:line] msg` (`header`; internal/buffer/buffer.go).

    A message can contain a command's output: control characters are escaped, so that it cannot forge a line.
    """
    header = ""
    if not skip_headers:
        place = "/".join(entry.path.split("/")[-2 if add_dir_header else -1 :])
        time = f"{entry.time:%m%d %H:%M:%S.%f}"
        header = f"{entry.severity.name[0]}{time} {entry.pid:>7} {place}:{entry.line}] "
    return f"{header}{visible(entry.message)}\n{entry.stack}"


def as_json(entry: Entry) -> str:
    """Return the entry as one JSON object, with the field names of Kubernetes' components.

    (component-base/logs/json/json.go: `ts` is milliseconds since 1970, `caller` has the directory, errors are `err`.)
    """
    place = "/".join(entry.path.split("/")[-2:])
    shown: dict[str, object] = {
        "ts": round(entry.time.timestamp() * 1000, 3),
        "severity": entry.severity.name,
        "v": entry.verbosity,
        "caller": f"{place}:{entry.line}",
        "msg": entry.message,
    }
    shown |= {name: value for name, value in entry.facts.items() if name not in shown}
    if entry.stack:
        shown["stacktrace"] = entry.stack
    return json.dumps(_sound(shown)) + "\n"


def file_header(time: datetime, host: str, built: str) -> str:
    """Return the header of a log file (`rotateFile`); `built` names the interpreter and the platform."""
    return (
        f"Log file created at: {time:%Y/%m/%d %H:%M:%S}\n"
        f"Running on machine: {host}\n"
        f"Binary: Built with {built}\n"
        "Log line format: [IWEF]mmdd hh:mm:ss.uuuuuu threadid file:line] msg\n"
    )


def _sound(value: object) -> object:
    """Return the value with bytes that are not text escaped, as strict JSON parsers refuse them."""
    match value:
        case str():
            return value.encode(errors="backslashreplace").decode()
        case dict():
            return {name: _sound(each) for name, each in value.items()}
        case _:
            return value


def _matches(name: str, pattern: str) -> bool:
    """Match as Go's filepath.Match does, which negates a class by [^…]; our file names need no more of it."""
    return fnmatchcase(name, pattern.replace("[^", "[!"))


def _integer(text: str) -> int | None:
    return int(text) if _INTEGER.fullmatch(text) and abs(int(text)) <= _HIGHEST else None
