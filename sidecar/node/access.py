"""Wires commands, addresses, rules and the reconciler together for a set of options."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from sidecar.node import iproute
from sidecar.node.backends import Backend
from sidecar.node.backends_shown import ShownBackend, is_foreign, of_running_sidecar
from sidecar.node.claims import Claims
from sidecar.node.command import Commands
from sidecar.node.iproute import IpRoute
from sidecar.node.reconcile import Reconciler
from sidecar.settings.options import Options, desired_state
from sidecar.state.actions import Action
from sidecar.state.model import Desired, Family, RuleSet
from sidecar.state.plan import WAS_FOREIGN


@dataclass(frozen=True, slots=True)
class Access:
    """The means to observe a node and to change it."""

    desired: Desired
    commands: Commands
    iproute: IpRoute
    backends: Mapping[Family, Backend]

    @property
    def programs(self) -> list[str]:
        """The programs that must be installed."""
        return [iproute.COMMAND, *(name for each in self.backends.values() for name in each.programs)]

    def reconciler(
        self, on_change: Callable[[Action], None] | None = None, on_sync: Callable[[], None] = lambda: None
    ) -> Reconciler:
        """Return the reconciler for the desired state; it calls `on_change` for each change, `on_sync` if all is so."""
        return Reconciler(self.desired, self.iproute, self.backends, on_change=on_change, on_sync=on_sync)

    def for_cleanup(self, desired: Desired) -> "Access":
        """Return the access that removes `desired`: rules in both backends, without creating any table."""
        backends = {family: backend.for_cleanup() for family, backend in self.backends.items()}
        return replace(self, desired=desired, backends=backends)


def access(  # noqa: PLR0913 - what to do, and four ways in which the commands differ, by keyword
    options: Options,
    commands: Commands,
    *,
    creates: bool = True,
    has_rules: bool = False,
    longest_look: float = math.inf,
    mine: Claims | None = None,
) -> Access:
    """Return the access that these options need.

    Without `creates`, observing creates no table. With `has_rules`, each family of the addresses gets a backend, even
    if no rules are desired. Commands that look wait for the xtables lock for at most `longest_look` seconds. With
    `mine`, it is for an instance that keeps rules, and shows others by these claims where; otherwise it looks where the
    running one keeps them, and waits for the interface where that does.
    """
    desired = desired_state(options)
    if mine is None and is_foreign(desired.interface):
        desired = replace(desired, waits_because=WAS_FOREIGN)
    of_rules = {rule.family for rule in desired.rules}
    of_addresses: set[Family] = {address.ip.version for address in desired.addresses}

    def backend(family: Family) -> Backend:
        rules = [RuleSet(each.ip, options.port) for each in desired.addresses if each.ip.version == family]
        return Backend(
            commands.run,
            family,
            options.iptables_backend,
            options.iptables_wait,
            creates=creates,
            longest_look=longest_look,
            shown=ShownBackend(family, rules, mine) if mine else None,
            of_running=None if mine else partial(of_running_sidecar, commands.run, family, rules),
        )

    backends = {each: backend(each) for each in sorted(of_addresses if has_rules else of_rules)}
    return Access(desired, commands, IpRoute(commands.run), backends)
