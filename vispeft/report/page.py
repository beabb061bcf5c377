"""Shared parts of all pages: facts, table cells, next steps, links, and the writer of a page."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from vispeft.errors import TrainingError
from vispeft.io.atomic import write_text
from vispeft.report.formats import NOTHING, byte_size, count, defined, duration, formatted, metric_text, plain

# by the key of summary.json that tells the task
_HEADLINES = {
    "semantic": (
        ("mIoU", "semantic/mIoU"),
        ("pixel accuracy", "semantic/pixel_accuracy"),
        ("mean accuracy", "semantic/mean_accuracy"),
    ),
    "panoptic": (("PQ", "panoptic/PQ"), ("PQ of things", "panoptic/PQ_things"), ("PQ of stuff", "panoptic/PQ_stuff")),
    "segm": (("mask AP", "segm/AP"), ("mask AP50", "segm/AP50"), ("box AP", "bbox/AP")),
}
_BOXES = (("box AP", "bbox/AP"), ("box AP50", "bbox/AP50"), ("box AP75", "bbox/AP75"))


@dataclass(frozen=True)
class Fact:
    """A named value as a page shows it.

    note: its meaning
    order: sort key in a table; None if it has no value
    """

    name: str
    value: str
    note: str = ""
    order: float | str | None = None


@dataclass(frozen=True)
class Interval:
    """A metric with the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class NextStep:
    """A recommended next step with its reason. command: empty if there is none"""

    reason: str
    command: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a sortable table.

    order: sort key; None if it has no value
    span: start, middle and end of an interval that is drawn beside the text, in percent
    """

    text: str
    order: float | str | None = None
    link: str = ""
    span: tuple[float, float, float] | None = None


def write_page(path: Path, template: str, **content: Any) -> Path:
    """Render a template of this package into an HTML file and return its path."""
    environment = Environment(
        loader=PackageLoader("vispeft.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"metric": metric_text, "count": count}
    text = environment.get_template(template).render(**content)
    write_text(path, text, raises=TrainingError)
    return path


def run_facts(summary: Mapping[str, Any]) -> list[Fact]:
    """Return the results of a run, the most important first."""
    scores = [(name, value_of(summary, key)) for name, key in headline_of(summary)]
    costs: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
        ("trainable", "trainable_percent", lambda value: formatted(value, "{:.2f} %")),
        ("adapter file", "adapter_bytes", byte_size),
        ("training time", "train_seconds", duration),
        ("peak memory", "peak_memory_bytes", byte_size),
    )
    trained = count(summary.get("trainable_params"))
    return [
        *(Fact(name, metric_text(value), order=defined(value)) for name, value in scores),
        *(
            Fact(name, show(summary.get(key)), trained if name == "trainable" else "", defined(summary.get(key)))
            for name, key, show in costs
        ),
    ]


def headline_of(summary: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return the main metrics of a run's task, the most important first: names for people and in metrics.jsonl.

    Those of boxes are given where masks have no metrics, those of masks where the summary does not tell the task.
    """
    if value_of(summary, "segm/AP") == -1 and (value_of(summary, "bbox/AP") or -1) >= 0:
        return _BOXES
    return next((pairs for kind, pairs in _HEADLINES.items() if kind in summary), _HEADLINES["segm"])


def value_of(summary: Mapping[str, Any], key: str) -> Any:
    """Return a metric of summary.json by its name in metrics.jsonl, such as `segm/AP`; None without it."""
    kind, name = key.split("/")
    return summary.get(kind, {}).get(name)


def summary_line(summary: Mapping[str, Any]) -> str:
    """Return methods, steps and device of a run in one line, such as `lora, full · 200 steps · cpu`."""
    steps = summary.get("steps")
    parts = (
        plain(summary.get("methods", [])),
        f"{steps:,} steps" if isinstance(steps, int) else "",
        plain(summary.get("device", "")),
    )
    return " · ".join(part for part in parts if part not in ("", NOTHING))


def environment_facts(environment: Mapping[str, Any]) -> list[Fact]:
    """Return the environment of a run and its command line, quoted for the shell."""
    facts = []
    for name, value in environment.items():
        is_command = name == "command_line" and isinstance(value, list)
        facts.append(Fact(name.replace("_", " "), shlex.join(map(str, value)) if is_command else plain(value)))
    return facts


def span_of(interval: Interval | None, ends: Sequence[float]) -> tuple[float, float, float] | None:
    """Return the begin, metric and end of an interval in percent of the range of all `ends`."""
    if interval is None or max(ends) <= min(ends):
        return None
    room = (max(ends) - min(ends)) / 100
    low, middle, high = (
        round((value - min(ends)) / room, 1) for value in (interval.low, interval.value, interval.high)
    )
    return low, middle, high


def link_to(target: Path, page: Path) -> str:
    """Return the address of a file relative to a page; empty if the file does not exist."""
    return Path(os.path.relpath(target, page.parent)).as_posix() if target.exists() else ""
