"""Runs are exported, and the exported model predicts as the run does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_utils
from torch import Tensor

from vispeft import peft
from vispeft.config import parse_config
from vispeft.engine import (
    ExportReport,
    RunDirectory,
    export_run,
    load_exported,
    load_run,
    load_source,
    predict_images,
    train_run,
)
from vispeft.engine.predict import predict
from vispeft.errors import CheckpointError, ConfigError
from vispeft.models.exported import files
from vispeft.models.exported.model import ExportedModel

ADAPTERS = {"@encoder.blocks": {"method": "adapter", "width": 4}}
LORA = {"@encoder.qkv": {"method": "lora", "rank": 2, "parts": "qv"}}


@pytest.fixture(scope="module")
def onnx() -> Any:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    return pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def tiled(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of EoMT with adapters on tiles. The side of its input, 60 pixels, is no multiple of a patch."""
    directory = trained(tiny, tmp_path_factory.mktemp("runs") / "tiled", ADAPTERS, tile=48, tile_overlap=0.5)
    directory.config.write_text(directory.config.read_text().replace("image_size: 64", "image_size: 60"))
    return directory.root


@pytest.fixture(scope="module")
def exported(onnx: Any, tiled: Path) -> ExportReport:
    """The export of the tiled run."""
    return export_run(load_run(tiled), tiled / "model.onnx")


def trained(tiny: dict[str, Any], root: Path, deltas: Mapping[str, Any], **model: Any) -> RunDirectory:
    """Return a run of EoMT, whose export takes the least time, or of another model."""
    base = {**tiny["model"], "name": "eomt", "options": {"num_queries": 12}, **model}
    document = {**tiny, "model": base, "peft": {"deltas": deltas, "train": ["@new"]}}
    directory = RunDirectory(root)
    train_run(parse_config(document, ["train.steps=2"]), directory)
    return directory


