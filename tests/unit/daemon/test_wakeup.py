import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from sidecar.daemon.wakeup import Wakeup, Woken
from sidecar.node.events import Events
from sidecar.node.signals import signal_pipe
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
    wakeup = Wakeup(signal_pipe()[0], on_stop=pytest.fail, on_interrupt=pytest.fail)
    started = time.monotonic()
    assert wakeup.wait(0.2) is Woken.BY_CLOCK
    assert time.monotonic() - started >= 0.2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_ends_the_sleep(number: int) -> None:
    stopped: list[bool] = []
    wakeup = Wakeup(signal_pipe()[0], on_stop=lambda: stopped.append(True), on_interrupt=pytest.fail)
    later(number)
    assert wakeup.wait(FOREVER) is Woken.BY_SIGNAL
    assert wakeup.stopping
    assert stopped == [True]


def test_a_hangup_ends_the_sleep_and_is_no_stop() -> None:
    wakeup = Wakeup(signal_pipe()[0], on_stop=pytest.fail, on_interrupt=pytest.fail)
    later(signal.SIGHUP)
    assert wakeup.wait(FOREVER) is Woken.BY_SIGNAL
    assert not wakeup.stopping
    assert wakeup.wait(0.2) is Woken.BY_CLOCK  # it counts for one sleep only


def test_a_signal_that_came_before_the_sleep_ends_it() -> None:
    wakeup = Wakeup(signal_pipe()[0], on_stop=pytest.fail, on_interrupt=pytest.fail)
    os.kill(os.getpid(), signal.SIGHUP)
    assert wakeup.wait(FOREVER) is Woken.BY_SIGNAL


def test_the_second_stop_is_told_apart_from_the_first() -> None:
    heard: list[str] = []
    Wakeup(signal_pipe()[0], on_stop=lambda: heard.append("stop"), on_interrupt=lambda: heard.append("interrupt"))
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.raise_signal(number)
    assert heard == ["stop", "interrupt", "interrupt"]


def test_a_thousand_signals_neither_block_nor_are_lost() -> None:
    wakeup = Wakeup(signal_pipe()[0], on_stop=pytest.fail, on_interrupt=pytest.fail)
    for _ in range(100_000):
        signal.raise_signal(signal.SIGHUP)
    assert wakeup.wait(FOREVER) is Woken.BY_SIGNAL


class Noise(Events):
    """A node on which something always happens that does not concern us; stands in for a very busy one."""

    def __init__(self, *changes: int) -> None:
        self._sockets = {}
        self._changes = list(changes)
        self._legacy_families = [4] if changes else []
        self._read_end, self._write_end = os.pipe()
        os.write(self._write_end, b"x")

    @property
    def descriptors(self) -> tuple[int, ...]:
        return (self._read_end,)

    def arrived(self, _descriptor: int) -> bool:
        return False

    def probe(self) -> bool:
        return bool(self._changes.pop(0))


@pytest.fixture
def _in_time() -> Iterator[None]:
    """Let a test fail that would never end."""

    def give_up(*_: Any) -> None:  # noqa: ANN401 - a signal's number, and a frame
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("_in_time")
def test_noise_delays_neither_the_clock_nor_the_look_at_the_tables_of_legacy() -> None:
    wakeup = Wakeup(signal_pipe()[0], on_stop=pytest.fail, on_interrupt=pytest.fail)
    assert wakeup.wait(0.2, Noise()) is Woken.BY_CLOCK
    assert wakeup.wait(FOREVER, Noise(0, 1)) is Woken.BY_EVENT
