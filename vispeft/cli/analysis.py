"""Error analysis of `evaluate --analysis`: the file of all results, and tables of the most useful ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from vispeft.cli.terminal import console, show_table
from vispeft.io.run_layout import ANNOTATIONS_FILE, PREDICTIONS_FILE, SUMMARY_FILE

if TYPE_CHECKING:
    from vispeft.evaluation.analysis import ErrorAnalysis


def analysis_paths(
    run: Path | None, overrides: list[str], predictions: Path | None, annotations: Path | None, out: Path | None
) -> tuple[Path, Path, Path]:
    """Return the paths of the annotations, the results and analysis.json."""
    if predictions is not None and annotations is not None:
        return annotations, predictions, out or predictions.with_name("analysis.json")
    if run is None:
        raise typer.BadParameter("give a RUN, or both --predictions and --annotations.")
    if overrides:
        raise typer.BadParameter("--analysis uses the predictions that the run has written: leave out the overrides.")
    from vispeft.evaluation.statistics.candidates import check_has_ap
    from vispeft.io.json_files import read_object

    check_has_ap(run, read_object(run / SUMMARY_FILE))
    return run / ANNOTATIONS_FILE, run / PREDICTIONS_FILE, out or run / "analysis.json"


def write_analysis(annotations: Path, results: Path, out: Path) -> None:
    """Analyse the errors of a results file, write the analysis to `out` (JSON), and show its summary."""
    from vispeft.errors import DataError
    from vispeft.evaluation.analysis import analyse_results
    from vispeft.io.checksums import sources_of
    from vispeft.io.json_files import write_json

    analysis = analyse_results(annotations, results)
    write_json(out, {**analysis.to_dict(), "sources": sources_of(annotations, results)}, raises=DataError)
    _show(analysis)
    console().print(f"By category and image, precision-recall curves, confusion matrix: {out}")


def _show(analysis: ErrorAnalysis) -> None:
    """Show the table of errors, and the main results below it."""
    kind = "mask" if analysis.kind == "segm" else "box"
    errors = analysis.errors
    rows = [(name, str(errors.counts[name]), f"{gain:.3f}") for name, gain in errors.gains.items()]
    rows.append(("all false positives", "", f"{errors.gain_false_positives:.3f}"))
    rows.append(("all false negatives", "", f"{errors.gain_false_negatives:.3f}"))
    title = f"Errors at IoU 0.5, where {kind} AP50 is {errors.ap50:.3f}"
    show_table(title, ("kind", "count", "AP50 gain if corrected"), rows)
    interval = analysis.interval
    lines = [f"{kind} AP {interval.value:.3f}, 95 % interval {interval.low:.3f} to {interval.high:.3f}"]
    if analysis.boundary is not None:
        lines.append(f"boundary AP {analysis.boundary['AP']:.3f}, AP50 {analysis.boundary['AP50']:.3f}")
    if analysis.calibration is not None:
        lines.append(f"calibration error of scores (D-ECE) {analysis.calibration.d_ece:.3f}")
    lines.append(f"highest F1 at a score threshold of {analysis.threshold:.2f}")
    if analysis.worst:
        lines.append(f"worst images (ids): {', '.join(str(image_id) for image_id in analysis.worst[:10])}")
    for line in lines:
        console().print(line)
