"""Parses what `ip -json` prints of routes and neighbours. Pure, no I/O."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, Final, TypeAlias

from sidecar.state.model import Family, IPAddress

IPNetwork: TypeAlias = IPv4Network | IPv6Network

UNICAST: Final = "unicast"

#: How `ip -N` prints the types of routes (linux/rtnetlink.h); it leaves out the type of a unicast route.
_TYPES: Final = {"1": UNICAST, "2": "local", "6": "blackhole", "7": "unreachable", "8": "prohibit"}

_EVERYTHING: Final = {4: "0.0.0.0/0", 6: "::/0"}

_NOBODY: Final = frozenset(("FAILED", "INCOMPLETE"))  # states of a neighbour that has not answered


@dataclass(frozen=True, slots=True)
class Route:
    """One route, or one next hop of it."""

    network: IPNetwork
    kind: str  # unicast, blackhole, …; empty: another one
    interface: str
    table: str  # its number; empty: main
    gateway: str = ""
    is_down: bool = False  # whether the interface has no carrier
    protocol: str = ""
    metric: int = 0


def routes(text: str, family: Family) -> tuple[Route, ...]:
    """Parse `ip -json -N route show table all` of one family."""
    return tuple(each for shown in _objects(text) for each in _hops(shown, family))


def _hops(shown: dict[str, Any], family: Family) -> Iterator[Route]:
    network = ip_network(_EVERYTHING[family] if shown["dst"] == "default" else shown["dst"])
    for hop in shown.get("nexthops", [shown]):
        flags = (*shown.get("flags", ()), *hop.get("flags", ()))
        yield Route(
            network,
            _TYPES.get(str(shown.get("type", "1")), ""),
            hop.get("dev", shown.get("dev", "")),
            str(shown.get("table", "")),
            hop.get("gateway") or hop.get("via", {}).get("host", ""),
            is_down="linkdown" in flags or "dead" in flags,
            protocol=str(shown.get("protocol", "")),
            metric=shown.get("metric", 0),
        )


def neighbours(text: str) -> tuple[tuple[str, IPAddress], ...]:
    """Parse `ip -json neighbour show`: the interface and the address of each that has answered."""
    return tuple(
        (shown["dev"], ip_address(shown["dst"]))
        for shown in _objects(text)
        if not _NOBODY.intersection(shown.get("state", ())) and "dev" in shown
    )


def _objects(text: str) -> list[dict[str, Any]]:
    """Return the objects of a JSON array; `ip` prints nothing, or an empty array, if it has none."""
    # Not strict: names of interfaces may hold control characters, which `ip` prints as they are.
    shown = json.loads(text, strict=False) if text.strip() else []
    if not isinstance(shown, list):
        raise ValueError(f"not the output of `ip -json`: {text[:80]!r}")  # noqa: TRY004 - as for any other text
    return [each for each in shown if each and isinstance(each, dict)]
