"""Error analysis on the page of a run: interval of AP, precision by recall, kinds of error, confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vispeft.errors import DataError
from vispeft.evaluation.analysis import analyse_results
from vispeft.io.checksums import sources_of
from vispeft.io.json_files import read_object
from vispeft.io.run_layout import ANNOTATIONS_FILE, PREDICTIONS_FILE
from vispeft.report.charts import QUIET, Axis, Chart, Series, placed_line
from vispeft.report.formats import count, defined, metric_text
from vispeft.report.page import Cell, Interval
from vispeft.report.run_contents import RunContents

# this many predictions are analysed in a second or two; for more, `vispeft evaluate --analysis` is needed
MOST_PREDICTIONS = 5_000
ERROR_MEANINGS = {
    "missed": "false negatives without an overlapping localisation or classification error",
    "localisation": "right class, IoU of 0.1 to 0.5",
    "classification": "IoU of at least 0.5, wrong class",
    "both": "wrong class and IoU below 0.5",
    "duplicate": "second detection of an object",
    "background": "IoU of at most 0.1 with every object",
}
CATEGORY_COLUMNS = ("category", "objects", "AP", "AP50", "AP75", "small", "medium", "large", "AR100")
_IOUS = ("0.50", "0.75", "0.90")
# most classes in a confusion matrix; with more classes, the most frequent confusions are listed
_MOST_CLASSES = 12
_MOST_CONFUSIONS = 15


@dataclass(frozen=True)
class ErrorKind:
    """One kind of error. gain: AP50 gained by correcting it; share: gain relative to the largest gain, 0..1"""

    name: str
    meaning: str
    count: str
    gain: str
    share: float


@dataclass(frozen=True)
class ConfusionTable:
    """Confusion matrix as a table.

    columns: predicted classes, and false negatives
    rows: annotated classes, and background, with count and share of the row for each column
    confusions: annotated class, predicted class, count; used instead of `rows` for many classes
    """

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[int, float]]]]
    confusions: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class ErrorAnalysisSection:
    """Error analysis as shown on the page of a run.

    interval: interval of AP
    boundary_ap: boundary AP; None for boxes
    threshold: score threshold with the best F1
    summary: sentence about the kind of error with the largest gain
    confusion: confusion matrix; None for a single class
    categories: rows of the table of categories; empty for a single class
    """

    interval: Interval
    boundary_ap: float | None
    threshold: float
    summary: str
    errors: Sequence[ErrorKind]
    charts: Sequence[Chart]
    confusion: ConfusionTable | None
    categories: Sequence[Sequence[Cell]]


def error_analysis_of(run: RunContents) -> ErrorAnalysisSection | None:
    """Return the error analysis of a run, read from its analysis.json if that is of the run's files, else computed.

    Return None without such a file if there are no predictions, too many to analyse quickly, or label maps.
    """
    path = run.path / "analysis.json"
    files = run.path / ANNOTATIONS_FILE, run.path / PREDICTIONS_FILE
    if path.is_file() and all(file.is_file() for file in files):
        found = read_object(path)
        if found.get("sources") == sources_of(*files):
            return _read(found, path)
    if run.ground_truth is None or not run.predictions or len(run.predictions) > MOST_PREDICTIONS:
        return None
    if run.has_label_maps:
        return None
    try:
        content = analyse_results(run.ground_truth, [dict(one) for one in run.predictions]).to_dict()
    except DataError:
        return None
    return _read(content, path)


def _read(content: Mapping[str, Any], path: Path) -> ErrorAnalysisSection:
    try:
        return _section(content)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"`{path}` must be a file of `vispeft evaluate --analysis`, but is not. Delete it, or write it again."
        ) from error


def _section(content: Mapping[str, Any]) -> ErrorAnalysisSection:
    interval, boundary, calibration = content["interval"], content["boundary"], content["calibration"]
    names = content["confusion"]["names"]
    charts = [_precision_chart(content["precision_recall"])]
    if calibration is not None:
        charts.append(_calibration_chart(calibration))
    errors = _error_kinds(content["errors"])
    return ErrorAnalysisSection(
        interval=Interval(interval["value"], interval["low"], interval["high"]),
        boundary_ap=None if boundary is None else defined(boundary["AP"]),
        threshold=float(content["threshold"]),
        summary=_summary(errors, content["errors"]["ap50"]),
        errors=errors,
        charts=charts,
        confusion=_confusion(names, content["confusion"]["counts"]) if len(names) > 1 else None,
        categories=[_category_row(one) for one in sorted(content["categories"], key=lambda one: -one["num_objects"][0])]
        if len(names) > 1
        else [],
    )


def _precision_chart(content: Mapping[str, Any]) -> Chart:
    x, y = Axis("recall", 0.0, 1.0), Axis("precision", 0.0, 1.0)
    lines, legend = [], []
    for number, iou in enumerate(_IOUS):
        points = list(zip(content["recalls"], content["mean"][iou], strict=True))
        lines.append({**placed_line(Series(f"at IoU {iou}", points, colour=number), number, x, y), "marks": []})
        legend.append((f"at IoU {iou}", number))
    note = "mean over categories" if len(content["by_category"]) > 1 else ""
    return Chart("Precision by recall", x, y, lines, (), legend, note=note)


def _calibration_chart(content: Mapping[str, Any]) -> Chart:
    x, y = Axis("score", 0.0, 1.0), Axis("precision", 0.0, 1.0)
    ideal = Series("perfect calibration", [(0.0, 0.0), (1.0, 1.0)], colour=QUIET, is_dashed=True)
    found = Series("precision at IoU 0.50", [(one["score"], one["precision"]) for one in content["bins"]], colour=0)
    lines = [{**placed_line(ideal, 0, x, y), "marks": []}, placed_line(found, 1, x, y)]
    note = f"mean distance {content['d_ece']:.3f} (D-ECE)"
    return Chart("Calibration of scores", x, y, lines, (), [(found.name, 0), (ideal.name, QUIET)], note=note)


def _error_kinds(content: Mapping[str, Any]) -> list[ErrorKind]:
    """Return the kinds of error that occur, the largest gain first."""
    counts, gains = content["counts"], content["gains"]
    most = max(gains.values()) or 1.0
    kinds = [
        ErrorKind(name, meaning, count(counts[name]), f"{gains[name]:.3f}", max(gains[name] / most, 0.0))
        for name, meaning in ERROR_MEANINGS.items()
        if counts[name]
    ]
    return sorted(kinds, key=lambda kind: -gains[kind.name])


def _summary(errors: Sequence[ErrorKind], ap50: float) -> str:
    """Return a sentence about the kind of error with the largest gain."""
    if not errors or not errors[0].share:
        return f"AP50 is {metric_text(ap50)}, and correcting any single kind of error would not raise it."
    first = errors[0]
    gain = f"Correcting the errors of kind “{first.name}” would raise it most, by {first.gain}."
    return f"AP50 is {metric_text(ap50)}. {gain}"


def _confusion(names: Sequence[str], counts: Sequence[Sequence[int]]) -> ConfusionTable:
    rows, columns = [*names, "background"], [*names, "false negative"]
    if len(names) <= _MOST_CLASSES:
        shown = [
            (name, [(number, number / max(sum(row), 1)) for number in row])
            for name, row in zip(rows, counts, strict=True)
        ]
        return ConfusionTable(columns, shown, ())
    pairs = [
        (number, rows[i], columns[j])
        for i, row in enumerate(counts)
        for j, number in enumerate(row)
        if number and i != j and i < len(names) and j < len(names)
    ]
    pairs.sort(key=lambda pair: -pair[0])
    confusions = [
        [Cell(annotated, annotated), Cell(predicted, predicted), Cell(count(number), number)]
        for number, annotated, predicted in pairs[:_MOST_CONFUSIONS]
    ]
    return ConfusionTable(columns, (), confusions)


def _category_row(one: Mapping[str, Any]) -> list[Cell]:
    keys = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100")
    num_objects = one["num_objects"][0]
    return [
        Cell(one["name"], one["name"]),
        Cell(count(num_objects), num_objects),
        *(Cell(metric_text(one[key]), defined(one[key])) for key in keys),
    ]
