"""Claims of several holders: each opens files of its own, as processes do."""

import errno
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from sidecar.node import claims
from sidecar.node.claims import Claims
from sidecar.state.model import Address, Claim, Interface, RuleSet
from support.namespace import IPV4, IPV6, Namespace
from support.waiting import HANG, until

A, B, C = (Interface(name) for name in "abc")


def holder(directory: Path, *claims: Claim) -> Claims:
    held = Claims(directory)
    held.take(claims, is_over=lambda: False)
    return held


def test_alone_everything_is_ours_to_remove(tmp_path: Path) -> None:
    assert holder(tmp_path, A, B).claimed_by_others() == frozenset()


def test_what_another_holder_claims_is_left_to_it(tmp_path: Path) -> None:
    old, new = holder(tmp_path, A, B), holder(tmp_path, B, C)
    assert old.claimed_by_others() == {B}
    assert new.claimed_by_others() == frozenset()  # the old one has given up its claim


def test_what_is_claimed_can_be_seen_without_taking_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        claims.held([A], tmp_path)
    first = holder(tmp_path, A, B)
    for _ in range(2):
        assert claims.held([A, C], tmp_path) == {A}
    assert first.claimed_by_others() == frozenset()
    assert holder(tmp_path, C).claimed_by_others() == frozenset()


def test_of_many_that_clean_up_the_last_one_removes(tmp_path: Path) -> None:
    holders = [holder(tmp_path, A) for _ in range(4)]
    assert [each.claimed_by_others() for each in holders] == [{A}, {A}, {A}, frozenset()]


def test_who_starts_during_a_cleanup_waits_for_it(tmp_path: Path, log: list[str]) -> None:
    cleaning = holder(tmp_path, A)
    assert cleaning.claimed_by_others() == frozenset()
    is_over = threading.Event()
    starting = Claims(tmp_path)
    thread = threading.Thread(target=starting.take, args=([A],), kwargs={"is_over": is_over.is_set})
    thread.start()
    until(lambda: log)
    assert log == ["INFO another instance is cleaning up interface a: waiting for it"]
    is_over.set()
    thread.join(HANG)
    assert not thread.is_alive()


def test_it_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]) -> None:
    monkeypatch.setattr(claims, "PATIENCE", 0.1)
    cleaning = holder(tmp_path, A)
    assert cleaning.claimed_by_others() == frozenset()
    holder(tmp_path, A)
    assert log[-1] == "WARNING another instance is still cleaning up interface a: continuing without waiting for it"


def test_a_claim_that_was_not_given_back_in_time_is_made_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    monkeypatch.setattr(claims, "PATIENCE", 0.1)
    hung = holder(tmp_path, A)
    hung.claimed_by_others()
    late = holder(tmp_path, A, B)
    late.take_missing()
    assert claims.held([A, B], tmp_path) == {A, B}  # A by the one that hangs
    hung.give_back()  # as when its process ends
    assert claims.held([A, B], tmp_path) == {B}
    late.take_missing()
    assert claims.held([A, B], tmp_path) == {A, B}
    assert log[-1] == "INFO the other instance's cleanup of interface a has ended: claimed"
    assert holder(tmp_path, A, B).claimed_by_others() == {A, B}
    assert late.claimed_by_others() == frozenset()


@pytest.fixture
def refuse_locks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a stand-in for a file system that refuses locks: here, the kernel grants all."""

    def refuse(number: int) -> None:
        def fcntl(*_: object) -> bytes:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("sidecar.node.claims.fcntl.fcntl", fcntl)

    return refuse


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EINVAL])
def test_where_nothing_can_be_locked_it_says_so_and_goes_on(
    tmp_path: Path, refuse_locks: Callable[[int], None], log: list[str], number: int
) -> None:
    refuse_locks(number)
    before = len(os.listdir("/proc/self/fd"))
    alone = holder(tmp_path, A, B)
    alone.take_missing()
    assert alone.claimed_by_others() == frozenset()
    assert len(os.listdir("/proc/self/fd")) == before
    (line,) = log
    assert line.startswith(f"WARNING cannot use {tmp_path} ({os.strerror(number)}): a cleanup by this or another")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EINVAL])
def test_what_others_need_is_unknown_if_the_locks_fail_at_the_end(
    tmp_path: Path, refuse_locks: Callable[[int], None], log: list[str], number: int
) -> None:
    held = holder(tmp_path, A, B)
    refuse_locks(number)
    assert held.claimed_by_others() == {A, B}
    (line,) = log
    assert line.startswith(
        f"WARNING cannot lock {tmp_path}/claims ({os.strerror(number)}): cannot tell whether another instance"
    )


def test_any_number_of_things_takes_one_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    many = holder(tmp_path, *(Interface(f"link{n}") for n in range(3000)))
    assert len(os.listdir("/proc/self/fd")) == before + 1
    few = holder(tmp_path, Interface("link7"))
    assert many.claimed_by_others() == {Interface("link7")}
    assert few.claimed_by_others() == frozenset()


def test_a_file_that_was_removed_does_not_part_old_and_new(tmp_path: Path) -> None:
    old = holder(tmp_path, A)
    (tmp_path / "claims").unlink()
    new = holder(tmp_path, A)
    assert old.claimed_by_others() == {A}
    assert new.claimed_by_others() == frozenset()


def test_where_there_can_be_no_files_it_says_so(tmp_path: Path, log: list[str]) -> None:
    file = tmp_path / "file"
    file.touch()
    assert holder(file, A, B).claimed_by_others() == frozenset()
    (line,) = log
    assert line.startswith(f"WARNING cannot use {file} (File exists): a cleanup by this or another instance")


def test_a_link_in_the_place_of_a_file_is_not_followed(tmp_path: Path, log: list[str]) -> None:
    (tmp_path / "claims").symlink_to(tmp_path / "victim")
    holder(tmp_path, A)
    assert not (tmp_path / "victim").exists()
    assert len(log) == 1


def test_addresses_rules_and_interfaces_are_apart(tmp_path: Path) -> None:
    claims: list[Claim] = [
        Address(IPV4, 32, "lo"), Address(IPV4, 32, "lo0"), Address(IPV6, 128, "lo"),
        RuleSet(IPV4, 443), RuleSet(IPV4, 9443), RuleSet(IPV6, 443), Interface("lo"),
    ]  # fmt: skip
    for number, claim in enumerate(claims):
        folder = tmp_path / str(number)
        first, second = holder(folder, *claims), holder(folder, claim)
        assert first.claimed_by_others() == {claim}
        assert second.claimed_by_others() == frozenset()


def test_a_claim_in_another_network_namespace_is_another_one(tmp_path: Path, namespace: Namespace) -> None:
    there = namespace.fork(partial(hold_a, tmp_path))
    assert there.stdout
    assert there.stdout.readline() == "held\n"
    assert holder(tmp_path, A).claimed_by_others() == frozenset()
    there.kill()
    there.communicate()


def hold_a(directory: Path) -> None:
    held = holder(directory, A)
    print("held", flush=True)
    signal.pause()
    held.claimed_by_others()
