"""The check of tracked connections, on recorded answers."""

from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from sidecar.doctor.checks import diagnose
from sidecar.doctor.conntrack import PAUSE
from sidecar.doctor.findings import Level
from sidecar.node.command import Result
from sidecar.state.model import Desired
from support.recorded_node import BOTH, CONNECTION, NO_RULES, RecordedNode, ok

WHERE = "10.96.0.2:443"


@pytest.fixture
def node(mocker: MockerFixture, tmp_path: Path) -> RecordedNode:
    return RecordedNode(mocker, tmp_path)


def at(seconds: int, sport: int = 41000) -> str:
    """Return the line of a connection whose time is over in so many seconds."""
    return TO_US.replace(" 431999 ", f" {seconds} ").replace("41000", str(sport))


TO_US = CONNECTION.format("10.96.0.2", 443)
IN_VAIN = "are tracked, though our rules should prevent that"
AS_EXPECTED = "are tracked, as expected without --setup-iptables"
LEFT = "still listed from before our rules, but not tracked any more"
NONE = f"ok: no connection to {WHERE} is tracked"
UNSEEN_CONNECTIONS = "unknown: the tracked connections could not be listed: "
REFUSED = "conntrack v1.4.7 (conntrack-tools): Operation failed: sorry, you must be root or get CAP_NET_ADMIN"
NOT_INSTALLED = "there is no /proc/net/nf_conntrack, and conntrack is not installed: apt-get install conntrack"


@pytest.mark.parametrize(
    ("desired", "lines", "told"),
    [
        (BOTH, [CONNECTION.format("10.96.0.2", 8443)], NONE),
        (BOTH, [TO_US], f"warning: {IN_VAIN}".replace("are", f"1 connection to {WHERE} is")),
        (BOTH, [TO_US, at(9, 41001)], f"warning: 2 connections to {WHERE} {IN_VAIN}"),
        (NO_RULES, [TO_US, at(9, 41001)], f"note: 2 connections to {WHERE} {AS_EXPECTED}"),
    ],
)
@pytest.mark.parametrize("source", ["file", "program"])
def test_tracked_connections(node: RecordedNode, source: str, desired: Desired, lines: list[str], told: str) -> None:
    node.set(desired=desired, files={})
    if source == "program":
        node.answers["conntrack -L -p tcp"] = ok("".join(line.removeprefix("ipv4     2 ") for line in lines))
    else:
        node.files["/proc/net/nf_conntrack"] = "".join(lines)
    assert node.texts("conntrack")[0] == told
    commands = node.findings("conntrack")[0].commands
    assert commands == (("conntrack -D -p tcp -d 10.96.0.2 --dport 443",) if told.startswith("warning") else ())


@pytest.mark.parametrize(
    ("later", "told"),
    [
        ([at(431998)], [f"note: 1 connection to {WHERE} is {LEFT}"]),
        ([at(431999)], [f"warning: 1 connection to {WHERE} is {IN_VAIN.removeprefix('are ')}"]),
        ([at(431998), at(119, 41001)],
         [f"warning: 1 connection to {WHERE} is {IN_VAIN.removeprefix('are ')}",
          f"note: 1 connection to {WHERE} is {LEFT}"]),
        ([], [f"ok: no connection to {WHERE} is tracked any more"]),
    ],
    ids=["idle", "active", "both", "gone"],
)  # fmt: skip
def test_a_connection_without_traffic_is_not_in_the_way(
    node: RecordedNode, mocker: MockerFixture, later: list[str], told: list[str]
) -> None:
    node.files["/proc/net/nf_conntrack"] = at(431999)

    def sleep(seconds: float) -> None:
        node.now += seconds
        node.files["/proc/net/nf_conntrack"] = "".join(later)

    mocker.patch("time.sleep", side_effect=sleep)
    found = node.findings("conntrack")
    assert [f"{each.level.value}: {each.found}" for each in found] == told
    assert all(bool(each.commands) == (each.level is Level.WARNING) for each in found)


def test_no_time_for_a_second_look(node: RecordedNode) -> None:
    node.files["/proc/net/nf_conntrack"] = TO_US
    view = node.view()
    view.time_left = lambda: PAUSE / 2
    said = [each.found for each in diagnose(view) if each.topic == "conntrack"]
    assert said == [
        f"1 connection to {WHERE} is tracked; whether there is traffic of theirs, was not checked for lack of time"
    ]


@pytest.mark.parametrize(
    ("programs", "files", "told"),
    [
        (set(), {"/proc/net/nf_conntrack": PermissionError(13, "Permission denied")},
         f"{UNSEEN_CONNECTIONS}Permission denied"),
        ({"conntrack"}, {}, f"{UNSEEN_CONNECTIONS}`conntrack -L -p tcp` exited with 1: {REFUSED}"),
        (set(), {"/proc/sys/net/netfilter/nf_conntrack_count": "7\n"}, UNSEEN_CONNECTIONS + NOT_INSTALLED),
        (set(), {}, NONE),
    ],
)  # fmt: skip
def test_tracked_connections_that_cannot_be_looked_at(
    node: RecordedNode, programs: set[str], files: dict[str, str | OSError], told: str
) -> None:
    node.programs = node.programs - {"conntrack"} | programs
    node.set(files=files).answers["conntrack"] = Result(1, "", f"{REFUSED}\n")
    assert node.texts("conntrack") == [told]


@pytest.mark.parametrize(("number", "told"), [(0, []), (2, [f"warning: 2 connections to {WHERE} {IN_VAIN}"])])
def test_tracked_connections_that_are_too_many(
    node: RecordedNode, mocker: MockerFixture, number: int, told: list[str]
) -> None:
    lines = [*(at(9, sport) for sport in range(number)), *["udp\n"] * (9 - number)]
    mocker.patch("sidecar.node.proc.lines", return_value=(lines, False))
    left = "unknown: only the first 9 tracked connections were checked, for lack of time"
    assert node.texts("conntrack") == [*told, left]
