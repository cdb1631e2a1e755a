"""The node as doctor's checks see it: each part is observed once, and nothing is changed."""

import contextlib
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Final, TypeVar, cast

from sidecar.doctor.keepers import Keepers
from sidecar.doctor.probe import Answer
from sidecar.errors import CommandError, OutputUnreadable, SidecarError, pasteable
from sidecar.node import iproute
from sidecar.node.backends import Backend
from sidecar.node.command import Command, Run
from sidecar.node.iproute import IpRoute
from sidecar.node.proc import Process
from sidecar.node.seen import Seen
from sidecar.state.actions import Action, RuleAction
from sidecar.state.model import Address, Desired, Family, IPAddress, Link, LinkAddress, Observed, socket_name
from sidecar.text import quoted

PATIENCE: Final = 4.0  # seconds after which no more rules of other programs are read; a busy node takes its time
NO_TIME: Final = "for lack of time"  # why something was left out

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class View:
    """The node, as far as it has been observed. What could not be observed fails again, without another try."""

    def __init__(  # noqa: PLR0913 - what to look for, the means to look, and by keyword the rest
        self,
        desired: Desired,
        port: int,
        run: Run,
        backends: Mapping[Family, Backend],
        *,
        warnings: Sequence[str] = (),
        time_left: Callable[[], float] = lambda: math.inf,
    ) -> None:
        """`backends` holds one for each family of the addresses; `warnings` are those of the settings.

        `time_left` returns the seconds after which somebody who waits for the findings should have them.
        """
        self.desired = desired
        self.port = port
        self.run = run
        self.backends = backends
        self.warnings = warnings
        self.origins: Sequence[IPAddress] = ()  # the pods' addresses to look from; empty: those that can be found
        self.time_left = time_left
        self.listening = dict[Address, set[Process]]()
        """The addresses on which something listens, and what can be seen of it; the check of that fills it in."""
        self.settings = ""  # those that were inherited, and from whom, in words; the command fills it in
        self.keepers = Keepers()
        self.instead: dict[str, str] = {}
        """Commands that are not to be shown, as a sidecar that runs here does or undoes them; and what to say instead.
        """
        self.answers = dict[Address, Answer]()
        """What a connection to an address has brought; the check of that fills it in."""
        self._links: dict[str, tuple[Link, ...] | SidecarError] = {}
        self._seen: dict[Family, Seen | SidecarError] = {}
        self._walk_until: float | None = None
        self._found: dict[Hashable, object] = {}

    def pause(self, seconds: float) -> bool:
        """Wait, as long as there is time; return whether it was as long as that."""
        left = self.time_left()
        time.sleep(max(min(seconds, left), 0))
        return left >= seconds

    def links(self) -> tuple[Link, ...]:
        """Return all interfaces; raise a SidecarError if they could not be listed."""
        return _once(self._links, "", IpRoute(self.run).observe)

    def seen(self, family: Family) -> Seen:
        """Return what is known of our rules of a family; raise a SidecarError if they could not be listed."""
        rules = tuple(rule for rule in self.desired.rules if rule.family == family)
        return _once(self._seen, family, lambda: self.backends[family].look(rules))

    def look_again(self) -> None:
        """Forget what was observed: the next check observes it anew."""
        self._links.clear()
        self._seen.clear()
        self._found.clear()

    def has_seen(self, family: Family) -> bool:
        """Whether the rules of a family could be listed."""
        with contextlib.suppress(SidecarError):
            self.seen(family)
            return True
        return False

    def parsed(self, argv: tuple[str, ...], parse: Callable[[str], _Value]) -> _Value:
        """Return what a command that looks prints, parsed; raise a SidecarError if it fails."""
        return self.once(argv, lambda: self._parse(argv, parse))

    def once(self, key: Hashable, find_out: Callable[[], _Value]) -> _Value:
        """Return what was found out the first time under this key; or raise the SidecarError that it then was."""
        return cast("_Value", _once(self._found, key, find_out))

    def _parse(self, argv: tuple[str, ...], parse: Callable[[str], _Value]) -> _Value:
        result = self.run(*argv)
        if result.exit:
            raise CommandError(argv, "", f"exited with {result.exit}", result.stderr)
        try:
            return parse(result.stdout)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise OutputUnreadable(argv, "", quoted(str(error))) from error

    def observed(self) -> Observed:
        """Return all of it; what could not be observed is left out."""
        links = None
        with contextlib.suppress(SidecarError):
            links = self.links()
        seen = [self.seen(family) for family in self.backends if self.has_seen(family)]
        copies = {rule: number for each in seen for rule, number in each.copies.items()}
        hindrances = {rule: found for each in seen for rule, found in each.hindrances.items()}
        unknown = {rule: why for each in seen for rule, why in each.unknown.items()}
        dormant = frozenset((family, table) for family in self.backends for table in self.dormant(family))
        return Observed(links, copies, hindrances, unknown=unknown, dormant=dormant)

    def dormant(self, family: Family) -> frozenset[str]:
        """Return the tables of a family that have no effect, as far as that is known."""
        return self.seen(family).dormant if self.has_seen(family) else frozenset()

    def places(self, address: Address) -> list[tuple[Link, LinkAddress]]:
        """Return the interfaces that have an address, and the address as found on each."""
        return [(link, found) for link in self.links() for found in link.addresses if found.ip == address.ip]

    def where(self, address: Address) -> str:
        """Return an address with the port, as one would type it."""
        return socket_name(address.ip, self.port)

    def is_legacy(self) -> bool:
        """Whether legacy is asked for, or known to be in use."""
        return any(backend.is_legacy for backend in self.backends.values())

    def commands(self, *actions: Action) -> tuple[str, ...]:
        """Return the commands for these actions, ready to paste; none if they cannot be determined."""
        try:
            commands = tuple(pasteable(*each) for action in actions for each in self._commands(action))
        except SidecarError:
            return ()
        if instead := self.keepers.instead(actions):
            self.instead |= dict.fromkeys(commands, instead)
        return commands

    def _commands(self, action: Action) -> Sequence[Command]:
        if isinstance(action, RuleAction):
            return self.backends[action.rule.family].commands(action)
        return [iproute.command(action)]

    @property
    def walk_until(self) -> float:
        """Until when rules of other programs are read, on the monotonic clock; the time begins with the first use."""
        self._walk_until = self._walk_until or time.monotonic() + PATIENCE
        return self._walk_until

    def is_late(self) -> bool:
        """Whether there is no time to read more rules of other programs."""
        return time.monotonic() > self.walk_until


def _once(results: dict[_Key, _Value | SidecarError], key: _Key, observe: Callable[[], _Value]) -> _Value:
    if key not in results:
        try:
            results[key] = observe()
        except SidecarError as error:
            results[key] = error
    result = results[key]
    if isinstance(result, SidecarError):
        raise result
    return result
