"""Content of the page that compares several runs. The layout is `templates/comparison.html.j2`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from vispeft.errors import DataError
from vispeft.evaluation.statistics.candidates import check_has_ap, read_candidates
from vispeft.evaluation.statistics.compare import compare
from vispeft.evaluation.statistics.conclusion import Comparison
from vispeft.io.run_layout import REPORT_FILE
from vispeft.report.charts import Chart, Series, line_chart
from vispeft.report.formats import metric_text
from vispeft.report.page import Cell, Interval, link_to, run_facts, span_of, write_page
from vispeft.report.run_contents import RunContents, read_run
from vispeft.report.run_page import category_rows
from vispeft.report.samples import draw_samples

_COLUMNS = [fact.name for fact in run_facts({})]
# limit for all runs together; to resample more takes longer than a few seconds and is left to `vispeft compare`
_MOST_PREDICTIONS = 40_000


def write_comparison(runs: Mapping[str, Path], out: Path) -> Path:
    """Write one page that compares runs, by name and run directory, into the HTML file `out`; return `out`."""
    if not runs:
        raise DataError("`runs` must name at least one run directory to compare, but is empty.")
    read = {name: read_run(path) for name, path in runs.items()}
    for run in read.values():
        check_has_ap(run.path, run.summary)
    comparison, categories = _compared(read), category_rows(read)
    return write_page(
        out,
        "comparison.html.j2",
        title="Comparison of " + ", ".join(read),
        kind="comparison",
        conclusion=[comparison.sentence, *comparison.notes] if comparison is not None else [],
        rows=_rows(read, comparison, out),
        columns=["run", "mask AP", *(["95 % interval"] if comparison is not None else []), *_COLUMNS[1:]],
        names=list(read),
        charts=_charts(read),
        categories=categories if len(categories) > 1 else [],
        samples=draw_samples(read, num_images=4),
    )


def _compared(runs: Mapping[str, RunContents]) -> Comparison | None:
    """Compare the runs. Return None if their annotations differ or if there are too many predictions to be quick."""
    num_predictions = sum(len(run.predictions) for run in runs.values())
    if len(runs) < 2 or num_predictions > _MOST_PREDICTIONS or not all(run.predictions for run in runs.values()):
        return None
    try:
        candidate_set = read_candidates([run.path for run in runs.values()], is_grouped=False)
        entries = [replace(one.entry, name=name) for name, one in zip(runs, candidate_set.candidates, strict=True)]
        return compare(entries)
    except DataError:
        return None


def _rows(runs: Mapping[str, RunContents], comparison: Comparison | None, out: Path) -> list[list[Cell]]:
    """Return a row for each run, with the interval of its AP if there is one."""
    intervals = [
        Interval(one.estimate.value, one.estimate.low, one.estimate.high)
        for one in (comparison.results if comparison else ())
    ]
    ends = [end for one in intervals for end in (one.low, one.high)]
    rows = []
    for place, (name, run) in enumerate(runs.items()):
        score, *rest = [Cell(fact.value, fact.order) for fact in run_facts(run.summary)]
        row = [Cell(name, name, link_to(run.path / REPORT_FILE, out)), score]
        if intervals:
            interval = intervals[place]
            text = f"{metric_text(interval.low)} to {metric_text(interval.high)}"
            row.append(Cell(text, interval.low, span=span_of(interval, ends)))
        rows.append([*row, *rest])
    return rows


def _charts(runs: Mapping[str, RunContents]) -> list[Chart]:
    scores = [Series(name, run.series("val", "segm/AP")) for name, run in runs.items()]
    losses = [Series(name, run.series("train", "loss")) for name, run in runs.items()]
    # a curve needs at least two evaluations
    has_curve = any(len(line.points) > 1 for line in scores)
    charts = [
        line_chart(scores, title="Validation mask AP", from_zero=True) if has_curve else None,
        line_chart(losses, title="Training loss"),
    ]
    return [chart for chart in charts if chart is not None]
