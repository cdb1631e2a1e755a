"""Where programs are on the search path, what environment they get, and which package has them."""

import os
import shutil
from collections.abc import Mapping
from typing import Final

from sidecar.errors import CommandMissing

#: Debian keeps `ip` and `iptables` in /usr/sbin, which an ordinary user's PATH lacks.
_SYSTEM_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"

#: Variables that iptables itself reads (man iptables): commands get them as this process has them.
_OF_IPTABLES: Final = ("XTABLES_LOCKFILE", "XTABLES_LIBDIR")

_PACKAGES: Final = {"ip": "iproute2"}  # what `apt-get install` calls the package that holds a command


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return what commands get of these variables; LC_ALL: messages in English whatever the node speaks."""
    path = ":".join(filter(None, (variables.get("PATH"), _SYSTEM_PATH)))
    return {"PATH": path, "LC_ALL": "C", **{name: variables[name] for name in _OF_IPTABLES if name in variables}}


def is_installed(name: str) -> bool:
    """Whether there is such a program on the search path."""
    return path_of(name) is not None


def path_of(name: str, variables: Mapping[str, str] = os.environ) -> str | None:
    """Return where on the search path a program is."""
    return shutil.which(name, path=environment(variables)["PATH"])


def find(name: str, path: str) -> str:
    """Return where on this search path a program is; raise CommandMissing."""
    found = shutil.which(name, path=path)
    if found is None:
        raise missing_command(name)
    return found


def missing_command(name: str) -> CommandMissing:
    """Return the failure that says which package has a command."""
    return CommandMissing(name, _PACKAGES.get(name, "iptables"))
