"""Export of a run as one graph, ONNX or torch's own, compared with the run before it is kept."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from torch import Tensor

from vispeft import peft
from vispeft.engine.build import describe_base
from vispeft.engine.loaders import image_size
from vispeft.engine.saved_runs import LoadedRun
from vispeft.errors import CheckpointError, ConfigError, PlanError, writing
from vispeft.io.checksums import sha256_of
from vispeft.io.names import did_you_mean
from vispeft.models import SegmentationModel
from vispeft.models.base import TakesClassNames
from vispeft.models.exported.comparison import differing_output, example_batches
from vispeft.models.exported.description import GraphDescription
from vispeft.models.exported.files import (
    ENDINGS,
    ONNX,
    Graph,
    read_onnx,
    read_own_program,
    require_onnx,
    write_onnx,
    write_program,
)
from vispeft.models.exported.trace import outputs_of, trace
from vispeft.peft.inject import attached

MERGED = "merged"
IN_GRAPH = "in the graph"
NONE = "none"
DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class ExportReport:
    """Result of an export.

    deltas: "merged", "in the graph" or "none"
    num_bytes: of the file, and of the weights file beside it if there is one
    """

    path: Path
    deltas: str
    num_bytes: int


def export_run(run: LoadedRun, out: Path, *, threshold: float = DEFAULT_THRESHOLD) -> ExportReport:
    """Write the model of a run as one graph, in float32, for batches of any number of images.

    Deltas are merged where their methods can be, and stay in the graph as ordinary operators where they cannot. The
    written file is run on test images in batches that were not traced, and kept if its outputs are those of the run.
    The run's model is changed: it is merged, on the CPU.

    out: file that ends in .onnx or .pt2
    threshold: lowest score of an instance, kept as metadata

    Raises CheckpointError or ConfigError for a model that cannot be exported; `out` is as before then.
    """
    _check_name(out)
    _check_run(run)
    model = run.model.cpu().float()
    side = -(-image_size(run.config) // model.size_divisor) * model.size_divisor
    batches = example_batches(model.num_channels, side)
    expected = [outputs_of(model, images) for images in batches]
    deltas = _merge(model)
    description = _description(run, side, expected[0], deltas=deltas, threshold=threshold)
    program = trace(model, side)
    with writing(out, CheckpointError):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as folder:
            partial = Path(folder) / out.name
            (write_onnx if out.suffix == ONNX else write_program)(program, description, partial)
            _compare(_read(partial), batches, expected, out)
            num_bytes = _move(Path(folder), out)
    return ExportReport(out, deltas, num_bytes)


def _check_name(out: Path) -> None:
    if out.suffix not in ENDINGS:
        near = did_you_mean(out.suffix, ENDINGS)
        raise CheckpointError(f"`--out` must end in {' or '.join(ENDINGS)}, but is {out}.{near}")
    if out.suffix == ONNX:
        require_onnx()


def _check_run(run: LoadedRun) -> None:
    if run.config.task != "instance":
        raise ConfigError(
            f"Only runs of `task: instance` can be exported, but this one has `task: {run.config.task}`. Predict with "
            "the run itself, or merge it into a plain checkpoint by `vispeft merge`."
        )
    if isinstance(run.model, TakesClassNames):
        raise ConfigError(
            f"`model.name: {run.config.model.name}` reads class names as prompts, which a graph of images cannot. "
            "Merge the run into a directory of transformers by `vispeft merge`."
        )


def _merge(model: SegmentationModel) -> str:
    """Merge the deltas of a model in place, if all of them can be; return their place."""
    deltas = MERGED if attached(model) else NONE
    try:
        peft.merge(model)
    except PlanError:
        return IN_GRAPH
    peft.dequantize(model)
    return deltas


def _description(
    run: LoadedRun, side: int, outputs: Sequence[Tensor], *, deltas: str, threshold: float
) -> GraphDescription:
    model, config, adapter = run.model, run.config, run.directory.adapter
    return GraphDescription(
        model=describe_base(model, config.model),
        class_names=run.class_names,
        category_ids=run.category_ids,
        image_size=image_size(config),
        padded_size=side,
        tile=config.model.tile,
        tile_overlap=config.model.tile_overlap,
        pixel_mean=model.pixel_mean,
        pixel_std=model.pixel_std,
        num_queries=model.num_queries,
        class_scores="sigmoid" if outputs[0].shape[-1] == model.num_classes else "softmax",
        score_threshold=threshold,
        max_detections=config.eval.max_detections,
        deltas=deltas,
        adapter_sha256=sha256_of(adapter) if adapter.is_file() else "",
        vispeft_version=metadata.version("vispeft"),
    )


def _read(path: Path) -> Graph:
    return read_onnx(path)[0] if path.suffix == ONNX else read_own_program(path)


def _compare(graph: Graph, batches: Sequence[Tensor], expected: Sequence[tuple[Tensor, ...]], out: Path) -> None:
    """Refuse a graph whose outputs are not those of the run. out: for errors"""
    for images, wanted in zip(batches, expected, strict=True):
        try:
            name = differing_output(wanted, graph(images))
        except Exception as error:
            # a graph that does not run raises errors of its runtime
            reason = str(error).split("\n")[0]
            raise CheckpointError(
                f"The exported graph cannot be run on images of {list(images.shape)} ({reason}), so `{out}` was not "
                "written. Please report it, with the run's config.yaml."
            ) from error
        if name is not None:
            raise CheckpointError(
                f"The exported graph gives other `{name}` than the run on images of {list(images.shape)}, so `{out}` "
                "was not written. Please report it, with the run's config.yaml."
            )


def _move(folder: Path, out: Path) -> int:
    """Move the files of an export to their place, the graph last; return their size in bytes."""
    files = sorted(folder.iterdir(), key=lambda path: path.name == out.name)
    num_bytes = sum(path.stat().st_size for path in files)
    for path in files:
        os.replace(path, out.with_name(path.name))
    return num_bytes
