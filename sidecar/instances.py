"""Which sidecars run on this node's network, this one's namesake in Go among them, and what they were told to do.

A process is known by its command line, its settings by that and by the environment it was started with: so it needs
nothing from the other side, and works across containers, for whoever may see the process (root, in the node's pid
namespace, or in the same container).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sidecar import PROGRAM, flags, procfs
from sidecar.flags import FLAGS, Invocation
from sidecar.procfs import Process

#: What begins the command line of this program run by its module.
_AS_A_MODULE: Final = ["-m", "sidecar"]

#: Options of the interpreter that take the next word as well (man python3).
_WITH_A_VALUE: Final = ("-W", "-X", "--check-hash-based-pycs")


@dataclass(frozen=True, slots=True)
class Instance:
    """A running sidecar. `variables` are those of its environment that this program knows."""

    process: Process
    is_python: bool
    line: Invocation
    variables: Mapping[str, str]

    def __str__(self) -> str:
        return f"pid {self.process.pid} ({'this program' if self.is_python else 'not Python: the Go sidecar?'})"

    def value(self, name: str) -> str:
        """Return the text of a setting; what an env file sets is not seen."""
        given = self.line.values.get(name)
        if given:
            return ",".join(given) if name == "ip-address" else given[-1]
        return self.variables.get(FLAGS[name].variable) or FLAGS[name].default or ""


def running() -> tuple[list[Instance], list[Instance]]:
    """Return the instances on this node's network, and those of which it cannot be seen whether they are."""
    found: dict[bool | None, list[Instance]] = {True: [], False: [], None: []}
    for process, is_near in procfs.neighbours():
        each = _instance(process)
        if each and each.line.command == "run":  # others only look
            found[is_near].append(each)
    return found[True], found[None]


def _instance(process: Process) -> Instance | None:
    program, *words = process.argv
    name = program.rpartition("/")[2]
    if name == PROGRAM:
        line = flags.parse(words)
        return Instance(process, is_python=False, line=Invocation("run", line.values, line.faults), variables={})
    if not name.startswith("python"):
        return None
    while words and words[0].startswith("-") and words[0] != "-m":
        words = words[2 if words[0] in _WITH_A_VALUE else 1 :]
    if words[:2] == _AS_A_MODULE:
        words = words[2:]
    elif words and words[0].rpartition("/")[2].startswith(PROGRAM):  # the console script, or the one file
        words = words[1:]
    else:
        return None
    try:
        environment = procfs.variables(process.pid)
    except OSError:  # another user's, or it has ended
        environment = {}
    known = {flag.variable: environment[flag.variable] for flag in FLAGS.values() if environment.get(flag.variable)}
    return Instance(process, is_python=True, line=flags.parse(words), variables=known)
