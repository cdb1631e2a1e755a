"""Chooses the settings: your own, or those of the sidecar on this node if you only look and name no address.

If none runs, they are those of the rules that one has left here (from_rules.py).

This runs in a child process (in_child.py), whose environment it changes.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from sidecar.commands.from_rules import Remains, typed
from sidecar.errors import ConfigError, reason
from sidecar.node import proc
from sidecar.node.instances import Instance, running
from sidecar.settings import sources
from sidecar.settings.invocation import Invocation
from sidecar.settings.options import FLAGS, INHERITING, Loaded, Origin
from sidecar.settings.values import BOOLEANS

#: The settings to inherit: those that define the desired state; not how the other instance runs, or where it logs.
_INHERITED: Final = {flag.name for flag in FLAGS.values() if flag.group in ("Address", "iptables rules")}


def load(line: Invocation) -> Loaded:
    """Return the settings for a command line; raise ConfigError with all faults."""
    names_one = _is_set_here(line, "ip-address") or _is_set_here(line, "env-file")  # a file may contain an address
    # Not cleanup: a running sidecar would put back what it removes.
    if line.command not in (*INHERITING, "cleanup") or names_one:
        return Loaded(*sources.load(line))
    instance, why = _the_one()
    if instance is None:
        return _without_any(line, why)
    if line.command == "cleanup":
        told = " ".join(_inheritable(instance))
        raise ConfigError([f"--ip-address is required: {instance} runs here with {told}; to clean up, stop it first"])
    file = _its_env_file(instance)
    flags = instance.line.values
    theirs = {name: flags[name] for name in _INHERITED & flags.keys() if not _is_set_here(line, name)}
    for name in _INHERITED - theirs.keys():
        variable = FLAGS[name].variable
        os.environ[variable] = os.environ.get(variable) or instance.variables.get(variable) or file.get(variable, "")
    has_rules = BOOLEANS.get(instance.value("setup-iptables"), True)
    detail = f"of {instance}, running here"
    if has_rules and not (instance.is_python or "port" in theirs or _is_set_here(line, "port")):
        theirs["port"] = [_port_of_its_rules(instance)]
        detail += "; the port is that of its rules"
    line = replace(line, values={**theirs, **line.values})
    origin = Origin("sidecar" if instance.is_python else "other", instance.process.pid, detail)
    return Loaded(*sources.load(line), origin=origin)


def _is_set_here(line: Invocation, name: str) -> bool:
    """Whether this process's own flags or environment set a setting."""
    return name in line.values or bool(os.environ.get(FLAGS[name].variable))


def _the_one() -> tuple[Instance | None, str]:
    """Return the sidecar that runs on this node; or None, and why one may not have been seen.

    Raises ConfigError if several disagree.
    """
    try:
        found, hidden = running()
    except OSError as error:
        return None, reason(error)
    told = {tuple(_inheritable(each)): each for each in found}
    if len(told) > 1:
        ways = "; ".join(f"{each}: {' '.join(words)}" for words, each in told.items())
        raise ConfigError([f"--ip-address is required: sidecars with different settings run here: {ways}"])
    if found:
        return found[0], ""
    if hidden:
        return None, f"only root can see whether {hidden[0]} is on this node's network"
    return None, "" if proc.sees_all_processes() else "only the processes of this container can be seen"


def _without_any(line: Invocation, why: str) -> Loaded:
    """Return the settings of the rules that stand here; raise ConfigError if there are none, with all other faults."""
    remains = Remains()
    if line.command in INHERITING and (found := remains.settings(typed(line.values))):
        theirs = {name: [text] for name, text in found.items() if not _is_set_here(line, name)}
        origin = Origin("rules", detail=f"from the rules on this node; {why or 'no sidecar runs here'}")
        return Loaded(*sources.load(replace(line, values={**theirs, **line.values})), origin=origin)
    hint = "no running sidecar was found whose settings could be used"
    if because := why or remains.problem:
        hint += f": {because}"
    try:
        return Loaded(*sources.load(line))
    except ConfigError as error:  # an address is missing, at least
        raise ConfigError([*error.faults, hint, *remains.hints()]) from None


def _port_of_its_rules(instance: Instance) -> str:
    """Return the port of the rules that stand here for the addresses of a Go sidecar; raise ConfigError without one."""
    ports = Remains().ports(instance.addresses)
    if len(ports) != 1:
        raise ConfigError(
            [f"--port is required: {instance} has none in its settings, and its default depends on its release"]
        )
    return str(ports.pop())


def _inheritable(instance: Instance) -> Iterator[str]:
    """Yield the settings of an instance that can be inherited and differ from the default."""
    for name in (*sorted(_INHERITED), "env-file"):
        if (text := instance.value(name)) != (FLAGS[name].default or ""):
            yield f"{FLAGS[name].spelled}={text}"


def _its_env_file(instance: Instance) -> Mapping[str, str]:
    """Return the variables of an instance's env file; raise ConfigError if that file is in another container.

    There, the path may lead anywhere, and we cannot judge the file.
    """
    path = instance.value("env-file")
    if not path:
        return {}
    process = f"/proc/{instance.process.pid}"
    try:
        is_near = os.readlink(f"{process}/ns/mnt") == os.readlink("/proc/self/ns/mnt")  # noqa: PTH115 - not a file
        whole = Path(os.readlink(f"{process}/cwd"), path)  # noqa: PTH115 - as above
    except OSError as error:
        raise ConfigError([f"{instance} reads settings from {path}, which cannot be found: {error.strerror}"]) from None
    if not is_near:
        raise ConfigError(
            [f"--ip-address is required: {instance} reads {path} in its own container: run this command there"]
        )
    if not whole.is_file():
        raise ConfigError([f"--ip-address is required: {path}, which {instance} reads, is not a regular file"])
    file, faults = sources.read_env_file(str(whole), f"{instance}: --env-file")
    if faults:
        raise ConfigError(faults)
    return file
