"""What was measured of a fleet."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from support.fleet.kernel import Outage
from support.table import Row, table

SLOW: Final = 1.0  # seconds
_MOST_LINES: Final = 5  # of what is wrong with a node


@dataclass(frozen=True)
class Report:
    """The figures of a run; times of outages are relative to its beginning."""

    seed: int
    nodes: Mapping[str, int]  # by backend
    seconds: float  # of chaos
    load: tuple[float, float]  # of the machine, as `uptime` says: before and after
    faults: Mapping[str, int]
    update: tuple[float, float]  # when it began and ended
    outages: Sequence[Outage]
    lost: int  # times that the kernel had more to say than could be heard
    scrapes: Mapping[str, int]
    cpu: float  # seconds of all sidecars and their commands, during the chaos
    starts: int  # of sidecars, in that time
    start_cpu: float  # seconds that a start took, before it
    memory: Sequence[float]  # MiB of PSS, of each sidecar, in the end
    wrong: Mapping[str, Sequence[str]]
    foreign_changes: Mapping[str, Sequence[str]]

    @property
    def is_right(self) -> bool:
        return not (self.wrong or self.foreign_changes)

    def repairs(self) -> list[Row]:
        """Return the rows of the table of repairs: by kind, and apart where nobody could repair for a while."""
        free = sorted({each.kind for each in self.outages if not each.hindered})
        held_up = sorted({each.hindered for each in self.outages} - {""})
        return [
            *(_row(kind, [each for each in self.outages if (each.kind, each.hindered) == (kind, "")]) for kind in free),
            *(_row(f"any, while {why}", [each for each in self.outages if each.hindered == why]) for why in held_up),
        ]

    def table(self) -> str:
        return table(self.repairs())

    def slow(self) -> list[Outage]:
        """Return the repairs that took longer than they should, though nothing kept the sidecar from its work."""
        return [each for each in self.outages if each.seconds > SLOW and not each.hindered]

    def as_json(self) -> dict[str, Any]:
        """Return all figures; of the repairs, times are in seconds since the beginning."""
        shown = {name: value for name, value in vars(self).items() if name != "outages"}
        repairs = [
            {"node": each.node, "kind": each.kind, "at": round(each.gone, 3), "seconds": round(each.seconds, 4)}
            | ({"hindered": each.hindered} if each.hindered else {})
            for each in self.outages
        ]
        return shown | {"is_right": self.is_right, "repairs": self.repairs(), "each_repair": repairs}

    def as_text(self) -> Iterator[str]:
        """Yield the lines that a person reads."""
        backends = ", ".join(f"{number} {backend}" for backend, number in self.nodes.items())
        yield f"{sum(self.nodes.values())} nodes ({backends}), {self.seconds:.0f} s, --seed={self.seed}"
        yield f"load of the machine: {self.load[0]:.1f} before, {self.load[1]:.1f} after"
        yield f"faults: {', '.join(f'{name} {number}' for name, number in sorted(self.faults.items()))}"
        yield f"update of all: from second {self.update[0]:.0f} to {self.update[1]:.0f}"
        yield f"\nfrom the kernel's message that something is gone to the one that it is back:\n\n{self.table()}\n"
        for each in sorted(self.slow(), key=lambda each: -each.seconds):
            yield f"slow: {each.kind} on {each.node} at second {each.gone:.1f}: {each.seconds:.2f} s"
        if self.lost:
            yield f"{self.lost} times the kernel had more to say than could be heard: some repairs are not in the table"
        yield f"scrapes: {', '.join(f'{number:,} {name}' for name, number in self.scrapes.items())}"
        starts = f"{self.starts} starts among it; a start alone took {self.start_cpu:.2f} s"
        yield f"CPU: {self.cpu:.1f} s of all sidecars, {starts}"
        if self.memory:
            median = statistics.median(self.memory)
            yield f"memory (PSS): {sum(self.memory):.0f} MiB of {len(self.memory)} sidecars, {median:.1f} MiB each"
        for what, found in (("wrong", self.wrong), ("state of others that changed", self.foreign_changes)):
            yield f"{what}: {len(found) or 'none'}"
            for name, lines in found.items():
                yield from (f"  {name}: {line}" for line in lines[:_MOST_LINES])
                if len(lines) > _MOST_LINES:
                    yield f"  {name}: and {len(lines) - _MOST_LINES} more"


def _row(what: str, outages: Sequence[Outage]) -> Row:
    ordered = sorted(each.seconds * 1000 for each in outages)
    at = {"median ms": 0.5, "p99 ms": 0.99}
    quantiles = {name: ordered[round(share * (len(ordered) - 1))] for name, share in at.items()}
    return {"gone": what, "repairs": len(ordered), **quantiles, "most ms": ordered[-1]}
