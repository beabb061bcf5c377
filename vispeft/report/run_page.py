"""Content of the page of one run. The layout is `templates/run.html.j2`."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vispeft.io.run_layout import ADAPTER_FILE, CONFIG_FILE, INSPECTION_FILE, REPORT_FILE
from vispeft.report.charts import Chart, Series, line_chart
from vispeft.report.error_analysis import CATEGORY_COLUMNS, MOST_PREDICTIONS, ErrorAnalysisSection, error_analysis_of
from vispeft.report.formats import NOTHING, defined, metric_text
from vispeft.report.page import (
    Cell,
    Fact,
    NextStep,
    environment_facts,
    headline_of,
    run_facts,
    summary_line,
    write_page,
)
from vispeft.report.run_contents import RunContents, read_run
from vispeft.report.samples import draw_samples
from vispeft.report.trained import read_trained
from vispeft.report.weight_updates import read_weight_updates

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
LABEL_METRIC_MEANINGS = {
    "mIoU": "mean over classes of intersection over union of all pixels",
    "pixel_accuracy": "part of the labelled pixels with the right class",
    "mean_accuracy": "mean of that part over classes",
    "PQ": "panoptic quality, SQ times RQ of each class, mean over classes",
    "SQ": "mean IoU of matched segments",
    "RQ": "F1 of segments matched at IoU above 0.5",
    **{f"{name}_things": f"{name} over classes with instances" for name in ("PQ", "SQ", "RQ")},
    **{f"{name}_stuff": f"{name} over classes without instances" for name in ("PQ", "SQ", "RQ")},
}
_CATEGORY_METRICS = {"semantic": "IoU", "panoptic": "PQ"}
_NUM_SPREAD, _NUM_WORST = 6, 6


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run directory, from its files and the validation images; return the page's path.

    The page has less than 5 MB: twelve pictures of at most 160 kB, with at most 60 kB of outlines for each panel.
    """
    run = read_run(run_dir)
    error_analysis, categories = error_analysis_of(run), category_rows({"": run})
    return write_page(
        run_dir / REPORT_FILE,
        "run.html.j2",
        title=run_dir.resolve().name,
        kind="run",
        short=summary_line(run.summary),
        facts=_facts(run.summary, error_analysis),
        charts=_charts(run),
        metrics=_metric_rows(run.summary, error_analysis),
        error_analysis=error_analysis,
        category_columns=CATEGORY_COLUMNS
        if error_analysis
        else ("category", "instances", category_metric(run.summary)),
        label_metrics=_label_metric_rows(run.summary),
        best_metric=headline_of(run.summary)[0][0],
        categories=error_analysis.categories if error_analysis else categories if len(categories) > 1 else [],
        samples=draw_samples(
            {"prediction": run},
            num_images=_NUM_SPREAD,
            num_worst=_NUM_WORST,
            threshold=error_analysis.threshold if error_analysis else None,
        ),
        trained=read_trained(run_dir / ADAPTER_FILE),
        updates=read_weight_updates(run_dir),
        config=run.config_text,
        environment=environment_facts(run.environment),
        steps=_next_steps(run),
    )


def _facts(summary: Mapping[str, Any], error_analysis: ErrorAnalysisSection | None) -> list[Fact]:
    """Return the results of a run, with the interval of AP beside the first metric."""
    first, *rest = run_facts(summary)
    if error_analysis is None or first.order is None:
        return [first, *rest]
    low, high = metric_text(error_analysis.interval.low), metric_text(error_analysis.interval.high)
    return [replace(first, note=f"{low} to {high} (95 % interval over images)"), *rest]


def category_rows(runs: Mapping[str, RunContents]) -> list[list[Cell]]:
    """Return category, number of validation instances, and mask AP in each run; the most frequent category first."""
    first = next(iter(runs.values()))
    counts: Counter[str] = Counter()
    if first.ground_truth is not None:
        names = first.ground_truth.category_names
        counts.update(names[item["category_id"]] for item in first.ground_truth.annotations if not item["iscrowd"])
    tables = [run.summary.get("per_category", {}) for run in runs.values()]
    listed = sorted(dict.fromkeys(name for table in tables for name in table), key=lambda name: -counts[name])
    return [
        [
            Cell(name, name),
            Cell(f"{counts[name]:,}", counts[name]),
            *(Cell(metric_text(table.get(name)), defined(table.get(name))) for table in tables),
        ]
        for name in listed
    ]


