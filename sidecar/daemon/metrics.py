"""Renders the vitals in Prometheus' text format. The only file that imports prometheus_client; loaded on first scrape.

Nothing is counted here: a scrape reads the vitals. docs/metrics.md explains each metric.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Final, TypeAlias

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from sidecar import __version__
from sidecar.daemon.vitals import BUCKETS, Histogram, Vitals
from sidecar.log.setup import dropped
from sidecar.state.model import Address, Interface, Object, Rule

#: The format that generate_latest writes: no name in it needs a later version.
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_PREFIX: Final = "apiserver_proxy_sidecar"
_OBJECT: Final = ("kind", "object")

#: Label values, each with its number.
Samples: TypeAlias = Iterable[tuple[tuple[str, ...], float]]


def exposition(vitals: Vitals) -> bytes:
    """Return the current value of all metrics."""
    registry = CollectorRegistry()
    registry.register(_Record(vitals))
    return generate_latest(registry)


class _Record(Collector):
    def __init__(self, vitals: Vitals) -> None:
        self._vitals = vitals

    def describe(self) -> Iterator[Metric]:
        """Return nothing; otherwise the registry would collect once to find out the names."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        counts = self._vitals.counts()
        yield _gauge(
            "build_info",
            "Version of the program, and the iptables that it uses; always 1.",
            [((__version__, counts.backend), 1)],
            "version",
            "backend",
        )
        yield _gauge("alive", "Whether the loop is alive: what /healthz says.", [((), not self._vitals.hang())])
        yield _gauge(
            "ready", "Whether the last look found everything in place: what /readyz says.", [((), counts.ready)]
        )
        yield _counter("passes", "Passes, by result.", _one(counts.passes), "result")
        yield _histogram("pass_duration_seconds", "How long a pass took.", [((), counts.pass_seconds)])
        yield _counter("failures", "Failed steps of passes, by kind of error.", _one(counts.failures), "reason")
        yield _gauge("last_pass_timestamp_seconds", "When the last pass ended; 0: none yet.", [((), counts.last_pass)])
        success = [((), counts.last_success)]
        yield _gauge("last_success_timestamp_seconds", "When a pass last left everything in place; 0: never.", success)
        places = _by_object(counts.in_sync)
        yield _gauge("in_sync", "Whether an address or rule was in place at the last look, if known.", places, *_OBJECT)
        repairs = _by_object(counts.repairs)
        yield _counter("repairs", "What was put back, after everything had been in place.", repairs, *_OBJECT)
        yield _counter("copies_removed", "Surplus copies that were removed.", _one(counts.copies_removed), "kind")
        commands = [((name,), each) for name, each in counts.commands.items()]
        yield _histogram("command_duration_seconds", "How long a command took.", commands, "command")
        yield _counter(
            "command_failures", "Commands that gave no answer.", counts.command_failures.items(), "command", "reason"
        )
        lock_waits = sum(number for (_, reason), number in counts.command_failures.items() if reason == "lock")
        yield _counter("lock_waits", "Commands that gave up waiting for the xtables lock.", [((), lock_waits)])
        yield _counter("lock_wait_seconds", "Seconds that those commands waited.", [((), counts.lock_wait_seconds)])
        yield _counter(
            "log_lines_dropped", "Log lines that their destination did not take.", _one(dropped()), "destination"
        )


def _by_object(values: Mapping[Object, int]) -> Samples:
    """Label each number with the kind and the name of its object."""
    return [(_labels(each), number) for each, number in values.items()]


def _labels(each: Object) -> tuple[str, str]:
    match each:
        case Interface(name):
            return "interface", name
        case Address():
            return "address", str(each)
        case Rule():
            return "rule", str(each)


def _one(values: Mapping[str, int]) -> Samples:
    return [((name,), value) for name, value in values.items()]


def _gauge(name: str, meaning: str, values: Samples, *labels: str) -> Metric:
    return _filled(GaugeMetricFamily(f"{_PREFIX}_{name}", meaning, labels=labels), values)


def _counter(name: str, meaning: str, values: Samples, *labels: str) -> Metric:
    return _filled(CounterMetricFamily(f"{_PREFIX}_{name}", meaning, labels=labels), values)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, values: Samples) -> Metric:
    for names, value in values:
        family.add_metric(names, value)
    return family


def _histogram(name: str, meaning: str, values: Iterable[tuple[tuple[str, ...], Histogram]], *labels: str) -> Metric:
    family = HistogramMetricFamily(f"{_PREFIX}_{name}", meaning, labels=labels)
    bounds = [*map(str, BUCKETS), "+Inf"]
    for names, value in values:
        family.add_metric(names, list(zip(bounds, accumulate(value.counts), strict=True)), value.sum)
    return family
