"""Commands that train or use a run: quickstart, train, evaluate, predict, merge."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vispeft.cli.analysis import analysis_paths, write_analysis
from vispeft.cli.outputs import check_output, write_output
from vispeft.cli.terminal import console, say, show_table
from vispeft.evaluation.metrics.base import KIND_NAMES

if TYPE_CHECKING:
    from vispeft.engine import RunResult
    from vispeft.evaluation import Metrics

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Overrides by dotted path, such as train.steps=200.", show_default=False
    ),
]
INTERRUPTED = 130


def quickstart(
    out: Annotated[Path, typer.Option(help="Folder of the runs; an earlier quickstart in it is replaced.")] = Path(
        "runs/quickstart"
    ),
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with train.json, val.json and images. Default: photographs of the package."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of each run, fewer for a quick try.")] = None,
) -> None:
    """Fine-tune the bundled model on a few photographs: head only, LoRA, adapters and full, and compare them.

    Takes a few minutes on a CPU. Example: vispeft quickstart
    """
    from vispeft.quickstart import QuickstartSettings, run_quickstart

    settings = QuickstartSettings(data=data) if steps is None else QuickstartSettings(data=data, steps=steps)
    outcome = run_quickstart(out, settings, say)
    if outcome is None:
        options = [f"--out {shlex.quote(str(out))}"]
        options += [] if data is None else [f"--data {shlex.quote(str(data))}"]
        options += [] if steps is None else [f"--steps {steps}"]
        say(f"Stopped. Start again with: vispeft quickstart {' '.join(options)}")
        raise typer.Exit(INTERRUPTED)
    rows = [_comparison_row(name, summary) for name, summary in outcome.items()]
    columns = ("method", "trainable", "mask AP", "AP50", "box AP", "training", "memory", "file")
    of = "photographs that the base has not seen" if data is None else str(data)
    show_table(f"Fine-tuning on {of}", columns, rows)
    console().print(f"Runs: {out}/head_only, lora, adapter, full. Report: {out}/report.html")


def train(
    config: Annotated[
        Path, typer.Argument(help="Configuration file (YAML), or a recipe by its name.", show_default=False)
    ],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run directory. Default: runs/<config name>-<n>.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the run in --out, or the last run of this configuration.")
    ] = False,
) -> None:
    """Train a model and write a run directory: adapter, metrics, predictions, summary, report.

    Example: vispeft train configs/bundled_lora.yaml data.train.annotations=train.json data.train.images=images
    data.val.annotations=val.json data.val.images=images train.steps=200
    """
    from vispeft.config import load_config
    from vispeft.engine import begun_run_directory, new_run_directory, train_run
    from vispeft.training.devices import is_first_process
    from vispeft.training.memory import keep_freed_memory

    keep_freed_memory()
    loaded = load_config(config, checked_overrides(overrides))
    reserved = begun_run_directory(out, config.stem) if resume else new_run_directory(out, config.stem)
    with reserved as directory:
        root = shlex.quote(str(directory.root))
        resume_hint = f"Resume with: vispeft train {shlex.quote(str(config))} ... --out {root} --resume"
        try:
            result = train_run(loaded, directory, resume=resume)
        except KeyboardInterrupt as error:
            say(f"Stopped. {resume_hint if directory.config.exists() else 'Nothing was written yet.'}")
            raise typer.Exit(INTERRUPTED) from error
    if result.summary is None:
        say(f"Stopped after step {result.step}. {resume_hint}")
        raise typer.Exit(INTERRUPTED)
    if is_first_process():
        _show_run(result, result.summary)


def evaluate(
    run: Annotated[
        Path | None,
        typer.Argument(
            help="Run directory, hf://user/name of a run of the hub, or a name of `vispeft models`.", show_default=False
        ),
    ] = None,
    overrides: Overrides = None,
    predictions: Annotated[Path | None, typer.Option(help="COCO results file, instead of a run.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="COCO annotations of --predictions.")] = None,
    max_detections: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --predictions: detections of each image that were kept; where they and the objects of one class "
            "are more than COCO's 100, AP@N and AR@N are added.",
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the metrics to this file.")] = None,
    analysis: Annotated[
        bool,
        typer.Option(
            "--analysis", help="Also analyse the errors: kinds of error, boundary AP, calibration, worst images, ..."
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="File of --analysis. Default: analysis.json in the run, or beside --predictions."),
    ] = None,
) -> None:
    """Compute the metrics of a run's best adapter, or the COCO metrics of any results file.

    Example: vispeft evaluate runs/bundled_lora-1 --json metrics.json
    """
    checked = checked_overrides(overrides)
    if out is not None and not analysis:
        raise typer.BadParameter("--out is the file of --analysis: give --analysis too.")
    for option, path in (("--json", json_file), ("--out", out)):
        check_output(option, path, (predictions, annotations))
    paths = analysis_paths(run, checked, predictions, annotations, out) if analysis else None
    _show_evaluation(_evaluate(run, checked, predictions, annotations, max_detections), json_file)
    if paths is not None:
        write_analysis(*paths)
        if run is not None and out is None:
            from vispeft.report import write_report

            console().print(f"Report: {write_report(run)}")


def predict(
    run: Annotated[
        Path,
        typer.Argument(
            help="Run directory, hf://user/name of a run of the hub, a name of `vispeft models`, or model.onnx of "
            "`vispeft export`.",
            show_default=False,
        ),
    ],
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for overlays and predictions.json.", show_default=False)],
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Lowest score of a kept instance. Default: 0.5, or that of the export. Label maps have none.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ... Exported models: the CPU.")] = "auto",
) -> None:
    """Predict images by a run: write overlays, predictions.json as COCO results, and the label maps of a run with them.

    Example: vispeft predict runs/bundled_lora-1 photos --out predicted --threshold 0.4
    """
    from vispeft.engine import load_source, predict_images

    source = load_source(run, device)
    lowest = source.threshold if threshold is None else threshold
    report = predict_images(source.run, images, out, threshold=lowest, device=source.device)
    written = "overlays, label maps" if report.has_label_maps else "overlays"
    console().print(
        f"images: {report.num_images}, {report.found}: {report.num_instances}; {written} and predictions.json in {out}"
    )


def merge(
    run: Annotated[
        Path, typer.Argument(help="Run directory, or hf://user/name of a run of the hub.", show_default=False)
    ],
    out: Annotated[
        Path,
        typer.Option(help="Checkpoint to write: .safetensors, or a directory of transformers.", show_default=False),
    ],
) -> None:
    """Merge a run into one plain checkpoint without deltas. A run with adapters is refused: they cannot be merged.

    A run of mask2former or transformers can be written as a directory that transformers opens.

    Example: vispeft merge runs/bundled_lora-1 --out model.safetensors
    """
    from vispeft.engine import load_run, write_merged

    loaded = load_run(run)
    write_merged(loaded, out)
    task = f"task={loaded.config.task} " if loaded.config.task == "detection" else ""
    name = "" if out.suffix == ".safetensors" else f"model.name={loaded.config.model.name} "
    console().print(f"Plain checkpoint in {out}; use it by {task}{name}model.weights={out}")


def checked_overrides(overrides: list[str] | None) -> list[str]:
    """Return the overrides. Raises `typer.BadParameter` for one that is not KEY=VALUE."""
    for override in overrides or []:
        if "=" not in override:
            raise typer.BadParameter(f"{override!r} must be KEY=VALUE, such as train.steps=200.")
    return overrides or []


def _show_run(result: RunResult, summary: Mapping[str, Any]) -> None:
    """Show the results of a finished run."""
    if result.was_finished:
        say(
            f"`{result.directory}` is finished after {result.step} steps; its files are unchanged. "
            "For a longer run, give more steps: train.steps=N --resume."
        )
    _show_metrics({kind: summary[kind] for kind in KIND_NAMES if kind in summary})
    console().print(
        f"{summary['trainable_percent']:.2f} % of the parameters trained in {summary['train_seconds']:.0f} s; "
        f"adapter of {summary['adapter_bytes'] / 1024:.0f} kB; run in {result.directory}"
    )


def _evaluate(
    run: Path | None,
    overrides: list[str],
    predictions: Path | None,
    annotations: Path | None,
    max_detections: int | None,
) -> Metrics:
    """Return the metrics of a run, or of a results file."""
    if predictions is None and annotations is None and run is not None:
        from vispeft.engine import evaluate_run

        if max_detections is not None:
            raise typer.BadParameter("--max-detections is for --predictions: set eval.max_detections of a run.")
        return evaluate_run(run, overrides)
    if run is not None or predictions is None or annotations is None:
        raise typer.BadParameter("give a RUN, or both --predictions and --annotations.")
    from vispeft.evaluation import evaluate_coco

    return evaluate_coco(annotations, predictions, max_detections=max_detections)


def _show_evaluation(metrics: Metrics, json_file: Path | None) -> None:
    """Show metrics and warnings, and write the metrics to a JSON file if there is one."""
    for warning in metrics.warnings:
        say(f"warning: {warning}")
    write_output(json_file, metrics.to_dict())
    _show_metrics(metrics.kinds)
    rows = [(name, _metric_text(value)) for name, value in metrics.per_category.items()]
    title = metrics.category_metric
    show_table(f"{title[0].upper()}{title[1:]} by category", ("category", title.split()[-1]), rows)


def _show_metrics(kinds: Mapping[str, Mapping[str, float]]) -> None:
    """Show the table of metrics, a row for each kind, such as masks and boxes; masks of detection have none."""
    defined = {kind: values for kind, values in kinds.items() if any(value >= 0 for value in values.values())}
    shown = defined or kinds
    names = list(next(iter(shown.values())))
    rows = [(KIND_NAMES[kind], *map(_metric_text, values.values())) for kind, values in shown.items()]
    show_table("COCO metrics" if "segm" in kinds else "Metrics", ("", *names), rows)


def _metric_text(value: float) -> str:
    """Return a COCO metric as text, a dash where it is undefined (-1)."""
    return "-" if value < 0 else f"{value:.3f}"


def _comparison_row(name: str, summary: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the row of one run of the quickstart."""
    return (
        name,
        f"{summary['trainable_percent']:.2f} %",
        _metric_text(summary["segm"]["AP"]),
        _metric_text(summary["segm"]["AP50"]),
        _metric_text(summary["bbox"]["AP"]),
        f"{summary['train_seconds']:.0f} s",
        f"{summary['peak_memory_bytes'] / 2**20:.0f} MB",
        f"{summary['adapter_bytes'] / 1024:.0f} kB",
    )
