import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.settings import durations

# Text and seconds as Go's time.ParseDuration has them.
PARSED = {
    "1m0s": 60,
    "90s": 90,
    "1h15m30.5s": 4530.5,
    "500ms": 0.5,
    "1.5h": 5400,
    ".5s": 0.5,
    "5.s": 5,
    "250us": 0.00025,
    "250µs": 0.00025,
    "250\u03bcs": 0.00025,
    "10ns": 1e-8,
    "1s1s": 2,
    "0s": 0,
    "0.1ns": 0,
    "2562047h47m16s": 9223372036,
}

REFUSED = [
    "",
    "5",
    "s",
    "1",
    ".s",
    "1 m",
    " 1s",
    "1s ",
    "-1s",
    "+1s",
    "1d",
    "1m30",
    "1,5s",
    "1e3s",
    "٣s",
    "1s\n",
    "0" * 100 + "s",
]

# What Go's Duration.String prints.
RENDERED = {
    60: "1m0s",
    4530.5: "1h15m30.5s",
    0.5: "500ms",
    3600: "1h0m0s",
    1: "1s",
    10: "10s",
    100: "1m40s",
    0.0015: "1.5ms",
    2.5e-5: "25µs",
    1e-8: "10ns",
    0: "0s",
}


@pytest.mark.parametrize(("text", "seconds"), PARSED.items())
def test_go_durations_are_read(text: str, seconds: float) -> None:
    assert durations.parse(text) == seconds


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_go_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        durations.parse(text)


@pytest.mark.parametrize("text", ["2562048h", "9" * 90 + "h", "9223372037s"])
def test_what_go_could_not_hold_is_out_of_range(text: str) -> None:
    with pytest.raises(ValueError, match="out of range"):
        durations.parse(text)


@pytest.mark.parametrize(("seconds", "text"), RENDERED.items())
def test_durations_are_printed_as_go_does(seconds: float, text: str) -> None:
    assert durations.render(seconds) == text


@given(st.integers(min_value=0, max_value=10**15))
def test_what_is_printed_reads_back(microseconds: int) -> None:
    assert durations.parse(durations.render(microseconds / 1e6)) == pytest.approx(
        microseconds / 1e6, rel=1e-12, abs=1e-9
    )
