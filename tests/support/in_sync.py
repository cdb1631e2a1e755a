"""A node as a run of the program leaves it, made by a few processes instead of dozens: for tests that begin there."""

import shlex

from sidecar.node import iproute
from sidecar.settings import invocation, sources
from sidecar.settings.options import desired_state
from sidecar.state.actions import AddAddress
from sidecar.state.model import Desired, Family
from support.namespace import Namespace


def put_in_place(namespace: Namespace, *flags: str, backend: str = "nft") -> None:
    """Put in place what these flags ask for, on an interface that exists."""
    goal = desired_state(sources.load(invocation.parse(flags))[0])
    adds = [shlex.join(iproute.command(AddAddress(each, goal.scope))[0]) for each in goal.addresses]
    families: set[Family] = {rule.family for rule in goal.rules}
    restores = [_restore(goal, family, backend) for family in sorted(families)]
    namespace.run("sh", "-e", "-c", "\n".join(adds + restores))


def _restore(goal: Desired, family: Family, backend: str) -> str:
    """Return the command that adds the rules of a family: iptables-restore, with its input."""
    rules = [rule for rule in goal.rules if rule.family == family]
    lines = []
    for table in dict.fromkeys(rule.table for rule in rules):
        lines.append(f"*{table}")
        for rule in rules:
            if rule.table == table:
                verb = f"-I {rule.chain} 1" if goal.insert else f"-A {rule.chain}"
                lines.append(f"{verb} {shlex.join(rule.match)}")
        lines.append("COMMIT")
    program = f"{'iptables' if family == 4 else 'ip6tables'}-{backend}-restore"
    return "\n".join((f"{program} --noflush <<'END'", *lines, "END"))
