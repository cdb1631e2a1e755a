"""Asks all nodes for their metrics again and again, as Prometheus does, and adds up what they count."""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, Self

from prometheus_client.parser import text_string_to_metric_families

from support.fleet.node import Node, read

EVERY: Final = 5.0  # seconds
_DEADLINE: Final = 3.0  # seconds that the answers of all nodes may take
PREFIX: Final = "apiserver_proxy_sidecar_"

#: What is added up, without the prefix.
COUNTED: Final = ("repairs_total", "passes_total", "failures_total", "lock_waits_total", "log_lines_dropped_total")

#: The name and the labels of a series.
Series = tuple[str, tuple[tuple[str, str], ...]]


def scrape(nodes: Sequence[Node]) -> Mapping[str, str]:
    """Return what each node that answers says; all are asked at once."""
    with contextlib.ExitStack() as stack:
        asked = {}
        for node in nodes:
            with contextlib.suppress(OSError):
                asked[node.name] = stack.enter_context(node.connect("/metrics"))
        deadline, answers = time.monotonic() + _DEADLINE, {}
        for name, client in asked.items():
            with contextlib.suppress(OSError):
                head, _, body = read(client, max(deadline, time.monotonic() + 0.01)).partition(b"\r\n\r\n")
                if head.startswith(b"HTTP/1.1 200 "):
                    answers[name] = body.decode()
    return answers


def values(text: str) -> dict[Series, float]:
    """Return the value of each series."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class Scrapes:
    """Scrapes in a thread of its own."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.made = 0
        self.unanswered = 0
        self.ready = 0  # nodes, by the last scrape
        self.totals: Counter[str] = Counter()
        self._nodes = nodes
        self._last: dict[str, dict[Series, float]] = {}
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Scrape once more, and no more."""
        self._ends.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            ends = self._ends.is_set()
            self._take(scrape(self._nodes))
            if ends:
                return
            self._ends.wait(EVERY)

    def _take(self, answers: Mapping[str, str]) -> None:
        ready = 0
        for name, text in answers.items():
            now, before = values(text), self._last.get(name, {})
            ready += now[PREFIX + "ready", ()] == 1
            for series, value in now.items():
                total = series[0].removeprefix(PREFIX)
                if total in COUNTED and name in self._last:
                    # As `increase` does: what is less than before has begun at 0.
                    old = before.get(series, 0.0)
                    self.totals[total] += round(value - old if value >= old else value)
            self._last[name] = now
        self.ready = ready
        self.made += len(self._nodes)
        self.unanswered += len(self._nodes) - len(answers)
