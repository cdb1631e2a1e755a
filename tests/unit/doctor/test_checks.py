"""doctor as a whole: the order of what it tells, and what it does where a look fails."""

from dataclasses import replace
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from sidecar.doctor.checks import diagnose
from sidecar.doctor.findings import Finding, Level, exit_code
from sidecar.errors import CommandTimeout, Interrupted, Stopped
from sidecar.node.command import Result
from support.findings import finding
from support.recorded_node import BOTH, ONLY_IPV6, Change, RecordedNode, ok

KILLED = CommandTimeout(("ip",), "", "was killed after 10s")
KILLED_IP = "`ip` was killed after 10s"
KILLED_IPTABLES = CommandTimeout(("iptables-nft-restore",), "", "was killed after 10s")

NO_VERSION = "not the output of `iptables --version`: 'sh: 1: not found'"
NONSENSE = "could not be checked: not the output of `ip -json`: 'nonsense'"
RULES_UNSEEN = "cannot tell what other programs' rules do to 10.96.0.2: the rules could not be listed, see above"

OURS = "-A INPUT -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j ACCEPT"
BEFORE = "-A OUTPUT -j ACCEPT"


@pytest.fixture
def node(mocker: MockerFixture, tmp_path: Path) -> RecordedNode:
    return RecordedNode(mocker, tmp_path)


def unknown(findings: list[Finding]) -> list[tuple[str, str]]:
    """Return topic and text of what could not be looked at."""
    return [(each.topic, each.found) for each in findings if each.level is Level.UNKNOWN]


def test_a_healthy_node_from_the_ground_up(node: RecordedNode) -> None:
    findings = diagnose(node.view())
    assert {each.level for each in findings} == {Level.OK}
    assert [each.topic for each in findings] == [
        "program",
        "privileges",
        "commands",
        "backend",
        "lock",
        "kernel",
        "interface",
        "address",
        "route",
        "rules",
        "taken",
        "policies",
        "listener",
        "connect",
        "tls",
        "conntrack",
        "instances",
    ]


def test_warnings_of_the_settings_come_first(node: RecordedNode) -> None:
    node.warnings = ["unknown variable SIDECAR_PROT is ignored"]
    assert diagnose(node.view())[0] == finding(Level.WARNING, "settings", "unknown variable SIDECAR_PROT is ignored")


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_no_false_alarm_with_addresses_of_both_families(node: RecordedNode, backend: str) -> None:
    node.desired = BOTH
    if backend == "legacy":
        node.use_legacy()
    assert node.alarms() == []


@pytest.mark.parametrize(
    ("break_", "told"),
    [
        pytest.param(
            lambda node: node.answers.update({"ip": KILLED}),
            [(topic, KILLED_IP) for topic in ("commands", "interface", "address", "route")],
            id="ip hangs",
        ),
        pytest.param(
            lambda node: node.answers.update({"iptables-nft-restore": KILLED_IPTABLES}),
            [
                ("backend", "cannot tell which is in use for IPv4: `iptables-nft-restore` was killed after 10s"),
                ("rules", "the IPv4 rules could not be listed: `iptables-nft-restore` was killed after 10s"),
                ("taken", RULES_UNSEEN),
                ("policies", RULES_UNSEEN),
            ],
            id="iptables hangs",
        ),
        pytest.param(
            lambda node: node.files.update({"/proc/net/ip_vs": PermissionError(13, "Permission denied", "ip_vs")}),
            [("taken", "could not be checked: [Errno 13] Permission denied: 'ip_vs'")],
            id="a file cannot be read",
        ),
        pytest.param(
            lambda node: node.answers.update({"ip -json route get 10.96.0.2": ok("nonsense")}),
            [("route", NONSENSE)],
            id="ip talks nonsense",
        ),
        pytest.param(
            lambda node: node.answers.update({"iptables --version": ok("sh: 1: not found")}),
            [("backend", f"cannot tell whether iptables on this node is nft or legacy: {NO_VERSION}")],
            id="iptables talks nonsense",
        ),
    ],
)
def test_what_cannot_be_looked_at_is_unknown_and_the_rest_goes_on(
    node: RecordedNode, break_: Change, told: list[tuple[str, str]]
) -> None:
    healthy = {each.topic for each in diagnose(node.view())}
    break_(node)
    findings = diagnose(node.view())
    assert unknown(findings) == told
    expected = healthy - {topic for topic, _ in told}
    assert {each.topic for each in findings if each.level is Level.OK} >= expected


@pytest.mark.parametrize(
    ("function", "topic"),
    [("proc.listeners", "listener"), ("proc.neighbours", "instances"), ("proc.holders", "lock")],
)
def test_what_proc_does_not_tell_is_unknown(
    node: RecordedNode, mocker: MockerFixture, function: str, topic: str
) -> None:
    mocker.patch(f"sidecar.node.{function}", side_effect=OSError(5, "Input/output error"))
    assert unknown(diagnose(node.view())) == [(topic, "could not be checked: [Errno 5] Input/output error")]


