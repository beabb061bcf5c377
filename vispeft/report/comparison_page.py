"""The page that sets several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vispeft.errors import DataError
from vispeft.report.charts import Chart, Series, line_chart
from vispeft.report.page import link_to, run_facts, write_page
from vispeft.report.run_files import RunFiles, read_run
from vispeft.report.run_page import category_rows
from vispeft.report.samples import draw_samples


def write_comparison(runs: Mapping[str, Path], out: Path) -> Path:
    """Write one page that compares runs, by name and run directory, into the HTML file `out`. Returns its path."""
    if not runs:
        raise DataError("`runs` must name at least one run directory to compare, but is empty.")
    read = {name: read_run(path) for name, path in runs.items()}
    return write_page(
        out,
        "comparison.html.j2",
        title="Comparison of " + ", ".join(read),
        kind="comparison",
        rows=[
            (name, link_to(path / "report.html", out), [fact.value for fact in run_facts(read[name].summary)])
            for name, path in runs.items()
        ],
        columns=[fact.name for fact in run_facts({})],
        names=list(read),
        charts=_charts(read),
        categories=category_rows(read),
        samples=draw_samples(read, num_images=4),
    )


def _charts(runs: Mapping[str, RunFiles]) -> list[Chart]:
    scores = [Series(name, run.series("val", "segm/AP")) for name, run in runs.items()]
    losses = [Series(name, run.series("train", "loss")) for name, run in runs.items()]
    charts = [line_chart(scores, title="Validation mask AP", from_zero=True), line_chart(losses, title="Training loss")]
    return [chart for chart in charts if chart is not None]
