"""What goes with the metrics: their documentation, the alert rules, the dashboard. All name what there is."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from sidecar.daemon import metrics
from sidecar.daemon.vitals import Vitals
from sidecar.state.actions import Report
from sidecar.state.desired import desired
from sidecar.state.model import Observed
from support.namespace import IPV4
from support.tools import tool

ROOT: Final = Path(__file__).parents[3]
PREFIX: Final = "apiserver_proxy_sidecar_"
RULES: Final = ROOT / "deploy" / "prometheus-rules.yaml"
DASHBOARD: Final = ROOT / "deploy" / "grafana-dashboard.json"


@pytest.fixture(scope="module")
def families() -> list[Metric]:
    goal = desired([IPV4], interface="lo", port=443, setup_iptables=True)
    record = Vitals(goal, 10.0)
    record.command_ended(("ip",), 0, 0.1)
    record.pass_begins()
    record.pass_ended(Report((), (), (), observed=Observed((), dict.fromkeys(goal.rules, 1))))
    return list(text_string_to_metric_families(metrics.exposition(record).decode()))


@pytest.fixture(scope="module")
def names(families: list[Metric]) -> set[str]:
    """Return all names of samples."""
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"], "gauge": [""]}
    return {f"{each.name}{suffix}" for each in families for suffix in suffixes[each.type]}


def expressions(value: object) -> list[str]:
    """Return every `expr` in a document."""
    match value:
        case dict():
            here = [str(value["expr"])] if "expr" in value else []
            return [*here, *(found for each in value.values() for found in expressions(each))]
        case list():
            return [found for each in value for found in expressions(each)]
    return []


def test_each_metric_is_explained_with_its_type_and_labels(families: list[Metric]) -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `([a-z_]+)` \| (gauge|counter|histogram) \|([^|]*)\|", text, re.MULTILINE)
    told = {name: (kind, set(re.findall("[a-z]+", labels))) for name, kind, labels in rows}
    shown = {
        each.name.removeprefix(PREFIX) + "_total" * (each.type == "counter"): (
            each.type,
            {label for sample in each.samples for label in sample.labels if label != "le"},
        )
        for each in families
    }
    shown["failures_total"] = ("counter", {"reason"})  # which is there once something failed
    assert told == shown


def test_the_names_follow_the_conventions(families: list[Metric]) -> None:
    for each in families:
        assert each.name.startswith(PREFIX)
        assert each.documentation.endswith(".")
        assert not re.search("_(ms|milliseconds|minutes|count|sum|info_total)$", each.name)


@pytest.mark.parametrize("path", [RULES, DASHBOARD], ids=lambda path: path.name)
def test_what_is_asked_for_is_there(path: Path, names: set[str]) -> None:
    asked = {
        name
        for expression in expressions(yaml.safe_load(path.read_text()))  # of which JSON is a part
        for name in re.findall(f"{PREFIX}[a-z_]+", expression)
    }
    assert len(asked) >= 5
    assert asked <= names


def test_the_dashboard_s_panels_have_room_and_a_question() -> None:
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["targets"] and panel["title"] and panel["description"] for panel in panels)
    taken: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in panels):
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_promtool_takes_the_rules() -> None:
    """Whether they fire when they should, tests/e2e/test_alerts.py knows."""
    done = subprocess.run([tool("promtool"), "check", "rules", RULES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
