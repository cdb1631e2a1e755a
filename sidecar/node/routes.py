"""Parses what `ip -json` prints of routes and neighbours. Pure, no I/O."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, Final, TypeAlias

from sidecar.state.model import Family, IPAddress

IPNetwork: TypeAlias = IPv4Network | IPv6Network

UNICAST: Final = "unicast"
THROW: Final = "throw"  # the lookup goes on in the next table

MAIN: Final = "254"  # the numbers of the tables main and local (linux/rtnetlink.h)
LOCAL: Final = "255"

#: Types of routes that end a packet's way.
DEAD: Final = frozenset(("blackhole", "unreachable", "prohibit"))

#: How `ip -N` prints the types of routes (linux/rtnetlink.h); it leaves out the type of a unicast route.
_TYPES: Final = {"1": UNICAST, "2": "local", "6": "blackhole", "7": "unreachable", "8": "prohibit", "9": THROW}

_EVERYTHING: Final = {4: "0.0.0.0/0", 6: "::/0"}

_LINE_FAILED: Final = re.compile(r"Command failed -:(\d+)")  # what `ip -batch` says of a line that failed

_NOBODY: Final = frozenset(("FAILED", "INCOMPLETE"))  # states of a neighbour that has not answered


#: Names of tables whose number is the same on each node.
_NAMES: Final = {"253": "default", MAIN: "main", LOCAL: "local"}


def table_name(number: str) -> str:
    """Return how `ip` calls a table; any of them goes by its number, too."""
    return _NAMES.get(number, number)


@dataclass(frozen=True, slots=True)
class Route:
    """One route, or one next hop of it."""

    network: IPNetwork
    kind: str  # unicast, blackhole, …; empty: another one
    interface: str
    table: str  # its number
    gateway: str = ""
    is_down: bool = False  # whether the interface has no carrier
    metric: int = 0

    def __str__(self) -> str:
        words = [] if self.kind == UNICAST else [self.kind]
        words += ["default" if not self.network.prefixlen else str(self.network)]
        words += ["via", self.gateway] if self.gateway else []
        words += ["dev", self.interface] if self.interface and self.kind == UNICAST else []
        words += ["table", table_name(self.table)] if self.table != MAIN else []
        return " ".join(words)


def routes(text: str, family: Family) -> tuple[Route, ...]:
    """Parse `ip -json -N route show table all` of one family."""
    return tuple(each for shown in objects(text) for each in _hops(shown, family))


def _hops(shown: dict[str, Any], family: Family) -> Iterator[Route]:
    network = ip_network(_EVERYTHING[family] if shown["dst"] == "default" else shown["dst"])
    for hop in shown.get("nexthops", [shown]):
        flags = (*shown.get("flags", ()), *hop.get("flags", ()))
        yield Route(
            network,
            _TYPES.get(str(shown.get("type", "1")), ""),
            hop.get("dev", shown.get("dev", "")),
            str(shown.get("table", MAIN)),
            hop.get("gateway") or hop.get("via", {}).get("host", ""),
            is_down="linkdown" in flags or "dead" in flags,
            metric=shown.get("metric", 0),
        )


def neighbours(text: str) -> tuple[tuple[str, IPAddress], ...]:
    """Parse `ip -json neighbour show`: the interface and the address of each that has answered."""
    return tuple(
        (shown["dev"], ip_address(shown["dst"]))
        for shown in objects(text)
        if not _NOBODY.intersection(shown.get("state", ())) and "dev" in shown
    )


@dataclass(frozen=True, slots=True)
class Leads:
    """Where a packet goes, as the kernel says."""

    kind: str  # local, unicast, …; empty: nowhere
    interface: str = ""
    table: str = ""
    error: str = ""  # why it goes nowhere

    def __str__(self) -> str:
        table = f" table {self.table}" if self.table else ""
        return self.error or f"{self.kind} dev {self.interface}{table}"


def leads(number: int, stdout: str, stderr: str) -> tuple[Leads, ...]:
    """Parse what `ip -json -force -batch -` says to so many lines of `route get`, in their order."""
    failed: dict[int, str] = {}
    said = ""
    for line in stderr.splitlines():
        if found := _LINE_FAILED.fullmatch(line):
            failed[int(found[1])] = said
        else:
            said = line.removeprefix("RTNETLINK answers: ").removeprefix("Error: ")
    shown = [each for line in stdout.split("\n") for each in objects(line)[:1]]
    if len(shown) + len(failed) != number:
        raise ValueError(f"{number} routes were asked for, and {len(shown) + len(failed)} told")
    told = iter(shown)
    return tuple(
        Leads("", error=failed[line]) if line in failed else _leads(next(told)) for line in range(1, number + 1)
    )


def _leads(shown: dict[str, Any]) -> Leads:
    kind = str(shown.get("type", UNICAST))
    if kind in DEAD:  # as IPv6 shows them
        return Leads("", error=kind)
    return Leads(kind, str(shown.get("dev", "")), str(shown.get("table", "")))


def objects(text: str) -> list[dict[str, Any]]:
    """Return the objects of a JSON array; `ip` prints nothing, or an empty array, if it has none."""
    # Not strict: names of interfaces may hold control characters, which `ip` prints as they are.
    shown = json.loads(text, strict=False) if text.strip() else []
    if not isinstance(shown, list):
        raise ValueError(f"not the output of `ip -json`: {text[:80]!r}")  # noqa: TRY004 - as for any other text
    return [each for each in shown if each and isinstance(each, dict)]
