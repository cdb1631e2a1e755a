"""Finds programs on the search path, their environment, and the package that contains them."""

import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from typing import Final

from sidecar.errors import CommandMissing, NodeError

#: Debian keeps `ip` and `iptables` in /usr/sbin, which an ordinary user's PATH lacks.
_SYSTEM_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"

#: Variables that iptables itself reads (man iptables): commands get them as this process has them.
_OF_IPTABLES: Final = ("XTABLES_LOCKFILE", "XTABLES_LIBDIR")


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for commands, taken from these variables; with LC_ALL=C, their messages are English."""
    path = ":".join(filter(None, (variables.get("PATH"), _SYSTEM_PATH)))
    return {"PATH": path, "LC_ALL": "C", **{name: variables[name] for name in _OF_IPTABLES if name in variables}}


def is_installed(name: str) -> bool:
    """Whether there is such a program on the search path."""
    return path_of(name) is not None


def path_of(name: str, variables: Mapping[str, str] = os.environ) -> str | None:
    """Return the path of a program, or None if it is not installed."""
    return shutil.which(name, path=environment(variables)["PATH"])


def find(name: str, path: str) -> str:
    """Return the path of a program; raise CommandMissing if it is not on the search path."""
    found = shutil.which(name, path=path)
    if found is None:
        raise CommandMissing(name)
    return found


def require(names: Sequence[str], path: str, seconds: float) -> None:
    """Raise CommandMissing for the first of these that is not on the search path.

    Raises NodeError if it cannot be found out in this time: a file system that hangs would hold up the main thread, and
    no signal would be handled.
    """
    found: list[CommandMissing | None] = []

    def look() -> None:
        try:
            for name in names:
                find(name, path)
            found.append(None)
        except CommandMissing as error:
            found.append(error)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(seconds)
    if not found:
        raise NodeError(f"cannot look for {names[0]}: a directory of the search path does not answer: see {path}")
    if found[0]:
        raise found[0]
