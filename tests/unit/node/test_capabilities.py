"""What /proc/PID/status tells, as Linux 6.18 prints it."""

from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from sidecar.node import capabilities
from sidecar.node.capabilities import has, in_initial_user_namespace

STATUS = """\
Name:\tpython3
Umask:\t0022
State:\tR (running)
Pid:\t{pid}
Uid:\t0\t0\t0\t0
NoNewPrivs:\t1
CapInh:\t{others}
CapPrm:\t{others}
CapEff:\t{effective}
CapBnd:\t{others}
CapAmb:\t{others}
Seccomp:\t2
"""
ALL = "000001ffffffffff"
NONE = "0000000000000000"


@pytest.fixture
def proc(tmp_path: Path, mocker: MockerFixture) -> Path:
    """Return a folder that stands for /proc."""
    mocker.patch("sidecar.node.capabilities.Path", lambda path: tmp_path / path.removeprefix("/proc/"))
    return tmp_path


def write(proc: Path, process: str, effective: str, others: str) -> None:
    (proc / process).mkdir(exist_ok=True)
    (proc / process / "status").write_text(STATUS.format(pid=7, effective=effective, others=others))


@pytest.mark.parametrize(
    ("effective", "admin", "raw"),
    [
        (ALL, True, True),
        (NONE, False, False),
        ("0000000000001000", True, False),
        ("0000000000002000", False, True),
        ("0000000000003000", True, True),
        ("000001ffffffcfff", False, False),
        ("00000000a80425fb", False, True),  # what a container has that is given nothing
        ("00000000a80435fb", True, True),  # and one with NET_ADMIN added
    ],
)
@pytest.mark.parametrize("others", [ALL, NONE])
def test_only_the_effective_set_counts(proc: Path, effective: str, admin: bool, raw: bool, others: str) -> None:  # noqa: FBT001 - parameters
    write(proc, "self", effective, others)
    assert (has("CAP_NET_ADMIN"), has("CAP_NET_RAW")) == (admin, raw)


def test_of_each_process_its_own(proc: Path) -> None:
    write(proc, "self", ALL, ALL)
    write(proc, "7", NONE, ALL)
    assert has("CAP_NET_ADMIN")
    assert not has("CAP_NET_ADMIN", 7)
    with pytest.raises(FileNotFoundError):
        has("CAP_NET_ADMIN", 8)


@pytest.mark.parametrize(
    ("effective", "missing"),
    [(ALL, ()), ("0000000000001000", ("CAP_NET_RAW",)), (NONE, ("CAP_NET_ADMIN", "CAP_NET_RAW"))],
)
def test_what_is_missing_on_a_network_of_ours(
    proc: Path, mocker: MockerFixture, effective: str, missing: tuple[str, ...]
) -> None:
    write(proc, "self", effective, ALL)
    mocker.patch("sidecar.node.capabilities._owns_network", return_value=True)
    assert capabilities.missing("CAP_NET_ADMIN", "CAP_NET_RAW") == missing
    assert capabilities.missing("CAP_NET_RAW") == tuple(name for name in missing if name == "CAP_NET_RAW")


def test_on_the_network_of_somebody_else_all_of_them_are_missing(proc: Path, mocker: MockerFixture) -> None:
    write(proc, "self", ALL, ALL)
    mocker.patch("sidecar.node.capabilities._owns_network", return_value=False)
    assert capabilities.missing("CAP_NET_ADMIN", "CAP_NET_RAW") == ("CAP_NET_ADMIN", "CAP_NET_RAW")


def test_what_cannot_be_found_out_is_not_claimed(proc: Path, mocker: MockerFixture) -> None:
    assert capabilities.missing("CAP_NET_ADMIN") == ()  # there is no such file
    write(proc, "self", NONE, NONE)
    mocker.patch("sidecar.node.capabilities._owns_network", side_effect=OSError)
    assert capabilities.missing("CAP_NET_ADMIN") == ()


@pytest.mark.parametrize(
    ("text", "is_initial"),
    [
        ("         0          0 4294967295\n", True),
        ("         0       1000          1\n", False),
        ("         0     100000      65536\n", False),
        ("         0          0       1000\n      1000       1000 4294966295\n", False),
        ("", False),
    ],
)
def test_whether_user_ids_are_those_of_the_node(proc: Path, text: str, is_initial: bool) -> None:  # noqa: FBT001 - a parameter
    (proc / "self").mkdir()
    (proc / "self" / "uid_map").write_text(text)
    assert in_initial_user_namespace() is is_initial


def test_without_user_namespaces_they_are(proc: Path) -> None:
    assert not (proc / "self").exists()
    assert in_initial_user_namespace()
