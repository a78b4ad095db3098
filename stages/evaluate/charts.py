"""Figures → strips, bars and lines as inline SVG, placed in percent so that no page distorts them.

Colours and strokes are the style sheet's. Every text of a caller is escaped.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

MAX_POINTS = 500
"""Of a line: more are closer together than a screen's dots."""


@dataclass(frozen=True)
class Scale:
    """An axis: values between `low` and `high`, with a grid line at each tick."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """How far along the axis, from 0 to 100; a value outside stands at the end."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(max(share, 0), 1), 2)


UNIT = Scale(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0))


def around_zero(values: Iterable[float]) -> Scale:
    """Zero in the middle, and the farthest of the values within the ends."""
    reach = _round_above(max((abs(value) for value in values), default=0))
    return Scale(-reach, reach, (-reach, -reach / 2, 0.0, reach / 2, reach))


def from_zero(values: Iterable[float]) -> Scale:
    """From zero to a round number at or above the highest value, in four steps."""
    reach = _round_above(max(values, default=0))
    return Scale(0.0, reach, tuple(reach * quarter / 4 for quarter in range(5)))


def strip(
    scale: Scale, at: float | None, low: float | None, high: float | None, look: str, title: str
) -> Markup:
    """A dot at a value with the whisker of its interval, on one row of the axis.

    Without a value there is no dot, and without an interval no whisker.
    """
    marks = []
    if low is not None and high is not None:
        left, right = scale.place(low), scale.place(high)
        marks.append(_line("whisker", left, right, 0, 0))
        marks += [_line("whisker", end, end, -5, 5) for end in (left, right)]
    if at is not None:
        marks.append(Markup('<circle class="dot" cx="{}%" cy="0" r="5"/>').format(scale.place(at)))
    # Rows grow with their labels: the marks stand about the middle, whatever the height.
    middle = Markup('<svg x="0" y="50%" width="100%" height="1" class="over">{}</svg>')
    return _svg("strip " + look, title, _grid(scale), middle.format(Markup("").join(marks)))


def axis(scale: Scale) -> Markup:
    """The ticks of the strips above it as numbers."""
    signed = scale.low < 0
    labels = [
        Markup('<text x="{}%" y="14" text-anchor="middle">{}</text>').format(
            scale.place(tick), _number(tick, signed)
        )
        for tick in scale.ticks
    ]
    title = f"Axis from {_number(scale.low, signed)} to {_number(scale.high, signed)}"
    return _svg("axis", title, *labels)


def bar(share: float, title: str) -> Markup:
    """A bar as long as its share of one."""
    length = Markup('<rect class="track" width="100%" height="100%" rx="2"/>')
    length += Markup('<rect class="bar" width="{}%" height="100%" rx="2"/>').format(
        UNIT.place(share)
    )
    return _svg("bars", title, length)


def lines(series: Mapping[str, Sequence[tuple[float, float]]], title: str) -> Markup:
    """Lines over a common x, each of class `line-1`, `line-2`, … in the order of the series."""
    points = [point for row in series.values() for point in row]
    up = from_zero(y for _, y in points)
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    along = Scale(first, last, ()) if last > first else Scale(first - 1, first + 1, ())
    ticks = sorted({first, round(first + (last - first) / 2), last})
    drawn = []
    for tick in up.ticks:
        y = round(100 - up.place(tick), 2)
        drawn.append(
            Markup(
                '<line class="grid" x1="0" x2="100%" y1="{y}%" y2="{y}%"/>'
                '<text x="-8" y="{y}%" dy="4" text-anchor="end">{label}</text>'
            ).format(y=y, label=_number(tick))
        )
    for tick in ticks:
        drawn.append(
            Markup('<text x="{}%" y="100%" dy="18" text-anchor="middle">{}</text>').format(
                along.place(tick), _number(tick)
            )
        )
    for number, row in enumerate(series.values(), 1):
        thinned = [*row[:: math.ceil(len(row) / MAX_POINTS) or 1], *row[-1:]]
        places = " ".join(f"{along.place(x):g},{round(100 - up.place(y), 2):g}" for x, y in thinned)
        drawn.append(
            Markup(
                '<svg viewBox="0 0 100 100" preserveAspectRatio="none" class="over">'
                '<polyline class="line-{}" points="{}"/></svg>'
            ).format(number, places)
        )
    return _svg("curve", title, *drawn)


def _svg(look: str, title: str, *content: Markup) -> Markup:
    return Markup('<svg class="{}" role="img"><title>{}</title>{}</svg>').format(
        look, title, Markup("").join(content)
    )


def _grid(scale: Scale) -> Markup:
    return Markup("").join(
        Markup('<line class="{look}" x1="{x}%" x2="{x}%" y1="0" y2="100%"/>').format(
            look="zero" if tick == 0 and scale.low < 0 else "grid", x=scale.place(tick)
        )
        for tick in scale.ticks
    )


def _line(look: str, left: float, right: float, top: int, bottom: int) -> Markup:
    return Markup('<line class="{}" x1="{}%" x2="{}%" y1="{}" y2="{}"/>').format(
        look, left, right, top, bottom
    )


def _number(value: float, signed: bool = False) -> str:
    text = f"{value:+g}" if signed and value else f"{value:g}"
    return text.replace("-", "−")


def _round_above(value: float) -> float:
    """The least of 0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, … at or above the value; 1 for nothing."""
    if not 1e-300 < value < math.inf:  # below, powers of ten are nothing
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    steps = [float(f"{step * power:.12g}") for step in (1, 2, 4, 6, 8, 10)]
    return next(step for step in steps if value <= step)
