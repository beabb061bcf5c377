"""The command that compares runs: compare."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vispeft.cli.terminal import console, say, show_table

if TYPE_CHECKING:
    from vispeft.evaluation.statistics.compare import Comparison, Estimate, Standing
    from vispeft.evaluation.statistics.compare_files import Contender, Contest


class Metric(StrEnum):
    """Metrics that can be compared."""

    AP = "AP"
    AP50 = "AP50"
    AP75 = "AP75"


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run directories, or results files.", show_default=False)
    ],
    annotations: Annotated[
        Path | None, typer.Option(help="COCO annotations that results files belong to.", show_default=False)
    ] = None,
    metric: Annotated[Metric, typer.Option(help="The figure to compare.")] = Metric.AP,
    resamples: Annotated[
        int | None,
        typer.Option(min=100, help="Resamples. Default: 1000, or 50 per comparison if more.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resampling.")] = 0,
    group: Annotated[
        bool, typer.Option("--group/--no-group", help="Take runs that differ in the seed alone for one configuration.")
    ] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything here too.")] = None,
) -> None:
    """Compare runs on the same images: intervals, differences to the best, and the cheapest that does as well.

    Example: vispeft compare runs/quickstart/lora runs/quickstart/adapter runs/quickstart/full
    """
    from vispeft.evaluation.statistics.compare import compare as compare_entries
    from vispeft.evaluation.statistics.compare_files import read_contest

    contest = read_contest(runs, annotations, is_grouped=group)
    for warning in contest.warnings:
        say(f"warning: {warning}")
    entries = [contender.entry for contender in contest.contenders]
    found = compare_entries(entries, metric=metric.value, num_resamples=resamples, seed=seed)
    if json_file is not None:
        from vispeft.errors import DataError
        from vispeft.io.json_files import write_json

        write_json(json_file, _content(found, contest), raises=DataError, indent=1)
    _show(found, contest)


def _show(found: Comparison, contest: Contest) -> None:
    """Show the table, highest value first, and the conclusion."""
    figure = f"{'mask' if contest.kind == 'segm' else 'box'} {found.metric}"
    columns = ("configuration", "seeds", figure, "less the best", "p (Holm)", "trained", "file", "training")
    pairs = sorted(zip(found.standings, contest.contenders, strict=True), key=lambda pair: -pair[0].figure.value)
    title = f"{figure} on {found.num_images} images, {found.level:.0%} intervals from {found.num_resamples} resamples"
    show_table(title.replace("%", " %"), columns, [_cells(*pair) for pair in pairs])
    console().print(found.sentence)
    for note in found.notes:
        say(f"note: {note}")


def _cells(standing: Standing, contender: Contender) -> tuple[str, ...]:
    from vispeft.training.progress import format_seconds

    percent, size, seconds = (contender.mean(key) for key in ("trainable_percent", "adapter_bytes", "train_seconds"))
    return (
        standing.name,
        str(len(standing.seed_figures)),
        _interval(standing.figure, ""),
        "-" if standing.difference is None else _interval(standing.difference, "+"),
        "-" if standing.corrected_p is None else f"{standing.corrected_p:.3f}",
        "-" if percent is None else f"{percent:.2f} %",
        "-" if size is None else f"{size / 1024:.0f} kB",
        "-" if seconds is None else format_seconds(seconds),
    )


def _interval(found: Estimate, sign: str) -> str:
    return f"{found.value:{sign}.3f} [{found.low:{sign}.3f}, {found.high:{sign}.3f}]"


def _content(found: Comparison, contest: Contest) -> dict[str, Any]:
    """Return the content of the JSON file: the comparison, and the runs and costs of each configuration."""
    content = found.to_dict() | {"kind": contest.kind}
    for standing, contender in zip(content["standings"], contest.contenders, strict=True):
        standing["runs"] = [str(source.results) for source in contender.sources]
        standing |= {key: contender.mean(key) for key in ("trainable_percent", "adapter_bytes", "train_seconds")}
    return content
