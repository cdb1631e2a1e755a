"""What Prometheus sees of a fleet: the alerts and the dashboard, on what was scraped of sidecars that run.

Each node has one thing happen to it. A scrape stands for the minutes in which it would be the same: so nothing waits.
"""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from support.fleet import chaos, run
from support.fleet.node import Node
from support.fleet.scrapes import PREFIX, scrape, values
from support.namespace import CIDR
from support.prometheus import RULES, Target, firing, firing_of, promtool
from support.waiting import until

DASHBOARD: Final = RULES.parent / "grafana-dashboard.json"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="threads enter the nodes' networks, which takes root")

#: Minutes for which all is right, then for which something is wrong, and the moment to ask.
BEFORE: Final = 30
AFTER: Final = 60
QUIET: Final = f"{BEFORE - 1}m"
LATE: Final = f"{BEFORE + 50}m"

NONE_SCRAPED: Final = "NoneScraped"

#: What fires in the end, by what happened to a node. Nothing fires for the others: usual, repaired, updated.
FIRES: Final = {
    "locked": ("NotInSync", "LockHeld", "Slow"),
    "unplugged": ("NotInSync",),
    "hung": ("NotInSync", "Hung"),
    "opposed": ("Fighting", "UnusualRepairs"),
    "teased": ("UnusualRepairs",),
    "unread": ("LogLost",),
    "killed": ("Down",),
}
FLAGS: Final = {
    "locked": ("--iptables-wait=3s",),
    "unplugged": ("--interface=up0", "--create-interface=false"),
    "hung": ("--command-timeout=5s", "--iptables-wait=1s"),
}
NODES: Final = (*FIRES, "repaired", "updated", *(f"usual-{number}" for number in range(4)))


def asked(node: Node) -> str:
    return scrape([node]).get(node.name, "")


def total(node: Node, name: str) -> float:
    """Return the sum of a metric."""
    return sum(value for (each, _), value in values(asked(node)).items() if each == PREFIX + name)


def is_ready(node: Node) -> bool:
    return total(node, "ready") == 1


def lock(node: Node, stack: ExitStack) -> None:
    """Hold the xtables lock for good; let the sidecar look, and wait until it has given up."""
    stack.enter_context(node.namespace.lock_held())
    hang_up(node)
    until(lambda: total(node, "lock_waits_total") >= 2)
    until(lambda: not is_ready(node))


def unplug(node: Node, _: ExitStack) -> None:
    node.namespace.run("ip", "link", "delete", "up0")
    until(lambda: asked(node) and not is_ready(node))


def hang(node: Node, _: ExitStack) -> None:
    """Let `ip` never end."""
    script = "printf '#!/bin/sh\\nexec sleep 600\\n' >/run/ip; chmod 755 /run/ip; mount --bind /run/ip $(command -v ip)"
    node.namespace.run("sh", "-c", script)
    hang_up(node)
    until(lambda: asked(node) and not total(node, "alive"))


def delete_address(node: Node, times: int) -> None:
    for _ in range(times):
        repaired = total(node, "repairs_total")
        node.namespace.run("ip", "address", "delete", CIDR, "dev", "lo")
        until(lambda: total(node, "repairs_total") > repaired)  # noqa: B023 - it is asked now


def leave_log_unread(node: Node, _: ExitStack) -> None:
    lost = total(node, "log_lines_dropped_total")

    def loses_more() -> bool:
        hang_up(node)
        return total(node, "log_lines_dropped_total") > lost

    until(loses_more)


def kill(node: Node, _: ExitStack) -> None:
    assert node.newest
    node.newest.signal(signal.SIGKILL)
    until(lambda: not asked(node))


def hang_up(node: Node) -> None:
    """Let the sidecar look at the node."""
    assert node.newest
    node.newest.signal(signal.SIGHUP)


HAPPENS: Final[dict[str, Callable[[Node, ExitStack], object]]] = {
    "locked": lock,
    "unplugged": unplug,
    "hung": hang,
    "opposed": lambda node, _: delete_address(node, 12),
    "teased": lambda node, _: delete_address(node, 5),
    "unread": leave_log_unread,
    "killed": kill,
}


def repaired(node: Node) -> Iterator[str]:
    """Yield scrapes while somebody deletes the address and reloads the firewall, once each, and after that."""
    delete_address(node, 1)
    yield asked(node)
    node.namespace.iptables(node.backend, 4, "-t", "raw", "-F")
    node.namespace.iptables(node.backend, 4, "-F")
    yield asked(node)
    until(lambda: total(node, "repairs_total") >= 6 and is_ready(node))
    yield asked(node)


