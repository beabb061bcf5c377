"""The command `compare`: comparison of runs on the same images."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vispeft.cli.outputs import check_output, write_output
from vispeft.cli.terminal import console, say, show_table

if TYPE_CHECKING:
    from vispeft.evaluation.statistics.candidates import Candidate, CandidateSet
    from vispeft.evaluation.statistics.conclusion import Comparison, Result
    from vispeft.evaluation.statistics.significance import Estimate


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
        Path | None, typer.Option(help="COCO annotations of the results files.", show_default=False)
    ] = None,
    metric: Annotated[Metric, typer.Option(help="The metric to compare.")] = Metric.AP,
    resamples: Annotated[
        int | None,
        typer.Option(min=100, help="Resamples. Default: 1000, or 50 per comparison if more.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resampling.")] = 0,
    group: Annotated[
        bool, typer.Option("--group/--no-group", help="Treat runs that differ in the seed alone as one configuration.")
    ] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the comparison to this file.")] = None,
) -> None:
    """Compare runs on the same images: intervals, differences to the best, and the cheapest that is equally good.

    Example: vispeft compare runs/quickstart/lora runs/quickstart/adapter runs/quickstart/full
    """
    from vispeft.evaluation.statistics.candidates import read_candidates
    from vispeft.evaluation.statistics.compare import compare as compare_entries

    check_output("--json", json_file, (*runs, annotations))
    candidate_set = read_candidates(runs, annotations, is_grouped=group)
    for warning in candidate_set.warnings:
        say(f"warning: {warning}")
    entries = [candidate.entry for candidate in candidate_set.candidates]
    found = compare_entries(entries, metric=metric.value, num_resamples=resamples, seed=seed)
    write_output(json_file, _content(found, candidate_set))
    _show(found, candidate_set)


def _show(found: Comparison, candidate_set: CandidateSet) -> None:
    """Show the table, highest value first, and the conclusion."""
    metric_name = f"{'mask' if candidate_set.kind == 'segm' else 'box'} {found.metric}"
    columns = ("configuration", "seeds", metric_name, "minus the best", "p (Holm)", "trained", "file", "training")
    pairs = sorted(zip(found.results, candidate_set.candidates, strict=True), key=lambda pair: -pair[0].estimate.value)
    title = (
        f"{metric_name} on {found.num_images} images, {found.level:.0%} intervals from {found.num_resamples} resamples"
    )
    show_table(title.replace("%", " %"), columns, [_cells(*pair) for pair in pairs])
    console().print(found.sentence)
    for note in found.notes:
        say(f"note: {note}")


def _cells(result: Result, candidate: Candidate) -> tuple[str, ...]:
    from vispeft.training.progress import format_seconds

    percent, size, seconds = (candidate.mean(key) for key in ("trainable_percent", "adapter_bytes", "train_seconds"))
    return (
        result.name,
        str(len(result.seed_values)),
        _interval(result.estimate, ""),
        "-" if result.difference is None else _interval(result.difference, "+"),
        "-" if result.corrected_p is None else f"{result.corrected_p:.3f}",
        "-" if percent is None else f"{percent:.2f} %",
        "-" if size is None else f"{size / 1024:.0f} kB",
        "-" if seconds is None else format_seconds(seconds),
    )


def _interval(found: Estimate, sign: str) -> str:
    return f"{found.value:{sign}.3f} [{found.low:{sign}.3f}, {found.high:{sign}.3f}]"


def _content(found: Comparison, candidate_set: CandidateSet) -> dict[str, Any]:
    """Return the content of the JSON file: the comparison, and the runs and costs of each configuration."""
    content = found.to_dict() | {"kind": candidate_set.kind}
    for result, candidate in zip(content["results"], candidate_set.candidates, strict=True):
        result["runs"] = [str(source.results) for source in candidate.sources]
        result |= {key: candidate.mean(key) for key in ("trainable_percent", "adapter_bytes", "train_seconds")}
    return content
