"""Sets up the log: callers use loguru, and lines go where klog's `output` (klog.go) would send them.

The README lists the differences. Above all, klog ends the program if it cannot write a file; here the line goes to
standard error instead, and the work goes on.
"""

import contextlib
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from loguru import logger

from sidecar import PROGRAM
from sidecar.log import files
from sidecar.log.files import LogFile
from sidecar.log.levels import INFO
from sidecar.settings import klog
from sidecar.settings.klog import Entry, Severity

if TYPE_CHECKING:
    from loguru import Message, Record

    from sidecar.settings.options import Options

#: loguru's names of the severities. Levels below its INFO are klog's INFO, too, with a higher verbosity.
_SEVERITIES: Final = {"WARNING": Severity.WARNING, "ERROR": Severity.ERROR, "CRITICAL": Severity.FATAL}


def start_logging(options: "Options") -> None:
    """Start sending every log line to where the settings say."""
    output = _Output(options)
    highest = max(0, options.v, *(level for _, level in options.vmodule.levels))

    def is_wanted(record: "Record") -> bool:
        """Whether -v or --vmodule asks for this line (`VDepth`)."""
        verbosity = INFO - record["level"].no
        return verbosity <= 0 or verbosity <= max(options.v, options.vmodule.level(record["file"].name))

    logger.remove()
    logger.add(output.write, level=max(0, INFO - highest), filter=is_wanted, format="", backtrace=False, diagnose=False)


def collect_warnings(options: "Options") -> list[str]:
    """Return a list that collects warnings, for a command's answer on standard output; log only what -v asks for."""
    collected: list[str] = []
    logger.remove()
    if options.v or options.vmodule.levels:
        start_logging(options)
    logger.add(
        lambda message: collected.append(message.record["message"]),
        level="WARNING",
        format="",
        backtrace=False,
        diagnose=False,
    )
    return collected


class _Output:
    """Writes each line to standard error, to files, or both."""

    def __init__(self, options: "Options") -> None:
        self._options = options
        has_header = not options.skip_log_headers and options.logging_format == "text"
        self._files: dict[Severity, LogFile] = {}
        self._one_file: LogFile | None = None
        if options.log_file:
            self._one_file = files.one_file(options.log_file, options.log_file_max_size, has_header=has_header)
        else:
            for severity in Severity:
                self._files[severity] = files.severity_file(PROGRAM, options.log_dir, severity, has_header=has_header)
        self._failing: set[LogFile] = set()

    def write(self, message: "Message") -> None:
        entry = _entry(message.record)
        place = self._options.log_backtrace_at
        if (Path(entry.path).name, entry.line) == (place.file, place.line):
            entry = replace(entry, stack=_stack(entry))
        line = self._line(entry)
        is_said = self._is_for_stderr(entry.severity)
        if is_said:
            _say(line)
        if not self._options.logtostderr:
            failed = [file for file in self._files_for(entry.severity) if not self._append(file, line, entry)]
            if failed and not is_said:
                _say(line)

    def _is_for_stderr(self, severity: Severity) -> bool:
        if self._options.logtostderr:
            return self._options.legacy_stderr_threshold_behavior or severity >= self._options.stderrthreshold
        if self._options.alsologtostderr:
            return severity >= self._options.alsologtostderrthreshold
        return severity >= self._options.stderrthreshold

    def _files_for(self, severity: Severity) -> list[LogFile]:
        if self._one_file:
            return [self._one_file]
        if self._options.one_output:
            return [self._files[severity]]
        return [self._files[each] for each in reversed(Severity) if each <= severity]

    def _append(self, file: LogFile, line: str, entry: Entry) -> bool:
        """Write a line to a file. Return whether that succeeded; report the first failure."""
        try:
            file.append(line, entry.time)
        except OSError as error:
            self._complain(file, error, "its lines go to standard error", entry)
            return False
        if file.refused:
            self._complain(file, file.refused, f"its lines go to {file.directory}", entry)
        else:
            self._failing.discard(file)
        return True

    def _complain(self, file: LogFile, error: OSError, instead: str, entry: Entry) -> None:
        if file not in self._failing:
            self._failing.add(file)
            text = f"cannot write to log file {error.filename}: {error.strerror}; {instead}"
            _say(self._line(replace(entry, severity=Severity.WARNING, verbosity=0, message=text, facts={}, stack="")))

    def _line(self, entry: Entry) -> str:
        if self._options.logging_format == "json":
            return klog.as_json(entry)
        return klog.as_text(entry, skip_headers=self._options.skip_headers, add_dir_header=self._options.add_dir_header)


def _entry(record: "Record") -> Entry:
    level = record["level"]
    return Entry(
        severity=_SEVERITIES.get(level.name, Severity.INFO),
        verbosity=max(0, INFO - level.no),
        time=record["time"],
        pid=record["process"].id,
        path=record["file"].path,
        line=record["line"],
        message=record["message"],
        facts=record["extra"],
    )


def _stack(entry: Entry) -> str:
    """Return the calls that led to a line, outermost first, without those inside loguru and this module."""
    frame = sys._getframe()  # noqa: SLF001 - documented in `sys`, and the way to get a shortened stack
    while frame.f_back and (frame.f_code.co_filename, frame.f_lineno) != (entry.path, entry.line):
        frame = frame.f_back
    return "".join(traceback.format_stack(frame))


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it, or the disk is full: there is nowhere to report it
        sys.stderr.write(line)
