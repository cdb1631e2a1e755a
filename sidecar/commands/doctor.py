"""The command `doctor`: turns settings into findings."""

from collections.abc import Iterator, Sequence

from loguru import logger

from sidecar.commands import findings_text
from sidecar.commands.output import Answer, Terminal
from sidecar.commands.status import LONGEST_LOOK
from sidecar.doctor.checks import diagnose
from sidecar.doctor.findings import Finding, exit_code
from sidecar.doctor.view import View
from sidecar.log.setup import start_logging
from sidecar.node.access import access
from sidecar.node.command import Commands
from sidecar.settings.options import Loaded, Options


def answers(loaded: Loaded, terminal: Terminal) -> Iterator[Answer]:
    """Yield the findings. Raises OSError if no command can be run at all."""
    found = doctor(loaded.options, loaded.warnings)
    if loaded.options.output == "json":
        text = findings_text.findings_json(found)
    else:
        text = findings_text.findings_text(found, is_coloured=terminal.is_coloured, encoding=terminal.encoding)
    yield text, exit_code(found)


def doctor(options: Options, warnings: Sequence[str]) -> list[Finding]:
    """Find out what keeps the node from the desired state; change nothing.

    Raises OSError if no command can be run at all.
    """
    if options.v or options.vmodule.levels:
        start_logging(options)
    else:
        logger.remove()  # the findings say it all
    commands = Commands(options.command_timeout)
    node = access(options, commands, creates=False, has_rules=True, longest_look=LONGEST_LOOK)
    return diagnose(
        View(node.desired, options.port, commands.run, node.backends, options.iptables_backend, warnings=warnings)
    )
