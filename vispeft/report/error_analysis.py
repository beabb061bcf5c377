"""Error analysis of a run's predictions: interval of AP, precision by recall, kinds of error, confusion of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vispeft.errors import DataError
from vispeft.evaluation.analysis.evaluate import evaluate_depth
from vispeft.io.json_files import read_object
from vispeft.io.run_layout import PREDICTIONS_FILE
from vispeft.report.charts import QUIET, Axis, Chart, Series, placed_line
from vispeft.report.formats import count, defined, figure
from vispeft.report.page import Cell, Interval
from vispeft.report.run_files import RunFiles

# more are left to `vispeft evaluate --depth`: these take a second or two
MOST_PREDICTIONS = 5_000
ERROR_MEANINGS = {
    "missed": "objects that nothing was found near",
    "localisation": "right class, but an outline that overlaps by less than half",
    "classification": "right place, wrong class",
    "both": "wrong class, and an outline that overlaps by less than half",
    "duplicate": "objects found once more",
    "background": "found where nothing is",
}
CATEGORY_COLUMNS = ("category", "objects", "AP", "AP50", "AP75", "small", "medium", "large", "AR100")
_IOUS = ("0.50", "0.75", "0.90")
# categories whose confusion is a table; of more the commonest mistakes are listed
_MOST_CONFUSED = 12
_MOST_MISTAKES = 15


@dataclass(frozen=True)
class ErrorKind:
    """One kind of error. gain: AP50 gained by correcting it; share: of the largest gain, 0..1"""

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
    mistakes: instead of rows if there are many classes: annotated class, predicted class, count
    """

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[int, float]]]]
    mistakes: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class CloseUp:
    """Error analysis as shown on a run's page.

    interval: of AP; boundary_ap: None for boxes
    threshold: the score threshold with the best F1
    confusion: None for a single class
    """

    interval: Interval
    boundary_ap: float | None
    threshold: float
    lost_by: str
    errors: Sequence[ErrorKind]
    charts: Sequence[Chart]
    confusion: ConfusionTable | None
    categories: Sequence[Sequence[Cell]]


def look_closely(run: RunFiles) -> CloseUp | None:
    """Return the error analysis of a run, from its depth.json if that is up to date, or else computed.

    None if it would have to be computed and there are too many predictions, or none.
    """
    path, predictions = run.path / "depth.json", run.path / PREDICTIONS_FILE
    if path.is_file() and predictions.is_file() and path.stat().st_mtime >= predictions.stat().st_mtime:
        return _read(read_object(path), path)
    if run.truth is None or not run.predictions or len(run.predictions) > MOST_PREDICTIONS:
        return None
    try:
        content = evaluate_depth(run.truth, [dict(one) for one in run.predictions]).to_dict()
    except DataError:
        return None
    return _read(content, path)


def _read(content: Mapping[str, Any], path: Path) -> CloseUp:
    try:
        return _close_up(content)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"`{path}` is not what `vispeft evaluate --depth` writes. Remove it, or write it again."
        ) from error


def _close_up(content: Mapping[str, Any]) -> CloseUp:
    interval, boundary, calibration = content["interval"], content["boundary"], content["calibration"]
    names = content["confusion"]["names"]
    charts = [_precision_chart(content["precision_recall"])]
    if calibration is not None:
        charts.append(_calibration_chart(calibration))
    errors = _error_kinds(content["errors"])
    return CloseUp(
        interval=Interval(interval["value"], interval["low"], interval["high"]),
        boundary_ap=None if boundary is None else defined(boundary["AP"]),
        threshold=float(content["threshold"]),
        lost_by=_told(errors, content["errors"]["ap50"]),
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
    x, y = Axis("score", 0.0, 1.0), Axis("share that is right", 0.0, 1.0)
    ideal = Series("as it should be", [(0.0, 0.0), (1.0, 1.0)], colour=QUIET, is_dashed=True)
    found = Series("right at IoU 0.50", [(one["score"], one["precision"]) for one in content["bins"]], colour=0)
    lines = [{**placed_line(ideal, 0, x, y), "marks": []}, placed_line(found, 1, x, y)]
    note = f"off by {content['d_ece']:.3f} on average (D-ECE)"
    return Chart("What a score is worth", x, y, lines, (), [(found.name, 0), (ideal.name, QUIET)], note=note)


def _error_kinds(content: Mapping[str, Any]) -> list[ErrorKind]:
    """Return the kinds of error that occur, the largest loss of AP first."""
    counts, gains = content["counts"], content["gains"]
    most = max(gains.values()) or 1.0
    kinds = [
        ErrorKind(name, meaning, count(counts[name]), f"{gains[name]:.3f}", max(gains[name] / most, 0.0))
        for name, meaning in ERROR_MEANINGS.items()
        if counts[name]
    ]
    return sorted(kinds, key=lambda kind: -gains[kind.name])


def _told(errors: Sequence[ErrorKind], ap50: float) -> str:
    """Return a sentence about the kind of error with the largest gain."""
    if not errors or not errors[0].share:
        return f"AP50 is {figure(ap50)}, and no kind of error alone keeps it from being higher."
    first = errors[0]
    gain = f"It would rise most, by {first.gain}, if errors of the kind “{first.name}” were mended."
    return f"AP50 is {figure(ap50)}. {gain}"


def _confusion(names: Sequence[str], counts: Sequence[Sequence[int]]) -> ConfusionTable:
    rows, columns = [*names, "background"], [*names, "missed"]
    if len(names) <= _MOST_CONFUSED:
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
    mistakes = [
        [Cell(annotated, annotated), Cell(found, found), Cell(count(number), number)]
        for number, annotated, found in pairs[:_MOST_MISTAKES]
    ]
    return ConfusionTable(columns, (), mistakes)


def _category_row(one: Mapping[str, Any]) -> list[Cell]:
    keys = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100")
    num_objects = one["num_objects"][0]
    return [
        Cell(one["name"], one["name"]),
        Cell(count(num_objects), num_objects),
        *(Cell(figure(one[key]), defined(one[key])) for key in keys),
    ]
