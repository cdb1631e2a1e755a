"""Whose settings: one's own or, for who only looks or cleans up and names no address, those of the sidecar that runs.

At 3 a.m. nobody has the manifest at hand. It happens in a child process (apart.py), whose environment it changes.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from sidecar import settings
from sidecar.errors import ConfigError
from sidecar.flags import FLAGS, GROUPS, Invocation
from sidecar.instances import Instance, running
from sidecar.options import Loaded

#: What is taken over: not how the other one logs.
_TAKEN: Final = {flag.name for group in ("Address", "iptables rules", "Running") for flag in GROUPS[group]}


def load(line: Invocation) -> Loaded:
    """Return the settings for a command line; raise ConfigError with all faults."""
    if line.command in ("run", "unknown") or _is_given(line):
        return Loaded(*settings.load(line))
    instance = _the_one(line)
    for name in _TAKEN:
        variable = FLAGS[name].variable
        os.environ[variable] = os.environ.get(variable) or instance.variables.get(variable, "")
    theirs = {name: texts for name, texts in instance.line.values.items() if name in _TAKEN}
    line = replace(line, values={**theirs, **line.values, **_its_env_file(instance)})
    return Loaded(*settings.load(line), origin=f"of {instance}, running here")


def _is_given(line: Invocation) -> bool:
    """Whether an address, or a file that may have one, is named."""
    names = ("ip-address", "env-file")
    return any(name in line.values or os.environ.get(FLAGS[name].variable) for name in names)


def _the_one(line: Invocation) -> Instance:
    """Return the sidecar that runs on this node; raise ConfigError if there is none, or they do not agree."""
    found, hidden = running()
    if not found:
        reason = f": whether {hidden[0]} is on this node's network, only root can see" if hidden else ""
        try:
            settings.load(line)
        except ConfigError as error:  # an address is missing, at least
            hint = f"no running sidecar can be seen here whose settings could be taken{reason}"
            raise ConfigError([*error.faults, hint]) from None
    told = {tuple(_told(each)): each for each in found}
    if len(told) > 1:
        ways = "; ".join(f"{each}: {' '.join(words)}" for words, each in told.items())
        raise ConfigError([f"--ip-address is required: sidecars with different settings run here: {ways}"])
    return found[0]


def _told(instance: Instance) -> Iterator[str]:
    """Yield what an instance was told of what is taken over."""
    for name in sorted(_TAKEN):
        if (text := instance.value(name)) != (FLAGS[name].default or ""):
            yield f"{FLAGS[name].spelled}={text}"


def _its_env_file(instance: Instance) -> dict[str, list[str]]:
    """Return where the file is that an instance reads its settings from, which may be in another container."""
    path = instance.value("env-file")
    if not path:
        return {}
    base = "root" if path.startswith("/") else "cwd"
    return {"env-file": [f"/proc/{instance.process.pid}/{base}/{path.lstrip('/')}"]}
