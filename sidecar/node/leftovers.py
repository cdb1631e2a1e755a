"""Removes what an earlier instance with other settings has left, once nobody needs it.

What the record (record.py) names is only where to look. Of that, the cleanup removes exact addresses and rules, as it
does for its own settings, and only those that no running instance claims; it holds their claims meanwhile, so that an
instance that starts waits.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final

from loguru import logger

from sidecar.errors import reason
from sidecar.node import claims, instances, record
from sidecar.node.access import Access, access
from sidecar.node.claims import Claims
from sidecar.node.command import Commands
from sidecar.node.record import Entry, Record, RecordUnusable
from sidecar.settings.options import Options
from sidecar.state import desired
from sidecar.state.actions import Action, Report
from sidecar.state.model import Claim

#: Seconds that what a younger instance has set up stays after that one ended. kubelet starts a container again after at
#: most 300 s, and so much is no sign that it does not come back. What an older one has set up is replaced, and goes.
RETURN: Final = 600.0

RETRY: Final = 60.0  # seconds until the next try to remove what could not be removed


@dataclass(frozen=True, slots=True)
class Part:
    """Entries that share an interface and a port, and the means to remove them."""

    entries: tuple[Entry, ...]
    node: Access
    port: int

    @property
    def claims(self) -> tuple[Claim, ...]:
        return desired.claims(self.node.desired, self.port)

    def remove(self, deadline: float, on_change: Callable[[Action], None] | None) -> tuple[frozenset[Claim], Report]:
        """Remove what nobody needs; return what was needed, and how it went."""
        mine = Claims()
        mine.take(self.claims, is_over=lambda: True)
        try:
            kept = mine.claimed_by_others() | self.needed()
            return kept, self.going(kept).reconciler(on_change).cleanup(deadline)
        finally:
            mine.give_back()

    def needed(self) -> frozenset[Claim]:
        """Return what processes need of it that cannot claim it."""
        return instances.needed().intersection(self.claims)

    def going(self, kept: Collection[Claim]) -> Access:
        """Return the access that removes this except what is kept."""
        return self.node.for_cleanup(desired.without(self.node.desired, self.port, kept))


class Leftovers:
    """What earlier instances have left; `remove` removes it, pass by pass, as soon as nobody needs it."""

    def __init__(self, options: Options, commands: Commands, on_change: Callable[[Action], None] | None = None) -> None:
        self._options = options
        self._commands = commands
        self._on_change = on_change
        self._mine = record.entries(options)
        self._my_claims = frozenset[Claim]().union(*(each.claims for each in self._mine))
        self._record = Record()
        self._version: object = None
        self._left: list[Entry] = []
        self._older: frozenset[Entry] = frozenset()
        self._unclaimed_since: dict[Entry, float] = {}
        self._not_before = 0.0
        self._told = ""

    def begin(self) -> None:
        """Record what this instance will keep, and look at what others have left."""
        self._change(added=self._mine)
        self._look()
        self._older = frozenset(self._left)

    def forget(self, kept: Collection[Claim]) -> None:
        """Take off the record what this instance has removed itself."""
        self._change(removed=[each for each in self._mine if not each.claims.intersection(kept)])

    def remove(self) -> None:
        """Remove what is left and nobody needs; called when everything desired is in place."""
        if self._record.version() != self._version:
            self._change(added=self._mine)  # somebody may have emptied the directory
            self._look()
        if not self._left or time.monotonic() < self._not_before:
            return
        try:
            self._remove_what_is_due()
        except OSError as error:
            self._tell(f"cannot see whether another instance needs what is left on this node: {reason(error)}")

    def _remove_what_is_due(self) -> None:
        due = [each for each in self._left if self._is_due(each)]
        if not due:
            return
        self._not_before = time.monotonic() + RETRY
        for report in self._remove(due, time.monotonic() + self._options.cleanup_timeout):
            for failure in report.failures:
                self._tell(f"what an earlier instance has set up is still there: {failure}")
        self._look()

    def clean_up(self, deadline: float) -> list[Report]:
        """Remove for a cleanup what is left and nobody needs, whoever may come back for it."""
        self._look()
        return self._remove(self._left, deadline)

    def shown(self) -> Iterator[Access]:
        """Yield the accesses that `clean_up` would use. Raises OSError if it cannot be seen what is claimed."""
        self._look()
        for part in self._parts(self._left):
            yield part.going(part.needed() | claims.held(part.claims))

    def _remove(self, left: Iterable[Entry], deadline: float) -> list[Report]:
        """Remove what nobody needs, and take it off the record, except what is needed by others."""
        reports, gone = [], list[Entry]()
        for part in self._parts(left):
            kept, report = part.remove(deadline, self._on_change)
            reports.append(report)
            if report.in_sync:
                gone += (each for each in part.entries if not (each.claims & kept) - self._my_claims)
        self._change(removed=gone)
        return reports

    def _parts(self, left: Iterable[Entry]) -> Iterator[Part]:
        def alike(entry: Entry) -> tuple[str, int]:
            return entry.interface, entry.port

        for (interface, port), group in groupby(sorted(left, key=alike), key=alike):
            some = tuple(group)
            options = replace(
                self._options,
                ip_address=tuple(dict.fromkeys(each.ip for each in some)),
                interface=interface,
                port=port or self._options.port,
                setup_iptables=bool(port),
            )
            yield Part(some, access(options, self._commands), options.port)

    def _is_due(self, entry: Entry) -> bool:
        """Whether no instance claims the rules or the address, and none will come back for it."""
        if claims.held(entry.claims) >= entry.claims:
            self._unclaimed_since.pop(entry, None)
            return False
        since = self._unclaimed_since.setdefault(entry, time.monotonic())
        return entry in self._older or time.monotonic() >= since + RETURN

    def _look(self) -> None:
        self._version = self._record.version()
        try:
            found = self._record.read()
        except RecordUnusable as error:
            self._tell_that_unusable(error)
            return
        health_port = self._options.health_address.port
        self._left = [
            each for each in found if not each.claims <= self._my_claims and each.may_be_replaced_by(health_port)
        ]

    def _change(self, *, added: Collection[Entry] = (), removed: Collection[Entry] = ()) -> None:
        if not (added or removed):
            return
        try:
            self._record.change(added=added, removed=removed)
        except RecordUnusable as error:
            self._tell_that_unusable(error)

    def _tell_that_unusable(self, error: RecordUnusable) -> None:
        self._tell(
            f"no record of what is set up ({error}): what an instance with another address, interface or port has set "
            f"up may be left on this node; `cleanup` with those settings removes it"
        )

    def _tell(self, text: str) -> None:
        """Log a warning, unless it was the last one."""
        if text != self._told:
            self._told = text
            logger.warning(text)
