"""Formatting of numbers and values for reports."""

from __future__ import annotations

from typing import Any

NOTHING = "\N{EN DASH}"
"""Text of an undefined or unknown value."""


def defined(value: Any) -> float | None:
    """Return a COCO metric, or None if it is undefined (-1) or missing."""
    return float(value) if isinstance(value, (int, float)) and value >= 0 else None


def metric_text(value: Any) -> str:
    """Return a COCO metric as text, with three decimals."""
    return NOTHING if defined(value) is None else f"{value:.3f}"


def formatted(value: Any, pattern: str) -> str:
    """Return a number as text by a format pattern."""
    return pattern.format(value) if isinstance(value, (int, float)) else NOTHING


def byte_size(value: Any) -> str:
    """Return a number of bytes as text, in a readable unit."""
    if not isinstance(value, (int, float)):
        return NOTHING
    for unit, size in (("GB", 2**30), ("MB", 2**20), ("kB", 2**10)):
        if value >= size:
            return f"{value / size:.3g} {unit}" if value < 1000 * size else f"{value / size:,.0f} {unit}"
    return f"{value:.0f} bytes"


def duration(seconds: Any) -> str:
    """Return seconds as text, in a readable unit."""
    if not isinstance(seconds, (int, float)):
        return NOTHING
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def plain(value: Any) -> str:
    """Return a JSON value on one line."""
    if isinstance(value, list):
        return ", ".join(plain(item) for item in value) or NOTHING
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items()) or NOTHING
    return NOTHING if value is None else str(value)


def compact(value: float) -> str:
    """Return a number in few characters, for an axis: 1.2M, 35k, 0.05."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= (10_000 if unit == "k" else size):
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def count(value: Any) -> str:
    """Return a whole number with separated thousands."""
    return formatted(value, "{:,.0f}")
