"""Waiting without judging how long it takes: the only bound is one that nothing but a hang exceeds."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

T = TypeVar("T")

#: Seconds after which something counts as hung, however busy the machine is.
HANG: Final = 90.0

#: Seconds that a command sleeps whose end nobody may wait for.
FOREVER: Final = 600

#: Seconds between two looks.
_PAUSE: Final = 0.01


def until(look: Callable[[], T], hint: Callable[[], object] = lambda: "") -> T:
    """Look again and again until what is seen is true, and return it; `hint` says more after a hang."""
    started = time.monotonic()
    while not (seen := look()):
        if time.monotonic() - started > HANG:
            raise AssertionError(f"it did not come true within {HANG} s: {hint()}")
        time.sleep(_PAUSE)
    return seen


@contextmanager
def no_hang() -> Iterator[None]:
    """Hold that the block does not wait for something that takes FOREVER."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < HANG
