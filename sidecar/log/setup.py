"""Sets up the log: callers use loguru, and lines go where klog's `output` (klog.go) would send them.

docs/logging.md lists the differences. Above all, klog ends the program if it cannot write a file; here the line goes to
standard error instead, and the work goes on. Nor does the work wait for a log that nobody reads: all lines of a pass
wait for LONGEST_LOOK at most, then they are dropped and counted.
"""

import contextlib
import os
import stat
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from loguru import logger

from sidecar import PROGRAM
from sidecar.log import files
from sidecar.log.levels import INFO
from sidecar.log.outlet import Outlet, Patience, stderr_outlet
from sidecar.log.writer import Descriptor, Outcome, Target, Writer
from sidecar.settings import klog
from sidecar.settings.klog import Entry, Severity

if TYPE_CHECKING:
    from loguru import Message, Record

    from sidecar.settings.options import Options

#: Where lines go, as the metric calls it, and how a log line calls it.
STDERR: Final = "stderr"
FILES: Final = "files"
_NAMES: Final = {STDERR: "standard error", FILES: "the log files"}

#: loguru's names of the severities. Levels below its INFO are klog's INFO, too, with a higher verbosity.
_SEVERITIES: Final = {"WARNING": Severity.WARNING, "ERROR": Severity.ERROR, "CRITICAL": Severity.FATAL}


_output: "_Output | None" = None


def start_logging(options: "Options") -> None:
    """Start sending every log line to where the settings say."""
    global _output  # noqa: PLW0603 - loguru's logger is global, too
    output = _output = _Output(options)
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


def begin_pass() -> None:
    """Let lines wait for their reader again, and log how many were dropped, if they would get through now."""
    if _output:
        _output.begin_pass()
        _log_dropped(_output)


def end_logging() -> None:
    """Wait a moment for the files to be written: the process is about to end."""
    if _output:
        _log_dropped(_output)
        _output.finish()


def dropped() -> dict[str, int]:
    """Return how many lines each destination did not take since the start."""
    return dict(_output.dropped) if _output else {STDERR: 0, FILES: 0}


def _log_dropped(output: "_Output") -> None:
    for destination, number in output.take_unreported():
        logger.bind(dropped=number, log=destination).warning(
            f"{number} log lines were dropped: {_NAMES[destination]} did not take them"
        )


@dataclass(frozen=True, slots=True)
class _Sent:
    """A line on its way to a file; `is_said` if it went to standard error, too."""

    entry: Entry
    line: str
    is_said: bool


