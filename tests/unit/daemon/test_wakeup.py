import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from sidecar.daemon.wakeup import Wakeup, Woken
from support.waiting import FOREVER


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Put everything back as it was: a Wakeup is there to the end of its process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    signal.set_wakeup_fd(-1)


def later(number: int, seconds: float = 0.1) -> None:
    threading.Timer(seconds, os.kill, (os.getpid(), number)).start()


def test_without_a_signal_it_sleeps_for_the_whole_time() -> None:
    wakeup = Wakeup(on_stop=pytest.fail, on_interrupt=pytest.fail)
    started = time.monotonic()
    assert wakeup.wait(0.2) is Woken.BY_CLOCK
    assert time.monotonic() - started >= 0.2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_ends_the_sleep(number: int) -> None:
    stopped: list[bool] = []
    wakeup = Wakeup(on_stop=lambda: stopped.append(True), on_interrupt=pytest.fail)
    later(number)
    assert wakeup.wait(FOREVER) is Woken.BY_SIGNAL
    assert wakeup.stopping
    assert stopped == [True]


def test_a_hangup_ends_the_sleep_and_is_no_stop() -> None:
    wakeup = Wakeup(on_stop=pytest.fail, on_interrupt=pytest.fail)
    later(signal.SIGHUP)
    assert wakeup.wait(FOREVER) is Woken.BY_SIGNAL
    assert not wakeup.stopping
    assert wakeup.wait(0.2) is Woken.BY_CLOCK  # it counts for one sleep only


def test_a_signal_that_came_before_the_sleep_ends_it() -> None:
    wakeup = Wakeup(on_stop=pytest.fail, on_interrupt=pytest.fail)
    os.kill(os.getpid(), signal.SIGHUP)
    assert wakeup.wait(FOREVER) is Woken.BY_SIGNAL


def test_the_second_stop_is_told_apart_from_the_first() -> None:
    heard: list[str] = []
    Wakeup(on_stop=lambda: heard.append("stop"), on_interrupt=lambda: heard.append("interrupt"))
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.raise_signal(number)
    assert heard == ["stop", "interrupt", "interrupt"]


def test_a_thousand_signals_neither_block_nor_are_lost() -> None:
    wakeup = Wakeup(on_stop=pytest.fail, on_interrupt=pytest.fail)
    for _ in range(100_000):
        signal.raise_signal(signal.SIGHUP)
    assert wakeup.wait(FOREVER) is Woken.BY_SIGNAL
