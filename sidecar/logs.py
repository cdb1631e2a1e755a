"""The log: loguru, in the format of klog, to standard error."""

import sys
from typing import TYPE_CHECKING

from loguru import logger

from sidecar.oneline import visible

if TYPE_CHECKING:
    from loguru import Record


def setup() -> None:
    """Send every line to standard error under klog's header."""
    logger.remove()
    logger.add(sys.stderr, format=_line, level="INFO", backtrace=False, diagnose=False)


def _line(record: "Record") -> str:
    """Return loguru's template for one record: `Lmmdd hh:mm:ss.uuuuuu threadid file:line] msg`.

    (k8s.io/klog/v2, `formatHeader`.) What a command printed can stand in the message: control characters are
    shown, so that no line can be forged.
    """
    record["extra"]["line"] = visible(record["message"])
    return "{level.name[0]}{time:MMDD HH:mm:ss.SSSSSS} {process: >7} {file}:{line}] {extra[line]}\n{exception}"
