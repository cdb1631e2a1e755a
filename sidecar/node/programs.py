"""Finds programs on the search path, their environment, and the package that contains them."""

import os
import shutil
from collections.abc import Mapping
from typing import Final

from sidecar.errors import CommandMissing

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
