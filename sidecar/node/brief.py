"""The gate to the node for those who look while somebody waits for the answer: doctor and status."""

import math
import time
from typing import Final

from sidecar.errors import CommandStuck, CommandTimeout, DeadlineReached, LockHeldBy, ProgramHangs
from sidecar.node import xtables_lock
from sidecar.node.command import Commands, Result

LONGEST_LOOK: Final = 1.0  # seconds for one command, and for the xtables lock; a command takes a hundredth of it
TOTAL: Final = 2.0  # seconds after which a look in which something hangs should end: with the start, within 3
_FOR_ALL_THAT_HANG: Final = 1.6  # seconds that programs that hang may take together
_SHORTEST: Final = 0.1  # seconds. With less, a program that works might not be able to answer
_GRACE: Final = 0.2  # seconds that a command that was killed is given to end


class BriefCommands(Commands):
    """Runs each command for LONGEST_LOOK at most, and starts no program again that hung in this look.

    The first program that hangs takes that long, each further one half of what is left for all of them. What works is
    not hurried: on a busy node it takes its time.
    """

    def __init__(self, timeout: float) -> None:
        """`timeout` is what one command may take, if that is less."""
        super().__init__(min(timeout, LONGEST_LOOK), grace=_GRACE)
        #: What did not answer in this look, by the program's name.
        self.hung: dict[str, ProgramHangs] = {}
        self.begin()

    def begin(self) -> None:
        """Begin a look: the time for it starts, and each program gets another chance."""
        self._began = time.monotonic()
        self._patience = _FOR_ALL_THAT_HANG
        self._lock_held: LockHeldBy | None = None
        self.hung.clear()

    def time_left(self) -> float:
        """Return the seconds that are left for this look; without a limit as long as nothing hangs."""
        return math.inf if self._patience == _FOR_ALL_THAT_HANG else self._began + TOTAL - time.monotonic()

    def run(self, *argv: str, stdin: str = "") -> Result:
        """Run the command; raise what its program raised before if that hung, or waits for the xtables lock."""
        takes_lock = "tables" in argv[0] and "-nft" not in argv[0]
        if earlier := self.hung.get(argv[0]) or (self._lock_held if takes_lock else None):
            raise earlier
        seconds = self._time_for(argv, stdin)
        try:
            return super().run(*argv, stdin=stdin)
        except CommandStuck:  # it was not even started, as another one hangs
            raise
        except CommandTimeout as error:
            self._patience -= seconds
            if takes_lock and (holder := xtables_lock.held()):
                self._lock_held = LockHeldBy(argv, stdin, holder)
                raise self._lock_held from error
            state = f", which {self._stuck.state}" if self._stuck else ""
            self.hung[argv[0]] = ProgramHangs(argv, stdin, seconds, state)
            raise self.hung[argv[0]] from error

    def _time_for(self, argv: tuple[str, ...], stdin: str) -> float:
        longest = super()._time_for(argv, stdin)
        if self._patience == _FOR_ALL_THAT_HANG:
            return longest
        if self._patience / 2 < _SHORTEST:
            raise DeadlineReached(argv, stdin)
        return min(longest, self._patience / 2)
