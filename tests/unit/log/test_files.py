"""Log files, where it takes no program to see what comes out: sizes, names, links, a disk that is full."""

import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from sidecar.log import files
from sidecar.log.files import LogFile
from sidecar.settings.klog import Severity

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def one_file(path: Path, megabytes: int = 0, *, has_header: bool = False) -> LogFile:
    return files.one_file(str(path), megabytes, has_header=has_header)


@pytest.fixture
def severity_file(tmp_path: Path, mocker: MockerFixture) -> LogFile:
    mocker.patch("os.uname", return_value=mocker.Mock(nodename="node1.example.org", machine="x86_64"))
    mocker.patch("os.getuid", return_value=54321)
    mocker.patch("os.getpid", return_value=42)
    mocker.patch("sidecar.log.files.LARGEST", 1000)
    return files.severity_file("sidecar", str(tmp_path), Severity.WARNING, has_header=False)


def test_the_name_and_the_link(severity_file: LogFile, tmp_path: Path) -> None:
    severity_file.append("one\n", NOW)
    name = "sidecar.node1.unknownuser.log.WARNING.20260102-030405.42"
    assert sorted(os.listdir(tmp_path)) == ["sidecar.WARNING", name]
    assert (tmp_path / "sidecar.WARNING").readlink() == Path(name)


def test_at_its_largest_a_file_is_followed_by_another(severity_file: LogFile, tmp_path: Path) -> None:
    severity_file.append("x" * 989 + "\n", NOW)
    severity_file.append("second\n", NOW)
    severity_file.append("third\n", NOW + timedelta(seconds=1))
    first, second = sorted(path for path in tmp_path.iterdir() if not path.is_symlink())
    assert first.read_text().endswith("x\nsecond\n")
    assert second.read_text() == "third\n"
    assert (tmp_path / "sidecar.WARNING").read_text() == "third\n"


def test_a_link_that_somebody_put_in_the_place_of_a_file_is_not_followed(
    severity_file: LogFile, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.touch()
    (tmp_path / "sidecar.node1.unknownuser.log.WARNING.20260102-030405.42").symlink_to(victim)
    severity_file.append("one\n", NOW)  # into the directory for temporary files
    assert victim.read_text() == ""
    assert severity_file.refused
    directory = Path(severity_file.instead)
    assert directory != tmp_path
    (directory / "sidecar.WARNING").unlink()
    (directory / "sidecar.node1.unknownuser.log.WARNING.20260102-030405.42").unlink()


def test_one_file_starts_over_at_its_limit_with_a_new_header(tmp_path: Path) -> None:
    path = tmp_path / "log"
    file = one_file(path, 1, has_header=True)
    file.append("first\n", NOW)
    with path.open("a") as more:
        more.write("x" * (files.MEGABYTE - path.stat().st_size - 7) + "\n")
    file.append("small\n"[1:], NOW)
    assert path.read_text().startswith("Log file created")
    assert "first" in path.read_text()
    file.append("second\n", NOW)
    assert path.read_text().startswith("Log file created at: 2026/01/02 03:04:05\n")
    assert path.read_text().splitlines()[4:] == ["second"]


def test_a_header_comes_once_also_where_there_is_no_size(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    keeper, read = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), b""
    file = one_file(pipe, has_header=True)
    for _ in range(3):
        file.append("line\n", NOW)
    read = os.read(keeper, 10_000)
    os.close(keeper)
    assert read.count(b"Log file created") == 1
    assert read.count(b"line\n") == 3


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A pipe takes so much, and no more: a disk that gets full, and has room again when it is read."""
    pipe = tmp_path / "disk"
    os.mkfifo(pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    yield pipe
    pipe.unlink()


def test_after_a_line_that_was_cut_the_next_one_begins_anew(full_disk: Path) -> None:
    reader = os.open(full_disk, os.O_RDONLY | os.O_NONBLOCK)
    file = one_file(full_disk)
    line = "x" * 9_999 + "\n"

    def fill() -> None:
        for _ in range(100):
            file.append(line, NOW)

    with pytest.raises(BlockingIOError) as caught:
        fill()
    assert caught.value.filename == str(full_disk)
    text = os.read(reader, 1_000_000)
    file.append("next\n", NOW)
    text += os.read(reader, 1_000_000)
    os.close(reader)
    assert text.endswith(b"\nnext\n")
    assert text.count(b"\n\n") == 0


def test_a_file_in_a_directory_that_is_none(tmp_path: Path) -> None:
    for path in (tmp_path, f"{tmp_path}/none/", f"{tmp_path}/none/log"):
        with pytest.raises(OSError, match="directory"):
            files.one_file(str(path), 0, has_header=False).append("line\n", NOW)
    assert os.listdir(tmp_path) == []


def test_a_name_that_is_no_text_can_stand_in_a_header(tmp_path: Path, mocker: MockerFixture) -> None:
    mocker.patch("os.uname", return_value=mocker.Mock(nodename="\udcffnode", machine="x86_64"))
    file = one_file(tmp_path / "log", has_header=True)
    file.append("\udcff\n", NOW)
    assert "\\udcffnode" in (tmp_path / "log").read_text()
