"""The check of whether the sidecars that run here do their work, on recorded answers."""

import os
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from sidecar.doctor.findings import Finding, Level
from sidecar.node.health_answers import Answer
from sidecar.node.proc import Process
from sidecar.state.model import RulesBackend, RuleSet
from support.namespace import IPV4
from support.recorded_node import SIDECAR, RecordedNode

PID = os.getpid()
AT_WORK = replace(SIDECAR, argv=("python3", "-m", "sidecar", "--ip-address=10.96.0.2", "--setup-iptables"))
ON_LINK0 = Process(
    os.getppid(), "apiserver-proxy", ("apiserver-proxy-sidecar", "--ip-address=10.96.0.2", "--interface=link0")
)
ME = f"pid {PID} (this program)"
CIDR = "10.96.0.2/32"


@pytest.fixture
def node(mocker: MockerFixture, tmp_path: Path) -> RecordedNode:
    return RecordedNode(mocker, tmp_path).set(processes=[(AT_WORK, True)])


def delete_address(node: RecordedNode) -> None:
    node.kernel.addresses["lo"].remove(CIDR)


def test_one_that_works_is_not_mentioned(node: RecordedNode) -> None:
    assert node.texts("sidecar") == []


def test_what_stays_missing_is_what_it_does_not_repair(node: RecordedNode, mocker: MockerFixture) -> None:
    delete_address(node)
    found = f"fault: {ME} runs here, but does not repair what is missing: {CIDR}"
    assert node.texts("sidecar") == [f"{found}; perhaps something keeps taking it away"]
    (missing,) = node.findings("address")
    assert (missing.commands, missing.remedy) == ((), f"{ME} does this by itself, see `sidecar` above")
    pages = {"/healthz": Answer(200, "ok"), "/readyz": Answer(503, "not in sync:\n why")}
    mocker.patch("sidecar.node.health_answers.ask", side_effect=lambda _, page: pages.get(page))
    assert node.texts("sidecar") == [f"{found}; it says not in sync: why"]


def test_what_comes_back_while_it_looks_is_not_missing(node: RecordedNode, mocker: MockerFixture) -> None:
    delete_address(node)
    mocker.patch("time.sleep", side_effect=lambda _: node.kernel.addresses["lo"].append(CIDR))
    assert node.texts("sidecar") == [f"note: {ME} has just added what was missing: {CIDR}"]
    delete_address(node)
    assert node.texts("address") == [f"ok: {CIDR} on lo, scope host"]


def test_what_comes_and_goes_is_a_fight(node: RecordedNode, mocker: MockerFixture) -> None:
    node.processes.append((ON_LINK0, True))
    node.add("filter", *(output := node.chain("filter", "INPUT"))[-1:])  # a copy, which it would remove

    def take_away(_: float) -> None:
        output.pop()
        node.kernel.addresses["lo"].remove(CIDR)

    mocker.patch("time.sleep", side_effect=take_away)
    (found,) = node.findings("sidecar")
    assert found.level is Level.FAULT
    assert found.found.startswith(f"{ME} repairs, and something removes it again: {CIDR}")
    rival = f"perhaps it is pid {ON_LINK0.pid} (not Python: the Go sidecar?), which holds 10.96.0.2 on link0"
    assert found.remedy.startswith(f"{rival}; find it: `bpftrace")


def test_what_it_counts_tells_of_a_fight_too(node: RecordedNode, mocker: MockerFixture) -> None:
    node.processes = [(replace(AT_WORK, argv=(*AT_WORK.argv, "--health-address=:9180")), True)]
    mocker.patch("sidecar.node.health_answers.ask", return_value=None)
    mocker.patch("sidecar.node.health_answers.repairs", side_effect=count(1))
    assert node.texts("sidecar") == [f"fault: {ME} repairs, and something removes it again"]
    mocker.patch("sidecar.node.health_answers.repairs", return_value=7)
    assert node.texts("sidecar") == []


def test_one_that_answers_no_probe_hangs(node: RecordedNode, mocker: MockerFixture) -> None:
    mocker.patch("sidecar.node.health_answers.ask", return_value=Answer(0))
    assert node.findings("sidecar") == [
        Finding(
            Level.FAULT,
            f"{ME} runs here, but hangs: it does not answer on --health-address",
            "restart it; its log says what hangs",
            facts={"pid": PID},
            topic="sidecar",
            leads=True,
        )
    ]
    assert node.texts("instances") == []


@pytest.mark.parametrize("flag", ["--daemon=false", "--interface=link0"])
def test_what_a_sidecar_would_not_do_has_a_command(node: RecordedNode, flag: str) -> None:
    """It makes a single pass, or puts the address elsewhere."""
    node.processes = [(replace(AT_WORK, argv=(*AT_WORK.argv, flag)), True)]
    delete_address(node)
    assert node.texts("sidecar") == []
    (missing,) = node.findings("address")
    assert missing.commands


def test_rules_for_another_port_than_the_sidecars_have_commands(node: RecordedNode) -> None:
    node.processes = [(replace(AT_WORK, argv=(*AT_WORK.argv, "--port=8443")), True)]
    node.chain("filter", "INPUT").pop()
    assert node.texts("sidecar") == []
    assert node.findings("rules")[0].commands


def test_rules_in_another_backend_than_the_sidecars_are_not_added(node: RecordedNode) -> None:
    node.use_legacy()
    node.chain("filter", "INPUT", "iptables-legacy").pop()
    node.set(claimed=frozenset([RulesBackend(4, "nft", RuleSet(IPV4, 443))]))
    assert node.texts("sidecar") == []
    missing = node.findings("rules")[0]
    assert (missing.commands, missing.remedy) == ((), f"{ME} keeps its rules in the other backend, see `backend` above")
