"""The gate to the node for those who look while somebody waits for the answer: doctor and status."""

import time
from typing import Final

from sidecar.errors import CommandStuck, CommandTimeout, DeadlineReached, LockHeld, ProgramHangs
from sidecar.node import xtables_lock
from sidecar.node.command import Commands, Result

LONGEST_LOOK: Final = 1.0  # seconds for one command, and for the xtables lock; a command takes a hundredth of it
TOTAL: Final = 1.5  # seconds for all commands of one look. With the start and the other checks, it ends within 3
_GRACE: Final = 0.2  # seconds that a command that was killed is given to end


class BriefCommands(Commands):
    """Runs each command for LONGEST_LOOK at most, and all for TOTAL. Starts no program again that hung in this look."""

    def __init__(self, timeout: float) -> None:
        """`timeout` is what one command may take, if that is less."""
        super().__init__(min(timeout, LONGEST_LOOK), grace=_GRACE)
        #: What did not answer in this look, by the program's name.
        self.hung: dict[str, ProgramHangs | LockHeld] = {}
        self._end_of_look = time.monotonic() + TOTAL

    def begin(self) -> None:
        """Begin another look: the time for it starts, and each program gets another chance."""
        self._end_of_look = time.monotonic() + TOTAL
        self.hung.clear()

    def run(self, *argv: str, stdin: str = "") -> Result:
        """Run the command; raise what its program raised before if that hung, or waits for the xtables lock."""
        if argv[0] in self.hung:
            raise self.hung[argv[0]]
        seconds = self._time_for(argv, stdin)
        try:
            return super().run(*argv, stdin=stdin)
        except CommandStuck:  # it was not even started, as another one hangs
            raise
        except CommandTimeout as error:
            self.hung[argv[0]] = hung = self._hung(argv, stdin, seconds)
            raise hung from error

    def _time_for(self, argv: tuple[str, ...], stdin: str) -> float:
        left = self._end_of_look - time.monotonic()
        if left <= 0:
            raise DeadlineReached(argv, stdin)
        return min(super()._time_for(argv, stdin), left)

    def _hung(self, argv: tuple[str, ...], stdin: str, seconds: float) -> ProgramHangs | LockHeld:
        takes_lock = "tables" in argv[0] and "-nft" not in argv[0]
        if takes_lock and (held := xtables_lock.held()):
            return LockHeld(argv, stdin, f"was killed: {held}")
        return ProgramHangs(argv, stdin, seconds, f", which {self._stuck.state}" if self._stuck else "")
