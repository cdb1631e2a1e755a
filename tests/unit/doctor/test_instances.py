"""The check of which sidecars run, on recorded answers."""

import os
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from sidecar.doctor.findings import Level
from sidecar.node.proc import Process
from sidecar.state.desired import desired
from sidecar.state.model import Address, Claim
from support.findings import finding
from support.namespace import IPV4
from support.recorded_node import SIDECAR, RecordedNode


@pytest.fixture
def node(mocker: MockerFixture, tmp_path: Path) -> RecordedNode:
    return RecordedNode(mocker, tmp_path)


PID = os.getpid()
GO = Process(PID, "apiserver-proxy", ("/usr/bin/apiserver-proxy-sidecar", "--ip-address=10.96.0.2"))
OTHER = replace(SIDECAR, argv=("python3", "-m", "sidecar", "--ip-address=10.96.0.9"))
ON_ETH0 = replace(SIDECAR, argv=(*SIDECAR.argv, "--interface=eth0", "--port=8443"))
DOCTOR = replace(SIDECAR, argv=("python3", "-m", "sidecar", "doctor", "--ip-address=10.96.0.2"))
ON_OTHERS = "--interface=eth0 --port=8443; this check is for --interface=lo --port=443"
ONLY_ROOT = "only root can see its network"
WHO_CLAIMS = "cannot tell whether an instance claims the addresses"
CONTAINED = (
    "unknown: cannot tell whether another instance holds 10.96.0.2: only the processes of this container can be seen"
)
NOBODY = "no instance is running for 10.96.0.2: nothing repairs what other programs remove"


@pytest.mark.parametrize(
    ("processes", "told"),
    [
        ([(SIDECAR, True)], [f"ok: pid {PID} (this program) holds 10.96.0.2"]),
        ([(GO, True)], [f"ok: pid {PID} (not Python: the Go sidecar?) holds 10.96.0.2"]),
        ([(ON_ETH0, True)], [f"warning: pid {PID} (this program) holds 10.96.0.2 with {ON_OTHERS}"]),
        ([(OTHER, True)], [f"note: {NOBODY}", f"note: pid {PID} (this program) runs on this node for 10.96.0.9"]),
        ([(SIDECAR, False)], [f"note: {NOBODY}"]),
        ([(DOCTOR, True)], [f"note: {NOBODY}"]),
        ([], [f"note: {NOBODY}"]),
        ([(SIDECAR, None)], [f"unknown: cannot tell whether pid {PID} (this program) holds 10.96.0.2: {ONLY_ROOT}"]),
    ],
)  # fmt: skip
def test_who_else_looks_after_the_address(
    node: RecordedNode, processes: list[tuple[Process, bool | None]], told: list[str]
) -> None:
    node.processes = processes
    assert node.texts("instances") == told


def test_what_to_do_about_instances(node: RecordedNode) -> None:
    node.processes = [(ON_ETH0, True)]
    assert node.findings("instances")[0].remedy == "give both the same flags, or stop one of them"
    node.set(processes=[]).kernel.addresses["lo"].clear()  # and nobody puts it back
    remedy = "start apiserver-proxy-sidecar as a service or a pod"
    assert node.findings("instances") == [finding(Level.WARNING, "instances", NOBODY, remedy)]


@pytest.mark.parametrize(
    ("claimed", "told"),
    [
        (frozenset([Address(IPV4, 32, "lo")]), ["ok: an instance that cannot be seen from here holds 10.96.0.2"]),
        (frozenset([Address(IPV4, 32, "eth0")]), [CONTAINED]),
        (PermissionError(13, "Permission denied"), [f"unknown: {WHO_CLAIMS}: Permission denied"]),
    ],
)  # fmt: skip
def test_from_within_a_container(
    node: RecordedNode, mocker: MockerFixture, claimed: frozenset[Claim] | OSError, told: list[str]
) -> None:
    mocker.patch("sidecar.node.proc.sees_all_processes", return_value=False)
    node.set(processes=[], claimed=claimed)
    assert node.texts("instances") == told


def test_very_many_addresses_are_not_all_named(node: RecordedNode) -> None:
    node.desired = desired([ip_address(f"10.96.1.{number}") for number in range(9)], interface="lo", port=443)
    first = node.texts("instances")[0]
    assert first.startswith("warning: no instance is running for 10.96.1.0, 10.96.1.1, ")
    assert "10.96.1.5 and 3 more: " in first
