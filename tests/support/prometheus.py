"""Lets Prometheus' own evaluation judge what was scraped: promtool's rule tests (`promtool test rules`)."""

import json
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from support.fleet.scrapes import values
from support.tools import tool

JOB: Final = "apiserver-proxy-sidecar"
RULES: Final = Path(__file__).parents[2] / "deploy" / "prometheus-rules.yaml"

_COUNTERS: Final = ("_total", "_bucket", "_count", "_sum")
_PER_REPETITION: Final = 5  # minutes in which what goes on happens once more

#: The text of an answer to /metrics, or nothing if there was none; and for how many minutes it stays like that.
Scrape = tuple[str, int]


@dataclass(frozen=True)
class Target:
    """What Prometheus scraped of a node, from the first scrape on."""

    instance: str
    scrapes: Sequence[Scrape]
    goes_on: bool = False  # what came between the first and the last scrape comes again and again


def input_series(target: Target) -> list[dict[str, str]]:
    """Return the series of a node, a value for each minute."""
    taken = [(values(text), minutes) for text, minutes in target.scrapes]
    up = [float(bool(found)) for found, minutes in taken for _ in range(minutes)]
    names = dict.fromkeys(name for found, _ in taken for name in found)
    all_values = {name: [found.get(name) for found, minutes in taken for _ in range(minutes)] for name in names}
    if target.goes_on:
        held = taken[-1][1]
        for name, each in all_values.items():
            if name[0].endswith(_COUNTERS):
                first, last = each[0] or 0.0, each[-1] or 0.0
                each[-held:] = [last + (last - first) * (minute // _PER_REPETITION) for minute in range(held)]
    return [
        {"series": name[0] + _labels(**dict(name[1]), job=JOB, instance=target.instance), "values": _shown(each)}
        for name, each in ({("up", ()): up} | all_values).items()
    ]


def _labels(**labels: str) -> str:
    return f"{{{','.join(f'{name}={json.dumps(value)}' for name, value in labels.items() if value)}}}"


def _shown(each: Iterable[float | None]) -> str:
    """Return values in promtool's notation; one that is gone is marked, as a scrape without it does."""
    runs = []
    for value, run in groupby(each):
        number = len(list(run))
        runs.append(f"{value!r}x{number - 1}" if value is not None else "stale" + f" _x{number - 1}" * (number > 1))
    return " ".join(runs)


def firing_of(name: str) -> str:
    """Return the expression that asks on which instances an alert fires."""
    alert = _labels(alertname=f"ApiserverProxySidecar{name}", alertstate="firing")
    return f"count by (alertname, instance) (ALERTS{alert}) > bool 0"


def firing(name: str, where: Iterable[str]) -> list[dict[str, Any]]:
    """Return its answer if the alert fires on these instances; an empty one stands for an alert without any."""
    return [{"labels": _labels(alertname=f"ApiserverProxySidecar{name}", instance=at), "value": 1} for at in where]


def promtool(
    folder: Path, targets: Iterable[Target], expected: Mapping[tuple[str, str], Any], rules: Path = RULES
) -> list[tuple[str, str]]:
    """Evaluate each (expression, time) over what was scraped; return those whose samples are not as expected."""
    series = [each for target in targets for each in input_series(target)]
    asked = [{"expr": expr, "eval_time": at, "exp_samples": samples} for (expr, at), samples in expected.items()]
    test = {
        "rule_files": [str(rules)],
        "evaluation_interval": "5m",
        "tests": [{"interval": "1m", "input_series": series, "promql_expr_test": asked}],
    }
    file = folder / "test.json"  # of which YAML is a superset
    file.write_text(json.dumps(test))
    done = subprocess.run([tool("promtool"), "test", "rules", file], capture_output=True, text=True, check=False)
    told = done.stdout + done.stderr
    failed = [
        (json.loads(expr), _in_minutes(at)) for expr, at in re.findall(r"expr: (\".*\"), time: (\w+),\n +exp", told)
    ]
    assert len(failed) == told.count("got:"), told
    assert bool(failed) == bool(done.returncode), told
    print(told)  # for a test that fails
    return failed


def _in_minutes(duration: str) -> str:
    """Return what promtool shows as 1h20m as it was asked."""
    in_minutes = {"h": 60, "m": 1, "s": 0}
    parts = re.findall("([0-9]+)([hms])", duration)
    return f"{sum(int(number) * in_minutes[unit] for number, unit in parts)}m"
