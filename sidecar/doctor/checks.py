"""doctor: every check, from the ground up. What cannot be looked at is told as unknown, and the rest goes on."""

from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

from sidecar.doctor import check_network, check_node, check_others, check_use
from sidecar.doctor.findings import Finding, Level
from sidecar.doctor.view import Looks
from sidecar.errors import NodeError, SidecarError

Check: TypeAlias = Callable[[Looks], Iterator[Finding]]

#: Topic → check, in this order: what a check says is easier to understand after those before it.
CHECKS: Final[dict[str, Check]] = {
    "program": check_node.program,
    "privileges": check_node.may,
    "commands": check_node.commands,
    "backend": check_node.backend,
    "lock": check_node.lock,
    "kernel": check_node.supported,
    "interface": check_network.interface,
    "address": check_network.address,
    "route": check_network.route,
    "rules": check_network.rules,
    "taken": check_others.taken,
    "policies": check_others.policies,
    "listener": check_use.listener,
    "conntrack": check_use.tracked,
    "instances": check_use.instances,
}


def diagnose(looks: Looks) -> list[Finding]:
    """Return what all checks found, in their order. Raises Interrupted or Stopped, nothing else."""
    return [finding for topic, check in CHECKS.items() for finding in _guarded(topic, check, looks)]


def _guarded(topic: str, check: Check, looks: Looks) -> Iterator[Finding]:
    try:
        yield from check(looks)
    except SidecarError as error:
        yield Finding(Level.UNKNOWN, topic, str(error), facts=error.facts, node_lacks=isinstance(error, NodeError))
    except (OSError, ValueError) as error:
        yield Finding(Level.UNKNOWN, topic, f"could not be looked at: {error}")
