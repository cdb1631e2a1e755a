import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.text import quoted, visible


@pytest.mark.parametrize("text", ["", "10.96.0.2/32 on lo", "Grüße ✓ 日本 😀", r"a\nb", "'\"`$"])
def test_what_is_printable_stays_as_it_is(text: str) -> None:
    assert visible(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", r"a\nb"),
        ("a\r\tb\0", r"a\r\tb\x00"),
        ("\x1b[2J\x7f", r"\x1b[2J\x7f"),
        ("\x85\x9b\xa0", r"\x85\x9b\xa0"),  # the next line, an escape and a space, to some terminals
        ("\u2028\u202e\ufeff", r"\u2028\u202e\ufeff"),  # a line's end, a change of direction, nothing
        ("\udcff", r"\udcff"),  # a byte that is no UTF-8
        ("é\U000e0001", r"é\U000e0001"),
    ],
)
def test_what_is_not_printable_is_escaped(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text(st.characters(codec=None)))
def test_whatever_it_is_it_takes_one_line(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable()
    assert shown.splitlines() in ([], [shown])
    shown.encode()  # it can be written


def test_what_somebody_typed_is_cut_where_it_gets_too_long() -> None:
    assert quoted("x" * 60) == "x" * 60
    assert quoted("x" * 61) == "x" * 59 + "…"
    assert quoted("x" * 10**6) == "x" * 59 + "…"
    assert quoted("abcdef", 5) == "abcd…"
    assert quoted("abcde", 5) == "abcde"
    assert quoted("") == ""


def test_the_escapes_count() -> None:
    assert quoted("\n" * 30) == r"\n" * 30
    assert quoted("\n" * 31) == r"\n" * 29 + "\\…"
    assert quoted("a\nb") == r"a\nb"


@given(st.text(), st.integers(1, 80))
def test_it_is_never_longer_than_it_may_be(text: str, longest: int) -> None:
    assert len(quoted(text, longest)) <= longest
    assert quoted(text, longest).isprintable()