class _Output:
    """Writes each line to standard error, to files, or both."""

    def __init__(self, options: "Options") -> None:
        self._options = options
        has_header = not options.skip_log_headers and options.logging_format == "text"
        self._targets: list[Target] = []
        if options.log_file:
            self._targets += [files.one_file(options.log_file, options.log_file_max_size, has_header=has_header)]
        else:
            self._targets += [
                files.severity_file(PROGRAM, options.log_dir, severity, has_header=has_header) for severity in Severity
            ]
        self._failing: set[int] = set()
        self.patience = Patience()
        self.dropped = {STDERR: 0, FILES: 0}
        self._unreported = {STDERR: 0, FILES: 0}
        self._encoding = sys.stderr.encoding or "utf-8"
        self._stderr: Outlet | None = None
        self._stderr_target = -1
        if _is_on_disk(sys.stderr.fileno()):
            self._stderr_target = len(self._targets)
            self._targets.append(Descriptor(sys.stderr.fileno()))
        else:
            self._stderr = stderr_outlet(self.patience)
        self._writer: Writer[_Sent] = Writer(self._targets, self.patience)
        self._needs_writer = self._stderr is None or not options.logtostderr
        self.begin_pass()

    def write(self, message: "Message") -> None:
        entry = _entry(message.record)
        place = self._options.log_backtrace_at
        if (Path(entry.path).name, entry.line) == (place.file, place.line):
            entry = replace(entry, stack=_stack(entry))
        sent = _Sent(entry, self._line(entry), self._is_for_stderr(entry.severity))
        if sent.is_said:
            self._say(sent.line, entry)
        if not self._options.logtostderr:
            self._file(sent)
        for earlier, outcomes in self._writer.outcomes():
            self._judge(earlier, outcomes)

    def begin_pass(self) -> None:
        self.patience.renew()
        if self._needs_writer:
            self._writer.start()

    def finish(self) -> None:
        """Wait for what is on its way to files, as long as it gets there."""
        for sent, outcomes in self._writer.finish():
            self._judge(sent, outcomes)

    def take_unreported(self) -> list[tuple[str, int]]:
        """Return how many lines each destination missed since this was last asked, if it would take one now."""
        files_are_ready = self._writer.is_ready()
        is_ready = {
            STDERR: self._stderr.is_ready() if self._stderr else files_are_ready,
            FILES: files_are_ready and not self._failing,
        }
        unreported = [(name, number) for name, number in self._unreported.items() if number and is_ready[name]]
        self._unreported |= {name: 0 for name, _ in unreported}
        return unreported

    def _count(self, destination: str) -> None:
        self.dropped[destination] += 1
        self._unreported[destination] += 1

    def _say(self, line: str, entry: Entry) -> None:
        """Write a line to standard error."""
        is_taken = False
        if self._stderr:
            with contextlib.suppress(OSError):  # nobody reads it: there is nowhere to report it
                is_taken = self._stderr.write(line.encode(self._encoding, errors="backslashreplace"))
        else:
            sent = _Sent(entry, line, is_said=True)
            is_taken = self._writer.write([self._stderr_target], line, entry.time, sent)
        if not is_taken:
            self._count(STDERR)

    def _file(self, sent: _Sent) -> None:
        """Write a line to the files of its severity."""
        targets = self._files_for(sent.entry.severity)
        if not self._writer.write(targets, sent.line, sent.entry.time, sent):
            name = self._options.log_file or self._options.log_dir or "of the directory for temporary files"
            self._judge(sent, [Outcome(target, name, "it takes no more lines") for target in targets])

    def _judge(self, sent: _Sent, outcomes: Sequence[Outcome]) -> None:
        """Report the first failure of each file; write what is in no file to standard error."""
        is_missing = False
        for outcome in outcomes:
            if not outcome.reason:
                self._failing.discard(outcome.target)
            elif outcome.target == self._stderr_target:
                self._count(STDERR)
            else:
                self._complain(outcome, sent.entry)
                is_missing = is_missing or not outcome.instead
        if is_missing:
            self._count(FILES)
            if not sent.is_said:
                self._say(sent.line, sent.entry)

    def _is_for_stderr(self, severity: Severity) -> bool:
        if self._options.logtostderr:
            return self._options.legacy_stderr_threshold_behavior or severity >= self._options.stderrthreshold
        if self._options.alsologtostderr:
            return severity >= self._options.alsologtostderrthreshold
        return severity >= self._options.stderrthreshold

    def _files_for(self, severity: Severity) -> list[int]:
        """Return the indices of the files."""
        if self._options.log_file:
            return [0]
        if self._options.one_output:
            return [severity]
        return [each for each in reversed(Severity) if each <= severity]

    def _complain(self, outcome: Outcome, entry: Entry) -> None:
        if outcome.target not in self._failing:
            self._failing.add(outcome.target)
            instead = outcome.instead or "standard error"
            text = f"cannot write to log file {outcome.file}: {outcome.reason}; its lines go to {instead}"
            entry = replace(entry, severity=Severity.WARNING, verbosity=0, message=text, facts={}, stack="")
            self._say(self._line(entry), entry)

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


def _is_on_disk(descriptor: int) -> bool:
    """Whether it is a regular file or a block device: writing there cannot be bounded in time."""
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)