def assert_same_results(found: Path, expected: Path) -> None:
    """Compare two folders of `vispeft predict`, within the rounding of another runtime."""
    pairs = [json.loads((folder / "predictions.json").read_text()) for folder in (found, expected)]
    assert len(pairs[0]) == len(pairs[1]) > 0
    for one, other in zip(*pairs, strict=True):
        assert one["category_id"] == other["category_id"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
        assert one["bbox"] == pytest.approx(other["bbox"], abs=0.6)
        overlap = mask_utils.iou([one["segmentation"]], [other["segmentation"]], [0])
        assert overlap[0, 0] > 0.98
    names = sorted(path.name for path in expected.iterdir())
    assert names == sorted(path.name for path in found.iterdir())
    for name in (name for name in names if name.endswith(".png")):
        one, other = (np.asarray(Image.open(folder / name), dtype=np.int64) for folder in (found, expected))
        assert np.abs(one - other).mean() < 1


@pytest.mark.slow
def test_export_run__merges_lora_and_predicts_as_the_run(
    onnx: Any, tiny: dict[str, Any], shapes_set: Path, tmp_path: Path
) -> None:
    options = {**tiny["model"]["options"], "pixel_decoder_layers": 1, "decoder_layers": 1}
    finished = trained(tiny, tmp_path / "run", LORA, name="mask_dino", options=options)
    images = sorted((shapes_set / "images").iterdir())[:2]
    predict_images(load_run(finished.root), images, tmp_path / "expected", device="cpu", threshold=0.01)
    report = export_run(load_run(finished.root), tmp_path / "new" / "model.onnx", threshold=0.01)
    assert report.deltas == "merged"
    assert report.num_bytes == report.path.stat().st_size
    assert [path.name for path in report.path.parent.iterdir()] == ["model.onnx"]

    graph = onnx.load(report.path)
    assert {node.domain for node in graph.graph.node} <= {"", "ai.onnx"}
    assert not graph.functions
    assert "GridSample" in {node.op_type for node in graph.graph.node}
    assert [[size.dim_param or size.dim_value for size in graph.graph.input[0].type.tensor_type.shape.dim]] == [
        ["batch", 3, 64, 64]
    ]

    source = load_source(report.path, "auto")
    assert (source.device, source.threshold) == ("cpu", 0.01)
    predict_images(source.run, images, tmp_path / "found", device=source.device, threshold=source.threshold)
    assert_same_results(tmp_path / "found", tmp_path / "expected")


def test_export_run__keeps_adapters_in_the_graph(tiled: Path, exported: ExportReport) -> None:
    assert exported.deltas == "in the graph"
    run, x = load_run(tiled), torch.randn(1, 3, 64, 64)
    found = load_exported(exported.path)
    with torch.no_grad():
        expected = run.model(x).final.class_logits
        with peft.disabled(run.model):
            of_base = run.model(x).final.class_logits
        class_logits = found.model(x).final.class_logits
    assert not torch.allclose(of_base, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(class_logits, expected, rtol=1e-4, atol=1e-5)
    assert (found.class_names, found.category_ids) == (run.class_names, run.category_ids)


def test_load_exported__predicts_tiles_as_the_run(tiled: Path, exported: ExportReport) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    (expected,) = predict(load_run(tiled), [picture], threshold=0.0, max_detections=5)
    found_run = load_exported(exported.path)
    assert (found_run.config.model.tile, found_run.config.model.tile_overlap) == (48, 0.5)
    (found,) = predict(found_run, [picture], threshold=0.0, max_detections=5)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-3, atol=1e-4)
    assert found.labels.equal(expected.labels)


def test_exported_model__only_predicts(tiled: Path, exported: ExportReport) -> None:
    of_run, model = load_run(tiled).model, ExportedModel(exported.path)
    for name in ("pixel_mean", "pixel_std", "num_classes", "num_queries", "num_channels"):
        assert getattr(model, name) == getattr(of_run, name)
    with pytest.raises(ConfigError, match="only predicts"):
        model.split(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ConfigError, match="exported for inputs of 64x64 pixels, but the input has 64x96"):
        model(torch.zeros(1, 3, 64, 96))


def test_export_run__writes_a_program_of_torch(tiny: dict[str, Any], tmp_path: Path) -> None:
    directory = trained(tiny, tmp_path / "run", LORA)
    report = export_run(load_run(directory.root), tmp_path / "model.pt2")
    assert report.deltas == "merged"
    extra = {"vispeft.json": ""}
    module = torch.export.load(report.path, extra_files=extra).module()
    known = json.loads(extra["vispeft.json"])
    run, x = load_run(directory.root), torch.randn(5, 3, 64, 64)
    assert json.loads(known["class_names"]) == list(run.class_names)
    with torch.no_grad():
        predictions = run.model(x)
        class_logits, embeddings, features = module(x)
    torch.testing.assert_close(class_logits, predictions.final.class_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embeddings, predictions.final.mask_embeddings, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features, predictions.mask_features, rtol=1e-4, atol=1e-5)
    with pytest.raises(CheckpointError, match=r"must be a run directory or an \.onnx file.*unpickling"):
        load_source(report.path, "auto")


def test_export_run__refuses_a_graph_of_other_outputs(
    tiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_wrongly(path: Path) -> files.Graph:
        graph = files.read_own_program(path)

        def shifted(images: Tensor) -> tuple[Tensor, ...]:
            class_logits, *others = graph(images)
            return class_logits + 0.1, *others

        return shifted

    monkeypatch.setattr("vispeft.engine.export.read_own_program", read_wrongly)
    out = tmp_path / "model.pt2"
    out.write_text("earlier")
    with pytest.raises(CheckpointError, match=r"gives other `class_logits` than the run.*was not written"):
        export_run(load_run(tiled), out)
    assert out.read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]


def test_export_run__names_what_cannot_be_traced(tiled: Path, tmp_path: Path) -> None:
    def decide_by_value(module: Any, inputs: Any, output: Tensor) -> Tensor:
        return output if output.sum() > 0 else -output

    run = load_run(tiled)
    run.model.predictor.class_embed.register_forward_hook(decide_by_value)
    with pytest.raises(ConfigError, match=r"The model cannot be exported: torch\.export cannot trace it \(.+\)"):
        export_run(run, tmp_path / "model.pt2")


@pytest.mark.parametrize("name", ["model.onx", "model"])
def test_export_run__refuses_another_ending(name: str, finished: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"`--out` must end in \.onnx or \.pt2"):
        export_run(load_run(finished.root), tmp_path / name)


def test_load_source__refuses_what_is_no_export(onnx: Any, finished: RunDirectory, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(CheckpointError, match="does not exist"):
        load_source(path, "auto")
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read as an ONNX model"):
        load_source(path, "auto")
    node = onnx.helper.make_node("Relu", ["images"], ["y"])
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("images", "y")]
    graph = onnx.helper.make_graph([node], "other", values[:1], values[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9), path)
    with pytest.raises(CheckpointError, match=r"its metadata lack model, class_names, category_ids"):
        load_source(path, "auto")
    with pytest.raises(ConfigError, match="`--device` must be cpu for an exported model"):
        load_source(path, "cuda")
    assert load_source(finished.root, "cuda").device == "cuda"


@pytest.mark.parametrize("task", ["semantic", "panoptic", "detection"])
def test_export_run__refuses_other_tasks(task: str, tiled: Path, tmp_path: Path) -> None:
    run = load_run(tiled)
    other = replace(run, config=run.config.model_copy(update={"task": task}))
    with pytest.raises(ConfigError, match=f"task: instance` can be exported, but this one has `task: {task}`"):
        export_run(other, tmp_path / "model.pt2")