def updated(node: Node) -> Iterator[str]:
    """Yield a scrape for each state of readiness while the sidecar is replaced, and after that."""
    before = 1.0
    for _ in chaos.update(node):
        text = asked(node)
        now = values(text).get((PREFIX + "ready", ()), -1.0)  # -1: no answer
        if now != before:
            before = now
            yield text
    until(lambda: is_ready(node))
    yield asked(node)


def usual(node: Node) -> Iterator[str]:
    yield asked(node)


#: What happens, and is over.
PASSES: Final[dict[str, Callable[[Node], Iterator[str]]]] = {"repaired": repaired, "updated": updated}


@pytest.fixture(scope="module")
def targets() -> Iterator[list[Target]]:
    """What was scraped of a fleet."""
    backends = ["legacy" if name == "locked" else "nft" for name in NODES]
    with run.fleet(backends, unread=[NODES.index("unread")]) as nodes, ExitStack() as stack:
        run.start(nodes, flags=[FLAGS.get(name, ()) for name in NODES])
        found = []
        for name, node in zip(NODES, nodes, strict=True):
            first = (asked(node), BEFORE)
            if name in HAPPENS:
                HAPPENS[name](node, stack)
                found.append(Target(name, [first, (asked(node), AFTER)], goes_on=name in ("locked", "opposed")))
            else:
                *meanwhile, last = PASSES.get(name, usual)(node)
                found.append(Target(name, [first, *((text, 1) for text in meanwhile), (last, AFTER)]))
        yield found


def rules() -> Any:  # noqa: ANN401 - YAML is anything
    return yaml.safe_load(RULES.read_text())


def names() -> list[str]:
    """Return the alerts, but for the one that needs a Prometheus without any sidecar."""
    found = [each["alert"].removeprefix("ApiserverProxySidecar") for each in rules()["groups"][0]["rules"]]
    return [name for name in found if name != NONE_SCRAPED]


def expected_alerts() -> dict[tuple[str, str], Any]:
    """Return for each alert that it is quiet first, and on which nodes it fires in the end."""
    quiet: dict[tuple[str, str], Any] = {(firing_of(name), QUIET): [] for name in names()}
    for name in names():
        where = [at for at, fires in FIRES.items() if name in fires]
        quiet[firing_of(name), LATE] = firing(name, where or [""])  # if on no node, then for the fleet
    return quiet


def test_what_is_broken_fires_and_an_update_and_a_repair_do_not(targets: list[Target], tmp_path: Path) -> None:
    assert promtool(tmp_path, targets, expected_alerts()) == []


def test_it_fires_when_no_sidecar_is_scraped_any_more(tmp_path: Path) -> None:
    asked = firing_of(NONE_SCRAPED)
    assert promtool(tmp_path, [], {(asked, "5m"): [], (asked, "15m"): firing(NONE_SCRAPED, [""])}) == []


def test_an_expression_that_is_broken_is_found(targets: list[Target], tmp_path: Path) -> None:
    """Each of them, when it never holds and when it always does."""
    file = tmp_path / "rules.yaml"
    for broken in ("up > 1", "up >= 0"):
        damaged = rules()
        for rule in damaged["groups"][0]["rules"]:
            rule["expr"] = broken
        file.write_text(yaml.safe_dump(damaged))
        found = promtool(tmp_path, targets, expected_alerts(), file)
        assert set(found) >= {(firing_of(name), LATE) for name in names()}
    asked = firing_of(NONE_SCRAPED)
    assert promtool(tmp_path, [], {(asked, "15m"): firing(NONE_SCRAPED, [""])}, file) == [(asked, "15m")]


def questions() -> Iterator[tuple[str, str]]:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for each in panel["targets"]:
            yield f"{panel['title']} {each['refId']}", each["expr"]


def test_each_question_of_the_dashboard_has_an_answer(targets: list[Target], tmp_path: Path) -> None:
    variables = {"$job": ".*", "$instance": ".*", "$__rate_interval": "1h"}
    expected = {}
    for _, question in questions():
        filled = re.sub(r"\$\w+", lambda found: variables[found[0]], question)
        expected[f"count({filled}) > bool 0", LATE] = [{"labels": "{}", "value": 1}]
    assert promtool(tmp_path, targets, expected) == []
    empty: dict[tuple[str, str], Any] = {key: [] for key in expected}
    assert promtool(tmp_path, targets, empty) == list(expected)
