"""Charts with positions in percent of the plot, so that lines scale with the page while text keeps its size.

A template draws the charts. Colours are numbers that the page's style sheet resolves, in its light or dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from vispeft.report.formats import compact

NUM_COLOURS = 8
NUM_SHAPES = 4
# an additional colour, for lines and dots without a group
QUIET = NUM_COLOURS
# most points of one line; more could not be distinguished
_MAX_POINTS = 200
# values that span more than this factor need a logarithmic axis
_LOG_SPAN = 12.0
# chosen numbers that span this factor, such as ranks from 4 to 32, need a logarithmic axis
_LOG_CHOICES = 8.0
# percent between two ticks
_TICK_ROOM = 5.0
# smallest plot in pixels, on a desktop or on paper, and on a phone
_WIDE, _NARROW = (540.0, 384.0), (290.0, 304.0)
# width in pixels of a character and of the longest text
_CHARACTER, _WIDEST_TEXT = 7.4, 208.0
Format = Callable[[float], str]
# left, bottom, right, top
Rectangle = tuple[float, float, float, float]


@dataclass(frozen=True)
class Axis:
    """Scale of values along one side of a plot.

    low, high: ends of the scale, low < high
    values: positions of the ticks; empty for round numbers
    """

    label: str
    low: float
    high: float
    is_log: bool = False
    format: Format = compact
    values: Sequence[float] = ()

    def place(self, value: float) -> float:
        """Return the position of a value between `low` and `high`, in percent."""
        low, high, value = (math.log(each) if self.is_log else each for each in (self.low, self.high, value))
        return round(100 * (value - low) / (high - low), 2)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Return the position and text of each tick."""
        values = self.values or (log_ticks(self.low, self.high) if self.is_log else ticks(self.low, self.high))
        return [(self.place(value), self.format(value)) for value in values]


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    points: x and y, by ascending x
    key: key of the configuration, for highlighting and details; empty if there are none
    colour: number of the colour; None for the index in the chart
    """

    name: str
    points: Sequence[tuple[float, float]]
    key: str = ""
    colour: int | None = None
    is_dashed: bool = False


@dataclass(frozen=True)
class Dot:
    """One point of a chart, with details and a link.

    key: key of the configuration
    label: full description, for screen readers
    low, high: interval along y; None without one
    is_strong: draw the dot filled instead of as an outline
    text: text beside the dot, drawn if there is space
    """

    x: float
    y: float
    key: str
    label: str
    link: str = ""
    colour: int = 0
    low: float | None = None
    high: float | None = None
    is_strong: bool = True
    text: str = ""


@dataclass(frozen=True)
class Chart:
    """A plot with its axes. lines, dots: positions in percent; legend: name and colour number of each entry"""

    title: str
    x: Axis
    y: Axis
    lines: Sequence[Mapping[str, object]]
    dots: Sequence[Mapping[str, object]]
    legend: Sequence[tuple[str, int]] = ()
    is_tall: bool = False
    note: str = ""


def line_chart(series: Sequence[Series], *, title: str, x_label: str = "step", from_zero: bool = False) -> Chart | None:
    """Return a chart of values over training steps, or None if there are no points to draw.

    from_zero: start the vertical axis at 0 rather than at the lowest value
    """
    series = [line for line in series if line.points]
    if not series:
        return None
    x = axis([0.0, *(x for line in series for x, _ in line.points)], x_label)
    y = axis([*([0.0] if from_zero else []), *(y for line in series for _, y in line.points)], "")
    lines = [placed_line(line, idx, x, y) for idx, line in enumerate(series)]
    legend = [(line.name, _colour(line, idx)) for idx, line in enumerate(series)] if len(series) <= NUM_COLOURS else []
    return Chart(title, x, y, lines, (), legend)


def axis(values: Iterable[float], label: str, *, may_be_log: bool = False, format: Format = compact) -> Axis:
    """Return an axis that covers all values, with a margin at open ends.

    may_be_log: logarithmic if the values are positive and span a wide range
    """
    listed = list(values)
    low, high = min(listed), max(listed)
    if may_be_log and low > 0 and high / low > _LOG_SPAN:
        return Axis(label, low / 1.3, high * 1.3, True, format)
    if high <= low:
        # one value, in the middle
        room = abs(low) / 10 or 0.5
        return Axis(label, low - room, high + room, False, format)
    room = (high - low) * 0.05
    return Axis(label, low if low == 0 else low - room, high + room, False, format)


def value_axis(values: Iterable[float], label: str) -> Axis:
    """Return an axis for a few chosen numbers, with ticks at them and a margin at both ends."""
    listed = sorted(set(values))
    low, high = listed[0], listed[-1]
    is_log = low > 0 and len(listed) > 2 and high / low >= _LOG_CHOICES
    if is_log:
        room = (high / low) ** 0.05
        found = Axis(label, low / room, high * room, True)
    else:
        span = (high - low) * 0.05 or abs(low) / 10 or 0.5
        found = Axis(label, low - span, high + span)
    places = [found.place(value) for value in listed]
    has_room = all(second - first >= _TICK_ROOM for first, second in pairwise(places))
    return replace(found, values=tuple(listed)) if has_room else found


def placed_line(line: Series, idx: int, x: Axis, y: Axis) -> dict[str, object]:
    """Return a line as the template needs it: positions, and a mark for every point if there are few."""
    points = thinned(line.points)
    places = [(x.place(px), round(100 - y.place(py), 2)) for px, py in points]
    return {
        "name": line.name,
        "points": " ".join(f"{px:g},{py:g}" for px, py in places),
        "marks": places if len(places) <= 12 else [],
        "colour": _colour(line, idx),
        "key": line.key,
        "is_dashed": line.is_dashed,
        "last": f"{points[-1][1]:.4g}",
    }


def placed_dots(dots: Sequence[Dot], x: Axis, y: Axis) -> list[dict[str, object]]:
    """Return dots as the template needs them, without texts that would overlap an earlier text or a dot."""
    places = [(x.place(dot.x), y.place(dot.y)) for dot in dots]
    wide, narrow = ([_square(*place, size) for place in places] for size in (_WIDE, _NARROW))
    placed: list[dict[str, object]] = []
    for dot, (left, bottom) in zip(dots, places, strict=True):
        side = _free_side(dot.text, left, bottom, _WIDE, wide)
        is_roomy = side is not None and _free_side(dot.text, left, bottom, _NARROW, narrow, (side,)) is not None
        placed.append(
            {
                "dot": dot,
                "left": left,
                "bottom": bottom,
                "bar": None
                if dot.low is None or dot.high is None
                else (100 - y.place(dot.high), 100 - y.place(dot.low)),
                "shape": dot.colour % NUM_SHAPES,
                "text": dot.text if side is not None else "",
                "is_left": side == "left",
                "is_roomy": is_roomy,
            }
        )
    return placed


def _free_side(
    text: str,
    left: float,
    bottom: float,
    size: tuple[float, float],
    taken: list[Rectangle],
    sides: Sequence[str] = ("left", "right"),
) -> str | None:
    """Return a side of a dot where a text overlaps nothing, and add the text to `taken`; None if there is no such side.

    size: size of the plot in pixels
    """
    x, y = left / 100 * size[0], bottom / 100 * size[1]
    width = min(_CHARACTER * len(text), _WIDEST_TEXT)
    for side in sides if text else ():
        first = x - 8 - width if side == "left" else x + 8
        box = (first, y + 3, first + width, y + 18)
        if first >= 0 and first + width <= size[0] + 10 and not any(_overlap(box, other) for other in taken):
            taken.append(box)
            return side
    return None


def _square(left: float, bottom: float, size: tuple[float, float]) -> Rectangle:
    """Return the rectangle that a dot covers. left, bottom: in percent; size: size of the plot in pixels"""
    x, y = left / 100 * size[0], bottom / 100 * size[1]
    return x - 6, y - 6, x + 6, y + 6


def _overlap(first: Rectangle, second: Rectangle) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def thinned(points: Sequence[tuple[float, float]], most: int = _MAX_POINTS) -> list[tuple[float, float]]:
    """Return at most `most` points: means over equal groups if there are more, with the last point unchanged."""
    if len(points) <= most:
        return list(points)
    edges = [round(idx * (len(points) - 1) / (most - 1)) for idx in range(most)]
    means = [
        (sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part))
        for part in (points[first:last] for first, last in pairwise(edges))
    ]
    return [*means, points[-1]]


def ticks(low: float, high: float, num: int = 5) -> list[float]:
    """Return about `num` round numbers between two values."""
    raw = (high - low) / num
    power = 10 ** math.floor(math.log10(raw))
    step = power * min((1, 2, 5, 10), key=lambda factor: abs(factor * power - raw))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(idx * step, 12) for idx in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return round numbers between two values for a logarithmic axis, at least two where possible."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), tuple(float(each) for each in range(1, 10))):
        found = [round(factor * 10.0**decade, 12) for decade in decades for factor in factors]
        found = [value for value in found if low <= value <= high]
        if len(found) >= 3:
            return found[:: math.ceil(len(found) / 6)]
    return found


def _colour(line: Series, idx: int) -> int:
    return idx % NUM_COLOURS if line.colour is None else line.colour
