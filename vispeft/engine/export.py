"""Export of a run as one graph, ONNX or torch's own, checked against the run before it is kept."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from vispeft import peft
from vispeft.engine.build import describe_base
from vispeft.engine.loaders import image_size
from vispeft.engine.saved_runs import LoadedRun
from vispeft.errors import CheckpointError, PlanError
from vispeft.io.names import did_you_mean
from vispeft.models import SegmentationModel
from vispeft.models.exported.description import GraphDescription
from vispeft.models.exported.files import ENDINGS, ONNX, read_graph, require_onnx, write_onnx, write_program
from vispeft.models.exported.trace import Example, differing_output, outputs_of, trace
from vispeft.peft.inject import attached

MERGED = "merged"
IN_GRAPH = "in the graph"
NONE = "none"


@dataclass(frozen=True)
class ExportReport:
    """Result of an export.

    deltas: "merged", "in the graph" or "none"
    reason: reason why deltas could not be merged; empty where they were
    """

    path: Path
    deltas: str
    reason: str
    num_bytes: int


def export_run(run: LoadedRun, out: Path, *, has_fixed_size: bool = True, threshold: float = 0.5) -> ExportReport:
    """Write the model of a run as one graph, in float32, for batches of any number of images.

    Deltas are merged where their methods can be, and stay in the graph as ordinary operators where they cannot. The
    written file is run on batches that were not traced and compared with the run; one that differs is removed.

    out: file that ends in .onnx or .pt2
    has_fixed_size: the graph takes the run's padded square alone, else any multiples of the model's divisor
    threshold: lowest score of an instance, kept as metadata
    """
    if out.suffix not in ENDINGS:
        near = did_you_mean(out.suffix, ENDINGS)
        raise CheckpointError(f"`--out` must end in {' or '.join(ENDINGS)}, but is {out}.{near}")
    if out.suffix == ONNX:
        require_onnx()
    model = run.model.cpu().float()
    side = -(-image_size(run.config) // model.size_divisor) * model.size_divisor
    example = Example(side, has_fixed_size, model.size_divisor)
    expected = outputs_of(model, example)
    deltas, reason = _merge(model)
    description = _description(run, deltas, example, threshold, num_class_logits=expected[0][0].shape[-1])
    program = trace(model, example)
    writer = write_onnx if out.suffix == ONNX else write_program
    partial = out.with_name(f".{out.stem}.unchecked{out.suffix}")
    try:
        writer(program, description, partial)
        graph, _ = read_graph(partial)
        for images, wanted in zip(example.compared, expected, strict=True):
            if (name := differing_output(wanted, graph(images))) is not None:
                raise CheckpointError(
                    f"The exported graph gives another `{name}` than the run for images of {list(images.shape)}, so "
                    f"`{out}` was not written. Please report it, with the run's config.yaml."
                )
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return ExportReport(out, deltas, reason, out.stat().st_size)


def _merge(model: SegmentationModel) -> tuple[str, str]:
    """Merge the deltas of a model in place; return their place, and the reason if they cannot be merged."""
    has_deltas = bool(attached(model))
    try:
        peft.merge(model)
    except PlanError as error:
        peft.dequantize(model)
        return IN_GRAPH, str(error)
    peft.dequantize(model)
    return (MERGED if has_deltas else NONE), ""


def _description(
    run: LoadedRun, deltas: str, example: Example, threshold: float, *, num_class_logits: int
) -> GraphDescription:
    model, config = run.model, run.config
    return GraphDescription(
        model=describe_base(model, config.model),
        class_names=run.class_names,
        category_ids=run.category_ids,
        image_size=image_size(config),
        padded_size=example.side,
        size_divisor=model.size_divisor,
        has_fixed_size=example.has_fixed_size,
        pixel_mean=model.pixel_mean,
        pixel_std=model.pixel_std,
        num_queries=model.num_queries,
        class_scores="sigmoid" if num_class_logits == model.num_classes else "softmax",
        score_threshold=threshold,
        max_detections=config.eval.max_detections,
        deltas=deltas,
        adapter_sha256=hashlib.sha256(run.directory.adapter.read_bytes()).hexdigest(),
        vispeft_version=metadata.version("vispeft"),
    )