def test_what_was_found_before_a_look_failed_is_told(node: RecordedNode) -> None:
    node.set(desired=ONLY_IPV6).answers["ip -6 -json route show"] = KILLED
    assert node.texts("route") == ["ok: fd00:10:96::2 is local", f"unknown: {KILLED_IP}"]


@pytest.mark.parametrize(
    ("break_", "told"),
    [
        (lambda node: node.add("filter", OURS, OURS), "remove 2 copies too many: -t filter -A INPUT"),
        (
            lambda node: node.set(desired=replace(node.desired, insert=True)).chain("raw", "OUTPUT").insert(1, BEFORE),
            f"move to the front, as it has no effect behind `{BEFORE}`",
        ),
        (lambda node: node.chain("raw", "OUTPUT").insert(1, BEFORE), ""),
        (lambda node: node.kernel.addresses.update({"link0": ["10.96.0.2/32"]}), ""),
        (
            lambda node: node.set(desired=replace(node.desired, remove_duplicates=True)).kernel.addresses.update(
                {"link0": ["10.96.0.2/32"]}
            ),
            "remove 10.96.0.2/32 from link0",
        ),
    ],
    ids=["copies", "behind, with insert", "behind", "on another interface", "on another interface, to be removed"],
)
def test_what_run_would_repair_is_not_a_success(node: RecordedNode, break_: Change, told: str) -> None:
    break_(node)
    findings = diagnose(node.view())
    drift = [each.found for each in findings if each.is_drift]
    assert [each.partition(": ")[2][: len(told)] for each in drift] == [told] * bool(told)
    assert exit_code(findings) == bool(told)


def test_drift_is_not_told_beside_a_fault(node: RecordedNode) -> None:
    node.chain("filter", "INPUT").remove(OURS)
    findings = diagnose(node.view())
    assert not any(each.is_drift for each in findings)
    assert exit_code(findings) == 1


def test_the_failed_command_can_be_pasted_from_the_facts(node: RecordedNode) -> None:
    node.answers["ip -json -details address show"] = Result(
        255, "", "Cannot send dump request: Operation not permitted"
    )
    (found,) = node.findings("interface")
    reason = "exited with 255: Cannot send dump request: Operation not permitted"
    assert found == finding(
        Level.UNKNOWN,
        "interface",
        f"`ip -json -details address show` {reason}",
        facts={"err": found.found, "command": "ip -json -details address show"},
    )


def test_one_family_that_cannot_be_looked_at_does_not_hide_the_other(node: RecordedNode) -> None:
    node.desired = BOTH
    node.answers["ip6tables-nft-restore"] = KILLED_IPTABLES
    rules = [(each.level, each.found) for each in node.findings("rules", "taken")]
    assert rules == [
        (Level.OK, "5 of 5 IPv4 rules are in place"),
        (Level.UNKNOWN, "the IPv6 rules could not be listed: `iptables-nft-restore` was killed after 10s"),
        (Level.OK, "neither a rule nor IPVS takes traffic to 10.96.0.2:443"),
        (Level.UNKNOWN, RULES_UNSEEN.replace("10.96.0.2", "fd00:10:96::2")),
    ]


@pytest.mark.parametrize("failing", ["ip -json -details address show", "iptables-nft-restore"])
def test_what_hangs_is_waited_for_only_once(node: RecordedNode, failing: str) -> None:
    node.backend = "nft"
    node.answers[failing] = KILLED
    diagnose(node.view())
    assert len([call for call in node.calls if call.startswith(failing)]) == 1


def test_without_privileges_it_is_the_node_that_lacks_something(node: RecordedNode) -> None:
    refused = Result(4, "", "Could not fetch rule set generation id: Permission denied (you must be root)\n")
    node.lacking = {"CAP_NET_ADMIN"}
    node.answers["iptables-nft-restore"] = refused
    findings = diagnose(node.view())
    assert [each.topic for each in findings if each.node_lacks] == ["privileges", "rules"]
    assert exit_code(findings) == 3
    (found,) = [each for each in findings if each.topic == "rules"]
    assert found.found.startswith(
        "the IPv4 rules could not be listed: missing CAP_NET_ADMIN: run as root, or add it to the container's"
    )
    assert found.found.endswith("Permission denied (you must be root)")


@pytest.mark.parametrize("ending", [Stopped, Interrupted])
def test_who_asks_to_end_is_obeyed(node: RecordedNode, mocker: MockerFixture, ending: type[Exception]) -> None:
    mocker.patch("sidecar.node.proc.listeners", side_effect=ending)
    with pytest.raises(ending):
        diagnose(node.view())


def test_a_missing_command_is_what_the_node_lacks(node: RecordedNode) -> None:
    node.programs.clear()
    findings = diagnose(node.view())
    lacking = {each.topic for each in findings if each.node_lacks and each.level is Level.UNKNOWN}
    assert lacking == {"interface", "address", "route", "rules"}
    assert exit_code(findings) == 3
    assert [found for topic, found in unknown(findings) if topic == "interface"] == [
        "ip is not installed: apt-get install iproute2 (the package's name in Debian and Ubuntu)"
    ]
