"""The pages: what of a run goes where. How it looks stands in `templates/`."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from vispeft.errors import DataError
from vispeft.report.charts import Series, line_chart
from vispeft.report.formats import NOTHING, byte_size, defined, duration, figure, formatted, plain
from vispeft.report.run_files import RunFiles, read_run
from vispeft.report.samples import draw_samples

METRIC_MEANINGS = {
    "AP": "average precision over IoU 0.50 to 0.95",
    "AP50": "average precision at IoU 0.50",
    "AP75": "average precision at IoU 0.75",
    "APs": "AP of small objects (under 32² pixels)",
    "APm": "AP of medium objects (32² to 96²)",
    "APl": "AP of large objects (over 96²)",
    "AR1": "average recall with 1 detection per image",
    "AR10": "average recall with 10",
    "AR100": "average recall with 100",
    "ARs": "AR of small objects",
    "ARm": "AR of medium objects",
    "ARl": "AR of large objects",
}


@dataclass(frozen=True)
class Fact:
    """One figure with its name, as a page shows it."""

    name: str
    value: str


@dataclass(frozen=True)
class CategoryRow:
    """A category's number of validation instances and its mask AP in each run."""

    name: str
    num_instances: int
    values: tuple[float | None, ...]


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run directory, from its files and the validation images. Returns the page's path."""
    run = read_run(run_dir)
    page = _environment().get_template("run.html.j2")
    text = page.render(
        title=run_dir.resolve().name,
        facts=_facts(run.summary),
        charts=_run_charts(run),
        metrics=_metric_rows(run.summary),
        categories=_category_rows({"": run}),
        samples=draw_samples({"prediction": run}, num_images=6),
        config=run.config_text,
        environment=_environment_facts(run.environment),
    )
    return _write(run_dir / "report.html", text)


def write_comparison(runs: Mapping[str, Path], out: Path) -> Path:
    """Write one page that compares runs, by name and run directory, into the HTML file `out`. Returns its path."""
    if not runs:
        raise DataError("`runs` must name at least one run directory to compare, but is empty.")
    read = {name: read_run(path) for name, path in runs.items()}
    page = _environment().get_template("comparison.html.j2")
    text = page.render(
        title="Comparison of " + ", ".join(read),
        rows=[
            (name, _link(path / "report.html", out), [fact.value for fact in _facts(read[name].summary)])
            for name, path in runs.items()
        ],
        columns=[fact.name for fact in _facts({})],
        names=list(read),
        charts=_comparison_charts(read),
        categories=_category_rows(read),
        samples=draw_samples(read, num_images=4),
    )
    return _write(out, text)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("vispeft.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["figure"] = figure
    return environment


def _facts(summary: Mapping[str, Any]) -> list[Fact]:
    """The outcome of a run in the order of interest."""
    segm, bbox = summary.get("segm", {}), summary.get("bbox", {})
    return [
        Fact("mask AP", figure(segm.get("AP"))),
        Fact("mask AP50", figure(segm.get("AP50"))),
        Fact("box AP", figure(bbox.get("AP"))),
        Fact("trainable", formatted(summary.get("trainable_percent"), "{:.2f} %")),
        Fact("adapter file", byte_size(summary.get("adapter_bytes"))),
        Fact("training time", duration(summary.get("train_seconds"))),
        Fact("peak memory", byte_size(summary.get("peak_memory_bytes"))),
        Fact("steps", formatted(summary.get("steps"), "{:,}")),
        Fact("methods", plain(summary.get("methods", NOTHING))),
        Fact("device", plain(summary.get("device", NOTHING))),
    ]


def _environment_facts(environment: Mapping[str, Any]) -> list[Fact]:
    """Where and how the run was made; the command line as one would type it."""
    facts = []
    for name, value in environment.items():
        is_command = name == "command_line" and isinstance(value, list)
        facts.append(Fact(name.replace("_", " "), shlex.join(map(str, value)) if is_command else plain(value)))
    return facts


def _run_charts(run: RunFiles) -> list[Markup]:
    train_keys = dict.fromkeys(key for line in run.metrics if line.get("split") == "train" for key in line)
    parts = [key for key in train_keys if key.startswith("loss_")]
    scores = {"mask AP": "segm/AP", "mask AP50": "segm/AP50", "box AP": "bbox/AP"}
    charts = [
        line_chart(
            [Series(name, run.series("val", key)) for name, key in scores.items()], title="Validation", from_zero=True
        ),
        line_chart([Series("loss", run.series("train", "loss"))], title="Training loss"),
        line_chart(
            [Series(key.removeprefix("loss_"), run.series("train", key)) for key in parts],
            title="Parts of the training loss",
        ),
    ]
    return [chart for chart in charts if chart]


def _comparison_charts(runs: Mapping[str, RunFiles]) -> list[Markup]:
    scores = [Series(name, run.series("val", "segm/AP")) for name, run in runs.items()]
    losses = [Series(name, run.series("train", "loss")) for name, run in runs.items()]
    charts = [line_chart(scores, title="Validation mask AP", from_zero=True), line_chart(losses, title="Training loss")]
    return [chart for chart in charts if chart]


def _metric_rows(summary: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Name, meaning, mask figure and box figure of the twelve COCO numbers."""
    segm, bbox = summary.get("segm", {}), summary.get("bbox", {})
    if not segm and not bbox:
        return []
    return [(name, text, figure(segm.get(name)), figure(bbox.get(name))) for name, text in METRIC_MEANINGS.items()]


def _category_rows(runs: Mapping[str, RunFiles]) -> list[CategoryRow]:
    """Mask AP by category in each run, those with most validation instances first."""
    first = next(iter(runs.values()))
    counts: Counter[str] = Counter()
    if first.truth is not None:
        names = first.truth.category_names
        counts.update(names[item["category_id"]] for item in first.truth.annotations if not item["iscrowd"])
    tables = [run.summary.get("per_category", {}) for run in runs.values()]
    rows = [
        CategoryRow(name, counts[name], tuple(defined(table.get(name)) for table in tables))
        for name in dict.fromkeys(name for table in tables for name in table)
    ]
    return sorted(rows, key=lambda row: -row.num_instances)


def _link(target: Path, page: Path) -> str:
    """The address of a file as seen from a page; empty if the file is not there."""
    return Path(os.path.relpath(target, page.parent)).as_posix() if target.exists() else ""


def _write(path: Path, text: str) -> Path:
    """Write a page whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"`{path}` cannot be written: {error.strerror or error}.") from error
    return path
