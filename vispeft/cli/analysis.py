"""Error analysis of `evaluate --depth`: the file with all its results, and tables of the most useful ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from vispeft.cli.terminal import console, show_table
from vispeft.io.run_layout import ANNOTATIONS_FILE, PREDICTIONS_FILE

if TYPE_CHECKING:
    from vispeft.evaluation.analysis.evaluate import Depth


def depth_files(
    run: Path | None, overrides: list[str], predictions: Path | None, annotations: Path | None, out: Path | None
) -> tuple[Path, Path, Path]:
    """Return the paths of the annotations, the results and depth.json. A run's files are used as they were written."""
    if predictions is not None and annotations is not None:
        return annotations, predictions, out or predictions.with_name("depth.json")
    if run is None:
        raise typer.BadParameter("give a RUN, or both --predictions and --annotations.")
    if overrides:
        raise typer.BadParameter("--depth looks at a run's predictions as they were written: leave out the overrides.")
    return run / ANNOTATIONS_FILE, run / PREDICTIONS_FILE, out or run / "depth.json"


def write_depth(annotations: Path, results: Path, out: Path) -> None:
    """Analyse the errors of a results file, write the analysis to `out` (JSON), and show its summary."""
    from vispeft.errors import DataError
    from vispeft.evaluation.analysis.evaluate import evaluate_depth
    from vispeft.io.json_files import write_json

    depth = evaluate_depth(annotations, results)
    write_json(out, depth.to_dict(), raises=DataError)
    _show(depth)
    console().print(f"By category and image, precision-recall curves, confusion matrix: {out}")


def _show(depth: Depth) -> None:
    kind = "mask" if depth.kind == "segm" else "box"
    errors = depth.errors
    rows = [(name, str(errors.counts[name]), f"{gain:.3f}") for name, gain in errors.gains.items()]
    rows.append(("all false positives", "", f"{errors.gain_false_positives:.3f}"))
    rows.append(("all false negatives", "", f"{errors.gain_false_negatives:.3f}"))
    show_table(f"Errors at IoU 0.5, from {kind} AP50 {errors.ap50:.3f}", ("kind", "number", "AP50 lost"), rows)
    found = depth.interval
    lines = [f"{kind} AP {found.value:.3f}, 95 % interval {found.low:.3f} to {found.high:.3f}"]
    if depth.boundary is not None:
        lines.append(f"boundary AP {depth.boundary['AP']:.3f}, AP50 {depth.boundary['AP50']:.3f}")
    if depth.calibration is not None:
        lines.append(f"calibration error of scores (D-ECE) {depth.calibration.d_ece:.3f}")
    lines.append(f"best F1 from a score of {depth.threshold:.2f} on")
    if depth.worst:
        lines.append(f"worst images (ids): {', '.join(str(number) for number in depth.worst[:10])}")
    for line in lines:
        console().print(line)