def _charts(run: RunContents) -> list[Chart]:
    """Return the learning curves of a run."""
    train_keys = dict.fromkeys(key for line in run.metrics if line.get("split") == "train" for key in line)
    terms = [key for key in train_keys if key.startswith("loss_")]
    rates = [key for key in train_keys if key == "lr" or key.startswith("lr_")]
    scores = [Series(name, run.series("val", key)) for name, key in headline_of(run.summary)]
    # a curve needs at least two evaluations
    has_curve = any(len(line.points) > 1 for line in scores)
    charts = [
        line_chart(scores, title="Validation", from_zero=True) if has_curve else None,
        line_chart([Series("loss", run.series("train", "loss"))], title="Training loss"),
        line_chart(
            [Series(key.removeprefix("loss_"), run.series("train", key)) for key in terms],
            title="Terms of the training loss",
        ),
        line_chart(
            [Series(key.removeprefix("lr_"), run.series("train", key)) for key in rates],
            title="Learning rate",
            from_zero=True,
        ),
    ]
    return [chart for chart in charts if chart is not None]


def _metric_rows(
    summary: Mapping[str, Any], error_analysis: ErrorAnalysisSection | None
) -> list[tuple[str, str, str, str]]:
    """Return name, meaning, mask value and box value of the COCO metrics."""
    segm, bbox = summary.get("segm", {}), summary.get("bbox", {})
    if not segm and not bbox:
        return []
    rows = [
        (name, text, metric_text(segm.get(name)), metric_text(bbox.get(name))) for name, text in METRIC_MEANINGS.items()
    ]
    rows += [
        (
            name,
            "with more detections of a class in an image than COCO's 100",
            metric_text(value),
            metric_text(bbox.get(name)),
        )
        for name, value in segm.items()
        if "@" in name
    ]
    if error_analysis is not None and error_analysis.boundary_ap is not None:
        rows.insert(3, ("boundary AP", "AP with boundary IoU", metric_text(error_analysis.boundary_ap), NOTHING))
    return rows


def category_metric(summary: Mapping[str, Any]) -> str:
    """Return the name of the metric of each category in a run's summary."""
    of_label_maps = (name for kind, name in _CATEGORY_METRICS.items() if kind in summary)
    # mask AP, or box AP without masks
    return next(of_label_maps, headline_of(summary)[0][0])


def _label_metric_rows(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return name, meaning and value of the metrics of label maps; nothing for other runs."""
    return [
        (name, LABEL_METRIC_MEANINGS.get(name, ""), metric_text(value))
        for kind in _CATEGORY_METRICS
        for name, value in summary.get(kind, {}).items()
    ]


def _next_steps(run: RunContents) -> list[NextStep]:
    """Return recommended next steps for the run."""
    path, methods = str(run.path), run.summary.get("methods", [])
    if not run.summary:
        resume = ("vispeft", "train", f"{path}/{CONFIG_FILE}", "--resume", "--out", path)
        return [_step("The run is not finished. Resume it:", *resume)]
    found = [_step("Predict your own images:", "vispeft", "predict", path, "IMAGES", "--out", "predicted")]
    if _is_best_at_end(run):
        why = f"{headline_of(run.summary)[0][0]} was highest at the last evaluation, so that more steps may improve it:"
        found.append(_step(why, "vispeft", "train", f"{path}/{CONFIG_FILE}", f"train.steps={2 * run.summary['steps']}"))
    # summaries of earlier versions do not tell
    form = run.summary.get("merges_into", None if "adapter" in methods else "file")
    if form is None:
        why = "Some of its methods do not merge into the weights; the adapter file in this directory is the result."
        found.append(_step(why))
    else:
        out = "merged.safetensors" if form == "file" else "merged"
        found.append(
            _step("Merge into one plain checkpoint, as fast as the base model:", "vispeft", "merge", path, "--out", out)
        )
    if (
        not run.has_label_maps
        and len(run.predictions) > MOST_PREDICTIONS
        and not (run.path / "analysis.json").is_file()
    ):
        found.append(_step("Analyse the errors of its predictions:", "vispeft", "evaluate", path, "--analysis"))
    if not (run.path / INSPECTION_FILE).is_file():
        found.append(_step("See what it changed in the weights, and which rank fits:", "vispeft", "inspect", path))
    if not run.has_label_maps:
        found.append(_step("Compare it with another run, with intervals:", "vispeft", "compare", path, "OTHER_RUN"))
    if run.data and not run.has_label_maps:
        sweep = ("vispeft", "sweep", "configs/sweep_adapters_per_block.yaml", *run.data)
        found.append(_step("Compare numbers of adapters per block, and sites of LoRA, on this data:", *sweep))
    return found


def _step(why: str, *words: str) -> NextStep:
    return NextStep(why, shlex.join(words))


def _is_best_at_end(run: RunContents) -> bool:
    """Return True if AP was highest at the last of several evaluations."""
    _, key = headline_of(run.summary)[0]
    scores = [score for _, score in run.series("val", key)]
    return len(scores) > 1 and isinstance(run.summary.get("steps"), int) and scores[-1] >= max(scores)
