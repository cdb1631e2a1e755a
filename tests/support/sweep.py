"""Moments and subsets: a choice of them by default, all of them with --thorough."""

from collections.abc import Collection, Iterable
from typing import TypeVar

import pytest

T = TypeVar("T")


def sweep(values: Iterable[T], chosen: Collection[T]) -> list[object]:
    """Return the values as parameters of a test; those that are not chosen are for --thorough."""
    marks = {True: (), False: (pytest.mark.thorough,)}
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=marks[value in chosen])
        for value in values
    ]
