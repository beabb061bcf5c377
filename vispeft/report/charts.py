"""Line charts as inline SVG whose colours come from the page, so that they follow its light or dark theme."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

# in units of the view box, which a phone shows at about one pixel per unit
_WIDTH, _HEIGHT = 420, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 26
_NUM_COLOURS = 8


@dataclass(frozen=True)
class Series:
    """One line of a chart. points: x and y, by ascending x"""

    name: str
    points: Sequence[tuple[float, float]]


def line_chart(series: Sequence[Series], *, title: str, from_zero: bool = False) -> Markup:
    """A chart of values over training steps with its legend, or nothing if there are no points to draw.

    from_zero: whether the vertical axis starts at 0 rather than at the lowest value
    """
    series = [line for line in series if line.points]
    if not series:
        return Markup("")
    x_low, x_high = _span(x for line in series for x, _ in line.points)
    y_low, y_high = _span(y for line in series for _, y in line.points)
    frame = _Frame(min(x_low, 0.0), x_high, min(y_low, 0.0) if from_zero else y_low, y_high)
    parts = [*_grid(frame)]
    legend = []
    for idx, line in enumerate(series):
        colour = f"series-{idx % _NUM_COLOURS}"
        parts.append(_line(frame, line, colour))
        legend.append(f'<span class="{colour}"><i></i>{escape(line.name)}</span>')
    return Markup(
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)} over training steps">'
        f'{"".join(parts)}</svg><div class="legend">{"".join(legend)}</div></figure>'
    )


@dataclass(frozen=True)
class _Frame:
    """Where values lie in the picture."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        """Horizontal position of a step."""
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        """Vertical position of a value."""
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1)


def ticks(low: float, high: float, num: int = 5) -> list[float]:
    """Round numbers between two values, about `num` of them."""
    raw = (high - low) / num
    power = 10 ** math.floor(math.log10(raw))
    step = power * min((1, 2, 5, 10), key=lambda factor: abs(factor * power - raw))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(idx * step, 12) for idx in range(first, last + 1)]


def _span(values: Iterable[float]) -> tuple[float, float]:
    """Lowest and highest value, apart even if all are equal."""
    listed = list(values)
    low, high = min(listed), max(listed)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _grid(frame: _Frame) -> Iterable[str]:
    """Lines and numbers of both axes."""
    for value in ticks(frame.y_low, frame.y_high):
        y = frame.y(value)
        yield f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{value:g}</text>'
    for value in ticks(frame.x_low, frame.x_high):
        yield f'<text x="{frame.x(value)}" y="{_HEIGHT - 8}" text-anchor="middle">{_short(value)}</text>'


def _line(frame: _Frame, line: Series, colour: str) -> str:
    """One polyline, with a dot for every point where there are few; a tooltip names each dot's value."""
    positions = [(frame.x(x), frame.y(y)) for x, y in line.points]
    path = " ".join(f"{x},{y}" for x, y in positions)
    shapes = f'<polyline points="{path}"/>'
    if len(positions) <= 30:
        for (x, y), (step, value) in zip(positions, line.points, strict=True):
            tooltip = f"{escape(line.name)} {value:.4g} at step {step:g}"
            shapes += f'<circle cx="{x}" cy="{y}" r="3"><title>{tooltip}</title></circle>'
    return f'<g class="{colour}">{shapes}</g>'


def _short(step: float) -> str:
    return f"{step / 1000:g}k" if step >= 10_000 else f"{step:g}"
