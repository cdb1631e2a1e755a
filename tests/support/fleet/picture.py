"""Draws the repairs of a fleet as SVG: each of them over time, and how they are distributed."""

import math
from collections.abc import Iterator
from html import escape
from typing import Final

from support.fleet.kernel import Outage
from support.fleet.report import Report

_LONGEST: Final = 10.0  # seconds, the upper end of the axis; the lower one is
_SHORTEST: Final = 0.001
_DECADES: Final = {0.001: "1 ms", 0.01: "10 ms", 0.1: "100 ms", 1.0: "1 s", 10.0: "10 s"}

# Pixels
_LEFT, _TOP, _WIDTH, _HEIGHT = 60, 40, 520, 260
_RIGHT, _BARS = 640, 220
_BOTTOM: Final = _TOP + _HEIGHT

_BINS: Final = 24
_HINDERED: Final = "hindered"
_COLOURS: Final = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#cc79a7")  # can be told apart by the colour-blind
_GREY: Final = "#999999"


def drawn(report: Report) -> str:
    """Return the picture."""
    kinds = sorted({each.kind for each in report.outages})
    colours = dict(zip(kinds, _COLOURS, strict=False))
    end = max([report.seconds, report.update[1], *(each.back for each in report.outages)])
    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 360" width="900" height="360" font-size="12"',
        'font-family="sans-serif" role="img" aria-label="repairs of a fleet over time, and their distribution">',
        '<rect width="900" height="360" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="20">{escape(_title(report))}</text>',
        *_axes(end),
        *_update(report, end),
        *(_point(each, end, colours) for each in report.outages),
        *_distribution(report, colours),
        *_legend([*colours.items(), ("the sidecar or its lock was held up", _GREY)]),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _title(report: Report) -> str:
    return (
        f"{sum(report.nodes.values())} nodes, {len(report.outages)} repairs, from gone to back; seed {report.seed}; "
        f"load of the machine {report.load[0]:.1f} before and {report.load[1]:.1f} after"
    )


def _share(seconds: float) -> float:
    """Return how far up the axis a duration is, from 0 to 1."""
    within = min(max(seconds, _SHORTEST), _LONGEST)
    return math.log(within / _SHORTEST) / math.log(_LONGEST / _SHORTEST)


def _axes(end: float) -> Iterator[str]:
    for seconds, text in _DECADES.items():
        y = _BOTTOM - _share(seconds) * _HEIGHT
        for left, right in ((_LEFT, _LEFT + _WIDTH), (_RIGHT, _RIGHT + _BARS)):
            yield f'<path d="M{left} {y:.1f}H{right}" stroke="#dddddd"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    for each in range(5):
        x = _LEFT + _WIDTH * each / 4
        yield f'<text x="{x}" y="{_BOTTOM + 18}" text-anchor="middle">{end * each / 4:.0f} s</text>'


def _update(report: Report, end: float) -> Iterator[str]:
    left, right = (_LEFT + _WIDTH * at / end for at in report.update)
    size = f'width="{right - left:.1f}" height="{_HEIGHT}"'
    yield f'<rect x="{left:.1f}" y="{_TOP}" {size} fill="#000000" opacity="0.06"/>'
    yield f'<text x="{left + 4:.1f}" y="{_TOP + 14}">update of all</text>'


def _point(each: Outage, end: float, colours: dict[str, str]) -> str:
    x, y = _LEFT + _WIDTH * each.gone / end, _BOTTOM - _share(each.seconds) * _HEIGHT
    colour = _GREY if each.hindered else colours[each.kind]
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{colour}" opacity="0.7"/>'


def _distribution(report: Report, colours: dict[str, str]) -> Iterator[str]:
    """Yield the bars: how many repairs took so long, the kinds beside each other."""
    stacks: list[dict[str, int]] = [{} for _ in range(_BINS)]
    for each in report.outages:
        stack = stacks[min(int(_share(each.seconds) * _BINS), _BINS - 1)]
        colour = _GREY if each.hindered else colours[each.kind]
        stack[colour] = stack.get(colour, 0) + 1
    most = max(sum(stack.values()) for stack in stacks) or 1
    height = _HEIGHT / _BINS
    for number, stack in enumerate(stacks):
        x = float(_RIGHT)
        for colour in (*colours.values(), _GREY):
            width = _BARS * stack.get(colour, 0) / most
            y = _BOTTOM - (number + 1) * height
            if width:
                yield f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height - 1:.1f}" fill="{colour}"/>'
            x += width
    yield f'<text x="{_RIGHT + _BARS}" y="{_BOTTOM + 18}" text-anchor="end">{most} repairs</text>'


def _legend(entries: list[tuple[str, str]]) -> Iterator[str]:
    for number, (name, colour) in enumerate(entries):
        x = _LEFT + number * 110
        yield f'<circle cx="{x}" cy="{_BOTTOM + 42}" r="4" fill="{colour}"/>'
        yield f'<text x="{x + 8}" y="{_BOTTOM + 46}">{escape(name)}</text>'
