"""Which addresses and rules several instances on one node want, so that none cleans up what another one needs.

A rolling update starts the new instance before it stops the old one. Each running instance holds a shared lock on a
file for each thing it wants. Who cleans up asks for that lock alone: it gets it only if nobody else wants the thing,
and whoever starts meanwhile waits until the cleanup is over. Locks end with the process that holds them (man 2 flock).
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from loguru import logger

DIRECTORY: Final = Path("/run/apiserver-proxy-sidecar")

#: Seconds for which a start waits for somebody's cleanup, and between two tries.
PATIENCE: Final = 60.0
PAUSE: Final = 0.02


class Claims:
    """The locks that this process holds."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self._directory = directory
        self._held: dict[str, int] = {}

    def take(self, names: Iterable[str], *, is_over: Callable[[], bool]) -> None:
        """Claim these things; wait while somebody cleans them up, unless `is_over`.

        Where no file can be locked this says so, and nothing is claimed.
        """
        deadline = time.monotonic() + PATIENCE
        try:
            self._directory.mkdir(mode=0o755, exist_ok=True)
            for name in names:
                self._held[name] = os.open(
                    self._directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
                )
                self._wait_for(name, deadline, is_over)
        except OSError as error:
            logger.warning(
                f"cannot use {self._directory} ({error.strerror}): a cleanup by this or another instance on the node "
                "does not know who else needs the address; mount this directory from the node"
            )

    def _wait_for(self, name: str, deadline: float, is_over: Callable[[], bool]) -> None:
        said = False
        while not self._lock(name, fcntl.LOCK_SH):
            if is_over() or time.monotonic() > deadline:
                return
            if not said:
                said = True
                logger.info(f"another instance is cleaning up {name}: waiting for it")
            time.sleep(PAUSE)

    def wanted_by_others(self) -> frozenset[str]:
        """Give up all claims, for a cleanup; return what others claim as well. The rest is ours to remove."""
        return frozenset(name for name in self._held if not self._lock(name, fcntl.LOCK_EX))

    def _lock(self, name: str, kind: int) -> bool:
        try:
            fcntl.flock(self._held[name], kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
