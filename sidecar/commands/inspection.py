"""The commands `status` and `plan`: they look at the node, and change nothing."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from sidecar.commands.render import PLAN, BackendInUse, Plan, Status, Step
from sidecar.daemon.wakeup import Wakeup
from sidecar.errors import Interrupted, SidecarError, pasteable
from sidecar.log.setup import collect_warnings
from sidecar.node.backends import Backend
from sidecar.node.command import Commands
from sidecar.node.events import Events
from sidecar.node.iproute import IpRoute
from sidecar.node.netlink import Watch
from sidecar.node.reconcile import Reconciler
from sidecar.settings.options import Options, desired_state
from sidecar.state import inventory
from sidecar.state.actions import Action, Failure
from sidecar.state.model import Desired, Family
from sidecar.state.plan import notices, obstacles, whole_plan

#: Seconds between two looks of --watch, if nothing happens.
WATCH_INTERVAL: Final = 2.0


class Inspection:
    """Looks at a node for what the options want."""

    def __init__(
        self, options: Options, warnings: Sequence[str] = (), origin: str = "", longest_wait: float = math.inf
    ) -> None:
        """`origin` says whose settings these are, if they are not one's own. Raises OSError if nothing can be run."""
        self._logged = collect_warnings(options)
        self._options = options
        self._warnings = tuple(warnings)
        self._origin = origin
        self._wanted = desired_state(options)
        self._commands = Commands(options.command_timeout)
        # Nothing is changed here: a signal ends what runs, and with it the look.
        self._wakeup = Wakeup(on_stop=self._commands.interrupt, on_interrupt=self._commands.interrupt)
        self._backends = backends(options, self._wanted, self._commands, longest_wait)
        for each in self._backends.values():
            each.create_nothing()
        self._reconciler = Reconciler(
            self._wanted, IpRoute(self._commands.run), self._backends, begin=self._commands.begin
        )

    def status(self) -> Status:
        """Return what is there now."""
        observed, unseen = self._reconciler.observe()
        failures = (*unseen, *obstacles(self._wanted, observed))
        in_sync = not failures and inventory.is_in_sync(self._wanted, observed)
        told = [str(notice) for notice in notices(self._wanted, observed) if notice.certain]
        return Status(
            items=inventory.survey(self._wanted, observed),
            in_sync=in_sync,
            exit_code=exit_code(failures, in_sync=in_sync),
            backends=tuple(_in_use(family, each) for family, each in self._backends.items() if each.reason),
            settings=tuple(self._options.changed()),
            origin=self._origin,
            warnings=(*self._warnings, *self._logged, *told),
            failures=tuple(map(str, failures)),
        )

    def plan(self) -> Plan:
        """Return what `run` would do now."""
        observed, unseen = self._reconciler.observe()
        todo, failed = steps(self._reconciler, whole_plan(self._wanted, observed))
        failures = (*unseen, *obstacles(self._wanted, observed), *failed)
        return Plan(
            steps=todo,
            failures=tuple(map(str, failures)),
            exit_code=exit_code(failures, in_sync=not todo),
            schema=PLAN,
            nothing="in sync: nothing to do",
            origin=self._origin,
            warnings=(*self._warnings, *self._logged),
        )

    def follow(self, is_read: Callable[[], bool]) -> Iterator[Status]:
        """Yield what is there, and again whenever it is another, until a signal comes or nobody reads it any more."""
        events = Events(Watch.of(self._wanted))
        last: Status | None = None
        with contextlib.suppress(Interrupted):
            while not self._wakeup.stopping and is_read():
                status = self.status()
                if status != last:
                    yield status
                last = status
                self._wakeup.wait(WATCH_INTERVAL, events)


def backends(options: Options, wanted: Desired, commands: Commands, longest_wait: float) -> dict[Family, Backend]:
    """Return what observes and changes the rules of each family; for the lock it waits `longest_wait` s at most."""
    families: list[Family] = sorted({rule.family for rule in wanted.rules})
    wait = min(options.iptables_wait, longest_wait)
    return {family: Backend(commands.run, family, options.iptables_backend, wait) for family in families}


def steps(reconciler: Reconciler, actions: Sequence[Action]) -> tuple[tuple[Step, ...], list[Failure]]:
    """Return each action with its commands, ready to be pasted; and those for which it could not be found out."""
    found: list[Step] = []
    failed = []
    for action in actions:
        try:
            found.append((action, tuple(pasteable(*each) for each in reconciler.commands([action]))))
        except SidecarError as error:
            failed.append(Failure(action.todo, error))
    return tuple(found), failed


def exit_code(failures: Sequence[Failure], *, in_sync: bool) -> int:
    """Return what the worst of the failures means; without any, whether nothing is to be done."""
    return max((failure.error.exit_code for failure in failures), default=0 if in_sync else 1)


def _in_use(family: Family, backend: Backend) -> BackendInUse:
    return BackendInUse(family, backend.command, str(backend.release), backend.reason)
