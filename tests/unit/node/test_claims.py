"""Claims of several holders: each opens files of its own, as processes do."""

import os
import threading
from pathlib import Path

import pytest

from sidecar.node import claims
from sidecar.node.claims import Claims
from support.waiting import HANG, until


def holder(directory: Path, *names: str) -> Claims:
    held = Claims(directory)
    held.take(names, is_over=lambda: False)
    return held


def test_alone_everything_is_ours_to_remove(tmp_path: Path) -> None:
    assert holder(tmp_path, "a", "b").wanted_by_others() == frozenset()


def test_what_another_holder_claims_is_left_to_it(tmp_path: Path) -> None:
    old, new = holder(tmp_path, "a", "b"), holder(tmp_path, "b", "c")
    assert old.wanted_by_others() == {"b"}
    assert new.wanted_by_others() == frozenset()  # the old one has given up its claim


def test_what_is_claimed_can_be_seen_without_taking_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        claims.held(["a"], tmp_path)
    first = holder(tmp_path, "a", "b")
    for _ in range(2):
        assert claims.held(["a", "c"], tmp_path) == {"a"}
    assert first.wanted_by_others() == frozenset()
    assert holder(tmp_path, "c").wanted_by_others() == frozenset()


def test_of_many_that_clean_up_the_last_one_removes(tmp_path: Path) -> None:
    holders = [holder(tmp_path, "a") for _ in range(4)]
    assert [each.wanted_by_others() for each in holders] == [{"a"}, {"a"}, {"a"}, frozenset()]


def test_who_starts_during_a_cleanup_waits_for_it(tmp_path: Path, log: list[str]) -> None:
    cleaning = holder(tmp_path, "a")
    assert cleaning.wanted_by_others() == frozenset()
    is_over = threading.Event()
    starting = Claims(tmp_path)
    thread = threading.Thread(target=starting.take, args=(["a"],), kwargs={"is_over": is_over.is_set})
    thread.start()
    until(lambda: log)
    assert log == ["INFO another instance is cleaning up a: waiting for it"]
    is_over.set()
    thread.join(HANG)
    assert not thread.is_alive()


def test_it_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]) -> None:
    monkeypatch.setattr(claims, "PATIENCE", 0.1)
    cleaning = holder(tmp_path, "a")
    assert cleaning.wanted_by_others() == frozenset()
    holder(tmp_path, "a")
    assert log[-1] == "WARNING another instance does not end its cleanup of a: going on without waiting for it"


def test_any_number_of_things_takes_one_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    many = holder(tmp_path, *(f"thing {n}" for n in range(3000)))
    assert len(os.listdir("/proc/self/fd")) == before + 1
    few = holder(tmp_path, "thing 7")
    assert many.wanted_by_others() == {"thing 7"}
    assert few.wanted_by_others() == frozenset()


def test_a_file_that_was_removed_does_not_part_old_and_new(tmp_path: Path) -> None:
    old = holder(tmp_path, "a")
    (tmp_path / "claims").unlink()
    new = holder(tmp_path, "a")
    assert old.wanted_by_others() == {"a"}
    assert new.wanted_by_others() == frozenset()


def test_where_there_can_be_no_files_it_says_so(tmp_path: Path, log: list[str]) -> None:
    file = tmp_path / "file"
    file.touch()
    assert holder(file, "a", "b").wanted_by_others() == frozenset()
    (line,) = log
    assert line.startswith(f"WARNING cannot use {file} (File exists): a cleanup by this or another instance")


def test_a_link_in_the_place_of_a_file_is_not_followed(tmp_path: Path, log: list[str]) -> None:
    (tmp_path / "claims").symlink_to(tmp_path / "victim")
    holder(tmp_path, "a")
    assert not (tmp_path / "victim").exists()
    assert len(log) == 1
