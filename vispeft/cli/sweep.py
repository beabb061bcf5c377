"""The command `sweep`: training at many points of a search space."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vispeft.cli.run import INTERRUPTED, Overrides, checked_overrides
from vispeft.cli.terminal import console, say, show_table

if TYPE_CHECKING:
    from vispeft.sweep import Results, Row, Sweep, SweepResult


def sweep(
    config: Annotated[
        Path,
        typer.Argument(
            help="Configuration file (YAML) with a section `sweep`, or a recipe by its name.", show_default=False
        ),
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Sweep directory. Default: the existing one of this sweep in runs/, or a new one."),
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed trials again.")] = False,
) -> None:
    """Train a configuration at many points of a search space, such as methods, ranks and rates, and compare the runs.

    The same command resumes a sweep that was stopped or killed. Example: vispeft sweep
    configs/sweep_adapters_per_block.yaml data.train.annotations=train.json data.train.images=images
    data.val.annotations=val.json data.val.images=images train.steps=200
    """
    from vispeft.sweep import check_plans, is_child, load_sweep, open_sweep_directory, run_sweep

    loaded = load_sweep(config, checked_overrides(overrides))
    if is_child() and out is not None:
        _work(loaded, out)
        return
    check_plans(loaded)
    directory = open_sweep_directory(loaded, out)
    result = run_sweep(loaded, directory, say, retries_failed=retry_failed)
    if result.is_interrupted:
        option = [] if out is None else ["--out", str(out)]
        say(f"Stopped. Resume with: {shlex.join(['vispeft', 'sweep', str(config), *(overrides or []), *option])}")
        raise typer.Exit(INTERRUPTED)
    _show(result)


def _work(loaded: Sweep, out: Path) -> None:
    """Run trials in a worker process that another call of the command started."""
    from vispeft.sweep import SweepDirectory, work_as_child

    if work_as_child(loaded, SweepDirectory(out), say):
        raise typer.Exit(INTERRUPTED)


def _show(result: SweepResult) -> None:
    """Show the table of trials, highest mask AP first, the conclusion, and the paths of the files."""
    results = result.results
    ranked = sorted(results.rows, key=lambda row: (-row.metrics.get("segm/AP", -2.0), row.index))
    columns = ("trial", "#", "mask AP", "AP50", "trained", "training", "memory", "state")
    show_table("Trials, best mask AP first", columns, [_cells(row) for row in ranked])
    failed = results.count("failed")
    if failed:
        say(f"{failed} of {len(results.rows)} trials failed; their logs are in {result.directory.root}/logs.")
    console().print(_conclusion(results, result.directory.root))
    for sentence in _comparison_sentences(result):
        console().print(sentence)
    console().print(f"Report: {result.directory.report}")
    if results.best is None:
        raise typer.Exit(1)


def _conclusion(results: Results, root: Path) -> str:
    """Return a sentence about the best configuration."""
    if results.best is None:
        return f"No trial was completed; see {root}/results.json"
    rows = results.best.rows
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in results.best.means.items())
    seeds = f", means over {len(rows)} seeds" if len(rows) > 1 else ""
    is_front = len(results.best.means) > 1
    first = f"On the Pareto front: {len(results.front)}; first " if is_front else "Best: "
    return f"{first}{results.best.title} ({metrics}{seeds}). Train it with: vispeft train {root}/best.yaml"


def _comparison_sentences(result: SweepResult) -> list[str]:
    """Return conclusion and notes of comparison.json; empty if it does not cover the trials that are complete now."""
    from vispeft.io.json_files import read_json

    path = result.directory.comparison
    content = read_json(path) if path.is_file() else {}
    if content.get("complete") != sorted(row.number for row in result.results.rows if row.state == "complete"):
        return []
    return [content["sentence"], *content["notes"]]


def _cells(row: Row) -> tuple[str, ...]:
    """Return the cells of one trial."""
    from vispeft.training.progress import format_bytes, format_seconds

    metrics = row.metrics
    trained = f"{metrics['trainable_params']:,.0f}" if "trainable_params" in metrics else "-"
    seconds = format_seconds(metrics["train_seconds"]) if "train_seconds" in metrics else "-"
    memory = format_bytes(metrics["peak_memory_bytes"]) if "peak_memory_bytes" in metrics else "-"
    return (
        row.run.title or "the configuration itself",
        str(row.number),
        _ap(metrics.get("segm/AP")),
        _ap(metrics.get("segm/AP50")),
        trained,
        seconds,
        memory,
        row.state,
    )


def _ap(value: float | None) -> str:
    return "-" if value is None or value < 0 else f"{value:.3f}"
