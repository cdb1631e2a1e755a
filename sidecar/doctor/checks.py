"""All checks, from the ground up. Checks that cannot run are reported as unknown, with the reason; the rest goes on."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, TypeAlias

from sidecar.doctor import addresses, backend, conntrack, instances, listener, node, routes, rules, sidecar, traffic
from sidecar.doctor.findings import DECISIVE, Finding, Level, exit_code, unknown
from sidecar.doctor.view import View
from sidecar.errors import SidecarError
from sidecar.state.plan import plan

_SOON: Final = 1.5  # seconds in which all checks are done if there is time for a second look

Check: TypeAlias = Callable[[View], Iterator[Finding]]


def settings(view: View) -> Iterator[Finding]:
    """Yield whose settings these are, and the warnings about them."""
    if view.settings:
        yield Finding(Level.NOTE, view.settings)
    for warning in view.warnings:
        yield Finding(Level.WARNING, warning)


#: Topic → check, in this order: a finding is easier to understand after those before it.
CHECKS: Final[dict[str, Check]] = {
    "settings": settings,
    "sidecar": sidecar.sidecar,
    "program": node.program,
    "privileges": node.privileges,
    "commands": node.commands,
    "backend": backend.backend,
    "lock": node.lock,
    "kernel": node.kernel_support,
    "interface": addresses.interface,
    "address": addresses.address,
    "route": routes.route,
    "rules": rules.rules,
    "taken": traffic.taken,
    "policies": traffic.policies,
    "listener": listener.listener,
    "connect": listener.connect,
    "tls": listener.tls,
    "conntrack": conntrack.conntrack,
    "instances": instances.instances,
}


def diagnose(view: View) -> list[Finding]:
    """Return the findings of all checks, in their order. Raises Interrupted or Stopped, nothing else."""
    started = time.monotonic()
    first = conntrack.look(view)  # the other checks run between its two looks
    checks: dict[str, Check] = {**CHECKS, "conntrack": partial(conntrack.conntrack, first=first)}
    found = [each for topic, check in checks.items() for each in _found(view, topic, check)]
    is_soon = time.monotonic() - started < _SOON or any(each.level is Level.FAULT for each in found)
    if view.keepers.running and is_soon and not any(each.topic == "sidecar" for each in found):
        found = [*_fought_meanwhile(view, found), *found]
    return [*found, *_drift(view)] if exit_code(found) == 0 else found


def _fought_meanwhile(view: View, found: Sequence[Finding]) -> list[Finding]:
    """Look again, and return what is wrong with a sidecar that seemed to do its work at the first look."""
    if any(each.level is Level.UNKNOWN and each.topic in DECISIVE for each in found):
        return []
    view.look_again()
    if any(each.level is Level.FAULT for each in found) or plan(view.desired, view.observed()):
        return _found(view, "sidecar", partial(sidecar.sidecar, is_suspect=True))
    return []


def _found(view: View, topic: str, check: Check) -> list[Finding]:
    return [replace(_with_what_to_say_instead(each, view), topic=topic) for each in _guarded(check, view)]


def _with_what_to_say_instead(finding: Finding, view: View) -> Finding:
    """Return a finding without the commands that a sidecar that runs here would do by itself, or undo."""
    said = dict.fromkeys(view.instead[command] for command in finding.commands if command in view.instead)
    if not said:
        return finding
    commands = tuple(command for command in finding.commands if command not in view.instead)
    return replace(finding, commands=commands, remedy="; ".join(filter(None, (*said, finding.remedy))))


def _drift(view: View) -> Iterator[Finding]:
    """Yield that `run` would change something, if no fault says so: then the node is not in sync, as in `status`."""
    if actions := plan(view.desired, view.observed()):
        more = f", and {len(actions) - 1} more" if len(actions) > 1 else ""
        found = f"the sidecar would change something: {actions[0].todo}{more}"
        yield Finding(Level.NOTE, found, is_drift=True, topic="sync")


def _guarded(check: Check, view: View) -> Iterator[Finding]:
    try:
        yield from check(view)
    except SidecarError as error:
        yield unknown(error)
    except (OSError, ValueError) as error:
        yield Finding(Level.UNKNOWN, f"could not be checked: {error}")
