"""What several of doctor's checks look at, each looked at once; nothing is changed."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Final

from sidecar.errors import SidecarError
from sidecar.firewall.walk import Traffic, jumps
from sidecar.node.backends import Backend
from sidecar.node.command import Run
from sidecar.node.iproute import IpRoute
from sidecar.node.iptables import Seen
from sidecar.state.model import Address, Desired, Family, Link, LinkAddress, Observed
from sidecar.state.plan import obstacles, plan

#: How many chains of others are read for one address; a node can have tens of thousands.
MOST_CHAINS: Final = 200

#: Seconds after which no more chains of others are read, for whichever address.
PATIENCE: Final = 0.8


class Looks:
    """The node, as far as it was looked at so far. A look that failed fails again, without another try."""

    def __init__(self, desired: Desired, port: int, run: Run, backends: Mapping[Family, Backend], wish: str) -> None:
        """`backends` holds one for each family of the addresses, whether rules are wanted or not."""
        self.desired = desired
        self.port = port
        self.run = run
        self.backends = backends
        self.wish = wish
        self._links: tuple[Link, ...] | SidecarError | None = None
        self._seen: dict[Family, Seen | SidecarError] = {}
        self._listings: dict[tuple[Family, str], dict[str, tuple[str, ...]]] = {}
        self._walk_until: float | None = None

    def links(self) -> tuple[Link, ...]:
        """Return all interfaces; raise a SidecarError if they could not be looked at."""
        if self._links is None:
            try:
                self._links = IpRoute(self.run).observe()
            except SidecarError as error:
                self._links = error
        if isinstance(self._links, SidecarError):
            raise self._links
        return self._links

    def seen(self, family: Family) -> Seen:
        """Return what is known of our rules of a family; raise a SidecarError if they could not be looked at."""
        if family not in self._seen:
            try:
                wanted = tuple(rule for rule in self.desired.rules if rule.family == family)
                self._seen[family] = self.backends[family].look(wanted)
            except SidecarError as error:
                self._seen[family] = error
        found = self._seen[family]
        if isinstance(found, SidecarError):
            raise found
        return found

    def could_look(self, family: Family) -> bool:
        """Whether rules of a family can be looked at."""
        with contextlib.suppress(SidecarError):
            self.seen(family)
            return True
        return False

    def observed(self) -> Observed:
        """Return all of it; what could not be looked at is left out."""
        links = None
        seen = []
        with contextlib.suppress(SidecarError):
            links = self.links()
        for family in self.backends:
            with contextlib.suppress(SidecarError):
                seen.append(self.seen(family))
        copies = {rule: number for each in seen for rule, number in each.copies.items()}
        hindrances = {rule: found for each in seen for rule, found in each.hindrances.items()}
        return Observed(links, copies, hindrances)

    def is_complete(self) -> bool:
        """Whether all was seen, and is there."""
        observed = self.observed()
        is_seen = observed.links is not None and len(observed.copies) == len(self.desired.rules)
        return is_seen and not plan(self.desired, observed) and not any(obstacles(self.desired, observed))

    def places(self, address: Address) -> list[tuple[Link, LinkAddress]]:
        """Return where an address is, on whatever interface."""
        return [(link, found) for link in self.links() for found in link.addresses if found.ip == address.ip]

    def where(self, address: Address) -> str:
        """Return an address with the port, as one would type it."""
        return f"[{address.ip}]:{self.port}" if address.ip.version == 6 else f"{address.ip}:{self.port}"  # noqa: PLR2004 - the protocol's name

    def is_legacy(self) -> bool:
        """Whether legacy is asked for, or known to be in use."""
        return self.wish == "legacy" or any(backend.is_legacy for backend in self.backends.values())

    def is_untracked(self, address: Address) -> bool:
        """Whether the rules are there that keep the address out of connection tracking, and not known to be idle."""
        observed = self.observed()
        rules = [rule for rule in self.desired.rules if rule.table == "raw" and address.cidr in rule.match]
        idle = {rule for rule, hindrance in observed.hindrances.items() if hindrance.certain}
        return bool(rules) and all(observed.copies.get(rule) and rule not in idle for rule in rules)

    def chains(
        self, table: str, starts: Mapping[str, Traffic], family: Family, *, certain: bool
    ) -> tuple[dict[str, tuple[str, ...]], str]:
        """Return the chains that the traffic comes to from the chains `starts`; and what was left out, and why.

        Or may come to, if not `certain`. One process for each level of jumps.
        """
        self.seen(family)  # or there is no backend to be asked
        is_there = self.backends[family].sees(table)
        if is_there is None and table not in {rule.table for rule in self.desired.rules}:
            return {}, f"whether there is a table {table} in legacy cannot be read"
        if is_there is False:
            return {}, ""
        self._walk_until = self._walk_until or time.monotonic() + PATIENCE
        found: dict[str, tuple[str, ...]] = {}
        unread: set[str] = set()
        coming = dict(starts)
        while coming:
            known = self._listings.get((family, table), {})
            if len(found) + len(coming) > MOST_CHAINS or (self.is_late() and not coming.keys() <= known.keys()):
                return found, f"{len(coming)} or more chains of the table {table} were left out, to be done in time"
            level = self.listed(family, table, list(coming))
            unread |= coming.keys() - level.keys()
            found |= level
            coming = {
                target: coming[chain]
                for chain, lines in level.items()
                for target in jumps(lines, coming[chain], certain=certain)
                if target not in found and target not in unread
            }
        names = ", ".join(sorted(unread)[:3])
        return found, f"{names} of the table {table} cannot be listed by iptables" if found and unread else ""

    def is_late(self) -> bool:
        """Whether there is no time to look at more chains of others."""
        return self._walk_until is not None and time.monotonic() > self._walk_until

    def listed(self, family: Family, table: str, chains: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Return those of the chains that iptables can print; each is read once."""
        known = self._listings.setdefault((family, table), {})
        if new := [chain for chain in chains if chain not in known]:
            listed = self.backends[family].listed([(table, chain) for chain in new])
            known |= {chain: lines for (_, chain), lines in listed.items() if lines != ("?",)}
        return {chain: known[chain] for chain in chains if chain in known}
