"""Work in a child process; the children are real."""

import os
import signal
import time
from collections.abc import Callable

import pytest
from pytest_mock import MockerFixture

from sidecar.settings import in_child
from support.waiting import FOREVER, no_hang


def test_the_result_comes_back_and_what_the_work_changed_stays_there() -> None:
    here: list[int] = []

    def work() -> tuple[int, str]:
        here.append(1)
        return os.getpid(), "x" * 1_000_000  # more than a pipe holds

    child, text = in_child.begin(work)()
    assert child != os.getpid()
    assert len(text) == 1_000_000
    assert here == []


def _fail() -> None:
    raise ValueError("a bug")


@pytest.mark.parametrize(
    ("work", "status"), [(_fail, 1), (lambda: os._exit(0), 0), (lambda: os.kill(os.getpid(), signal.SIGKILL), -9)]
)
def test_a_child_that_dies_is_told(work: Callable[[], None], status: int, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ChildProcessError, match=f"ended with {status}"):
        in_child.begin(work)()
    assert ("ValueError: a bug" in capfd.readouterr().err) == (status == 1)
    with pytest.raises(ChildProcessError):  # no zombie is left
        os.waitpid(-1, os.WNOHANG)


def test_a_child_that_does_not_end_is_told_and_killed(mocker: MockerFixture) -> None:
    mocker.patch.object(in_child, "PATIENCE", 0.3)
    with no_hang(), pytest.raises(ChildProcessError, match="no answer for 0 s: is --env-file on a file system that"):
        in_child.begin(lambda: time.sleep(FOREVER))()
    assert os.waitpid(-1, 0)[1] == signal.SIGKILL
