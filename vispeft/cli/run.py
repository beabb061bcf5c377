"""Commands that make or use a run: quickstart, train, evaluate, predict, merge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vispeft.cli.analysis import depth_files, write_depth
from vispeft.cli.terminal import console, say, show_table

if TYPE_CHECKING:
    from vispeft.evaluation import CocoMetrics

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Overrides by dotted path, such as train.steps=200.", show_default=False
    ),
]
INTERRUPTED = 130


def quickstart(
    out: Annotated[Path, typer.Option(help="Where the runs go; an earlier quickstart there is replaced.")] = Path(
        "runs/quickstart"
    ),
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of each run, for a quick look.")] = None,
) -> None:
    """Fine-tune the bundled model on a small synthetic set by head only, LoRA, adapters and fully, and compare.

    Takes a few minutes on a CPU. Example: vispeft quickstart
    """
    from vispeft.quickstart import QuickstartSettings, run_quickstart

    settings = QuickstartSettings() if steps is None else QuickstartSettings(steps=steps)
    outcome = run_quickstart(out, settings, say)
    if outcome is None:
        say(f"Stopped. `vispeft quickstart --out {out}` starts again.")
        raise typer.Exit(INTERRUPTED)
    rows = [_comparison_row(name, summary) for name, summary in outcome.items()]
    columns = ("method", "trainable", "mask AP", "AP50", "box AP", "training", "memory", "file")
    show_table("Fine-tuning on a synthetic set that the base has not seen", columns, rows)
    console().print(f"Runs: {out}/head_only, lora, adapter, full. Look at {out}/report.html.")


def train(
    config: Annotated[
        Path, typer.Argument(help="Configuration file (YAML), or a recipe by its name.", show_default=False)
    ],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run directory. Default: runs/<config name>-<n>.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, or with the last one.")
    ] = False,
) -> None:
    """Train a model and write a run directory: adapter, metrics, predictions, summary, report.

    Example: vispeft train configs/bundled_lora.yaml data.train.annotations=train.json data.train.images=images
    data.val.annotations=val.json data.val.images=images train.steps=200
    """
    from vispeft.config import load_config
    from vispeft.engine import begun_run_directory, new_run_directory, train_run
    from vispeft.training.memory import keep_freed_memory

    keep_freed_memory()
    loaded = load_config(config, checked_words(overrides))
    directory = begun_run_directory(out, config.stem) if resume else new_run_directory(out, config.stem)
    go_on = f"Go on with: vispeft train {config} ... --out {directory.root} --resume"
    try:
        result = train_run(loaded, directory, resume=resume)
    except KeyboardInterrupt as error:
        say(f"Stopped. {go_on if directory.config.exists() else 'Nothing was written yet.'}")
        raise typer.Exit(INTERRUPTED) from error
    if result.summary is None:
        say(f"Stopped after step {result.step}. {go_on}")
        raise typer.Exit(INTERRUPTED)
    if result.was_finished:
        say(
            f"`{directory.root}` is finished after {result.step} steps; its files stay as they are. "
            "For a longer run, name more steps: train.steps=N --resume."
        )
    _show_figures(result.summary["segm"], result.summary["bbox"])
    console().print(
        f"{result.summary['trainable_percent']:.2f} % of the parameters trained in "
        f"{result.summary['train_seconds']:.0f} s; adapter of {result.summary['adapter_bytes'] / 1024:.0f} kB; "
        f"run in {directory.root}"
    )


def evaluate(
    run: Annotated[Path | None, typer.Argument(help="Run directory.", show_default=False)] = None,
    overrides: Overrides = None,
    predictions: Annotated[Path | None, typer.Option(help="COCO results file, instead of a run.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="COCO annotations that --predictions belong to.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
    depth: Annotated[
        bool, typer.Option("--depth", help="Look closely too: errors, boundary AP, calibration, images, ...")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Where --depth writes. Default: depth.json in the run, or beside --predictions.")
    ] = None,
) -> None:
    """COCO figures of a run's best adapter, or of any results file.

    Example: vispeft evaluate runs/bundled_lora-1 --json figures.json
    """
    words = checked_words(overrides)
    if out is not None and not depth:
        raise typer.BadParameter("--out says where --depth writes: give --depth too.")
    close_up = depth_files(run, words, predictions, annotations, out) if depth else None
    metrics = _evaluated(run, words, predictions, annotations)
    for warning in metrics.warnings:
        say(f"warning: {warning}")
    if json_file is not None:
        from vispeft.errors import DataError
        from vispeft.io.json_files import write_json

        write_json(json_file, metrics.to_dict(), raises=DataError, indent=1)
    _show_figures(metrics.segm, metrics.bbox)
    show_table("Mask AP per category", ("category", "AP"), [(n, _figure(v)) for n, v in metrics.per_category.items()])
    if close_up is not None:
        write_depth(*close_up)
        if run is not None and out is None:
            from vispeft.report import write_report

            console().print(f"Look at {write_report(run)}.")


def predict(
    run: Annotated[Path, typer.Argument(help="Run directory.", show_default=False)],
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Where overlays and predictions.json go.", show_default=False)],
    threshold: Annotated[float, typer.Option(min=0.0, max=1.0, help="Lowest score that is kept.")] = 0.5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
) -> None:
    """Predict instances in images: overlays to look at, and predictions.json in COCO's results form.

    Example: vispeft predict runs/bundled_lora-1 photos --out predicted --threshold 0.4
    """
    from vispeft.engine import load_run, predict_images

    report = predict_images(load_run(run), images, out, threshold=threshold, device=device)
    console().print(
        f"{report.num_instances} instances in {report.num_images} images; overlays and predictions.json in {out}"
    )


def merge(
    run: Annotated[Path, typer.Argument(help="Run directory.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Checkpoint to write (.safetensors).", show_default=False)],
) -> None:
    """Write one plain checkpoint without deltas. A run with adapters, which do not merge, is refused.

    Example: vispeft merge runs/bundled_lora-1 --out model.safetensors
    """
    from vispeft.engine import load_run, write_merged

    write_merged(load_run(run), out)
    console().print(f"Plain checkpoint in {out}; use it by model.weights={out}")


def checked_words(overrides: list[str] | None) -> list[str]:
    """Return the overrides; a word that is not KEY=VALUE is wrong usage."""
    words = overrides or []
    for word in words:
        if "=" not in word:
            raise typer.BadParameter(f"{word!r} must be KEY=VALUE, such as train.steps=200.")
    return words


def _evaluated(
    run: Path | None, overrides: list[str], predictions: Path | None, annotations: Path | None
) -> CocoMetrics:
    if predictions is None and annotations is None and run is not None:
        from vispeft.engine import evaluate_run

        return evaluate_run(run, overrides)
    if run is not None or predictions is None or annotations is None:
        raise typer.BadParameter("give a RUN, or both --predictions and --annotations.")
    from vispeft.evaluation import evaluate_coco

    return evaluate_coco(annotations, predictions)


def _show_figures(segm: Any, bbox: Any) -> None:
    show_table(
        "COCO figures", ("", *segm), [("mask", *map(_figure, segm.values())), ("box", *map(_figure, bbox.values()))]
    )


def _figure(value: float) -> str:
    """Return a COCO metric as text; COCO's -1 means undefined and gives a dash."""
    return "-" if value < 0 else f"{value:.3f}"


def _comparison_row(name: str, summary: Any) -> tuple[str, ...]:
    return (
        name,
        f"{summary['trainable_percent']:.2f} %",
        _figure(summary["segm"]["AP"]),
        _figure(summary["segm"]["AP50"]),
        _figure(summary["bbox"]["AP"]),
        f"{summary['train_seconds']:.0f} s",
        f"{summary['peak_memory_bytes'] / 2**20:.0f} MB",
        f"{summary['adapter_bytes'] / 1024:.0f} kB",
    )
