"""The command `doctor`: from settings to findings."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loguru import logger

from sidecar.doctor.checks import diagnose
from sidecar.doctor.findings import Finding, Level
from sidecar.doctor.view import Looks
from sidecar.log.setup import start_logging
from sidecar.node.backends import Backend
from sidecar.node.command import Commands
from sidecar.settings.options import Options, desired_state

if TYPE_CHECKING:
    from sidecar.state.model import Family

#: Seconds to wait for the xtables lock, at most: who holds it is told, and an answer is wanted soon.
LONGEST_WAIT = 1.0


def doctor(options: Options, warnings: Sequence[str]) -> list[Finding]:
    """Look at the node for what keeps it from being as the settings want it; change nothing.

    Raises OSError if the program cannot run any command at all.
    """
    if options.v or options.vmodule.levels:
        start_logging(options)
    else:
        logger.remove()  # the findings say it all
    commands = Commands(options.command_timeout)
    wanted = desired_state(options)
    families: list[Family] = sorted({address.ip.version for address in wanted.addresses})
    wait = min(options.iptables_wait, LONGEST_WAIT)
    backends = {family: Backend(commands.run, family, options.iptables_backend, wait) for family in families}
    looks = Looks(wanted, options.port, commands.run, backends, options.iptables_backend)
    settings = [Finding(Level.WARNING, "settings", warning) for warning in warnings]
    return [*settings, *diagnose(looks)]
