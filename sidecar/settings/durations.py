"""Converts between seconds and Go durations: `1m0s`, `1h15m30.5s`, `500ms`.

The grammar is that of Go's time.ParseDuration and Duration.String (https://pkg.go.dev/time#ParseDuration),
without a sign: a negative interval has no meaning here.
"""

import re
from decimal import Decimal

_SECONDS = {
    "ns": Decimal("1e-9"),
    "us": Decimal("1e-6"),
    "µs": Decimal("1e-6"),  # U+00B5, the micro sign
    "μs": Decimal("1e-6"),  # U+03BC, the Greek letter, which Go accepts too
    "ms": Decimal("1e-3"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
}
_NUMBER_AND_UNIT = re.compile(rf"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)({'|'.join(_SECONDS)})", re.ASCII)
#: Seconds; Go counts nanoseconds in 64 bits.
_LONGEST = Decimal(2**63 - 1) / 1_000_000_000
#: Characters; people do not write longer durations.
_LONGEST_TEXT = 100

_DURATION = re.compile(rf"(?:{_NUMBER_AND_UNIT.pattern})+", re.ASCII)


def parse(text: str) -> float:
    """Return the seconds of a Go duration, in whole nanoseconds; raise ValueError if it is not a duration."""
    if text == "0":  # the one number that Go takes without a unit
        return 0.0
    if len(text) > _LONGEST_TEXT or not _DURATION.fullmatch(text):
        hint = f"; did you mean {text}s?" if re.fullmatch("[0-9]{1,9}", text) else ""
        raise ValueError(f"not a duration: write it like 90s, 1m30s or 500ms{hint}")
    seconds = sum(Decimal(number) * _SECONDS[unit] for number, unit in _NUMBER_AND_UNIT.findall(text))
    if seconds > _LONGEST:
        raise ValueError("out of range: Go's durations end at 2562047h47m")
    return int(seconds * 1_000_000_000) / 1_000_000_000


def render(seconds: float) -> str:
    """Return the duration as Go prints it: 60 → 1m0s, 0.5 → 500ms."""
    nanoseconds = round(seconds * 1_000_000_000)
    for unit, size in (("ns", 1), ("µs", 1_000), ("ms", 1_000_000)):
        if nanoseconds < size * 1_000 and nanoseconds:
            return f"{_shortest(Decimal(nanoseconds) / size)}{unit}"
    minutes, rest = divmod(nanoseconds, 60_000_000_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{_shortest(Decimal(rest) / 1_000_000_000)}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text


def _shortest(number: Decimal) -> str:
    return f"{number:f}".rstrip("0").rstrip(".") if "." in f"{number:f}" else f"{number:f}"
