"""Runs of each task: trained, evaluated, predicted and merged from a configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from vispeft.cli.app import app
from vispeft.coco.label_maps import id_of_colour, mask_of
from vispeft.config import parse_config
from vispeft.data.reading.panoptic import read_panoptic
from vispeft.engine import RunDirectory, evaluate_run, load_run, predict_images, train_run, write_merged
from vispeft.engine.build import build_base
from vispeft.engine.estimation.estimate import estimate
from vispeft.engine.kept_classes import with_kept_classes
from vispeft.engine.predict import predict
from vispeft.errors import ConfigError, DataError
from vispeft.io.json_files import read_object
from vispeft.io.metrics_file import read_metrics

SHORT = ["train.steps=2", "train.eval_every=1", "train.log_every=1"]


def _images(shapes_set: Path) -> list[Path]:
    return sorted((shapes_set / "images").iterdir())[:2]


def test_train_run__trains_and_predicts_label_maps(
    eomt: dict[str, Any], panoptic_data: dict[str, Any], shapes_set: Path, tmp_path: Path
) -> None:
    directory = RunDirectory(tmp_path / "run")
    result = train_run(parse_config({**eomt, "task": "semantic", "data": panoptic_data}, SHORT), directory)
    assert result.summary is not None
    metrics = evaluate_run(directory.root)
    assert result.summary["semantic"] == metrics.kinds["semantic"]
    assert result.summary["miou"] == metrics.kinds["semantic"]["mIoU"] > 0
    assert set(result.summary["per_category"]) == {*metrics.per_category}
    scores = [line["semantic/mIoU"] for line in read_metrics(directory.metrics) if line["split"] == "val"]
    assert len(scores) == 2
    assert result.summary["miou"] == pytest.approx(max(scores), abs=1e-6)
    assert "pixel_accuracy" in directory.report.read_text()

    paths = _images(shapes_set)
    predict_images(load_run(directory.root), paths, tmp_path / "out", device="cpu")
    known = {entry["id"] for entry in read_object(tmp_path / "out" / "images.json")["categories"]}
    for path in paths:
        values = np.array(Image.open(tmp_path / "out" / "semantic" / f"{path.stem}.png"))
        assert values.shape == (64, 64)
        assert set(np.unique(values).tolist()) <= known
        assert (tmp_path / "out" / f"{path.stem}.png").is_file()


def test_train_run__trains_and_predicts_segments(
    eomt: dict[str, Any], panoptic_data: dict[str, Any], shapes_set: Path, tmp_path: Path
) -> None:
    directory = RunDirectory(tmp_path / "run")
    # a model of two steps is sure of nothing
    words = [*SHORT, "eval.object_mask_threshold=0.0", "eval.overlap_threshold=0.0"]
    result = train_run(parse_config({**eomt, "task": "panoptic", "data": panoptic_data}, words), directory)
    assert result.summary is not None
    metrics = evaluate_run(directory.root)
    assert result.summary["panoptic"] == metrics.kinds["panoptic"]
    assert result.summary["pq"] == metrics.kinds["panoptic"]["PQ"] >= 0
    assert "PQ_stuff" in directory.report.read_text()
    flags = {entry["name"]: entry["isthing"] for entry in read_object(directory.annotations)["categories"]}
    assert (flags["sky"], flags["ground"]) == (0, 0)

    report = predict_images(load_run(directory.root), _images(shapes_set), tmp_path / "out", device="cpu")
    assert report.num_instances > 0
    document = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert [category["isthing"] for category in document["categories"]].count(0) == 2
    for annotation in document["annotations"]:
        ids = id_of_colour(np.array(Image.open(tmp_path / "out" / "panoptic" / annotation["file_name"])))
        areas = {segment["id"]: segment["area"] for segment in annotation["segments_info"]}
        assert {value: int((ids == value).sum()) for value in np.unique(ids).tolist() if value} == areas
    # what is predicted can be read as a panoptic set
    again = read_panoptic(tmp_path / "out" / "panoptic.json", None)
    assert again.num_instances == report.num_instances


def test_train_run__learns_boxes_alone(tiny: dict[str, Any], shapes_set: Path, tmp_path: Path) -> None:
    data = {}
    for split in ("train", "val"):
        document = json.loads((shapes_set / f"{split}.json").read_text())
        for item in document["annotations"]:
            del item["segmentation"]
        (tmp_path / f"{split}.json").write_text(json.dumps(document))
        data[split] = {"annotations": str(tmp_path / f"{split}.json"), "images": str(shapes_set / "images")}
    directory = RunDirectory(tmp_path / "run")
    result = train_run(parse_config({**tiny, "task": "detection", "data": data}, SHORT), directory)
    assert result.summary is not None
    metrics = evaluate_run(directory.root)
    assert result.summary["bbox"] == metrics.kinds["bbox"]
    assert set(result.summary["segm"].values()) == {-1.0}
    losses = next(line for line in read_metrics(directory.metrics) if line["split"] == "train")
    assert {name for name in losses if name.startswith("loss_")} == {"loss_class", "loss_box", "loss_giou"}
    assert "segmentation" not in directory.annotations.read_text() + directory.predictions.read_text()

    run = load_run(directory.root)
    assert not [name for name, _ in run.model.named_parameters() if "mask" in name]
    report = predict_images(run, _images(shapes_set), tmp_path / "out", device="cpu", threshold=0.0)
    assert report.num_instances > 0
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert not any("segmentation" in one for one in results)


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_train_run__serves_mask_dino(
    tiny: dict[str, Any], panoptic_data: dict[str, Any], tmp_path: Path, task: str
) -> None:
    words = [*SHORT, "eval.object_mask_threshold=0.0"]
    result = train_run(
        parse_config({**tiny, "task": task, "data": panoptic_data}, words), RunDirectory(tmp_path / "run")
    )
    assert result.summary is not None
    assert task in result.summary


def test_train_run__refuses_a_task_that_the_family_lacks(eomt: dict[str, Any], tmp_path: Path) -> None:
    message = r"`task` must be instance, semantic or panoptic with `model.name: eomt`, .* Families for it: mask_dino"
    with pytest.raises(ConfigError, match=message):
        train_run(parse_config({**eomt, "task": "detection"}), RunDirectory(tmp_path / "run"))


def test_train_run__refuses_a_task_before_files_of_the_hub_are_read(tmp_path: Path) -> None:
    config = parse_config({"task": "semantic", "model": {"name": "sam3", "weights": "someone/sam3"}})
    with pytest.raises(ConfigError, match=r"`task` must be instance with `model.name: sam3`, but is semantic"):
        train_run(config, RunDirectory(tmp_path / "run"))


def test_parse_config__refuses_tiles_of_label_maps(tiny: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"`model.tile` must be left out with `task: semantic`"):
        parse_config({**tiny, "task": "semantic"}, ["model.tile=32"])


def test_write_merged__keeps_the_form_of_boxes_alone(tiny: dict[str, Any], tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    train_run(parse_config({**tiny, "task": "detection"}, SHORT), directory)
    merged = tmp_path / "merged.safetensors"
    write_merged(load_run(directory.root), merged)
    words = ["task=detection", f"model.weights={merged}"]
    run, images = load_run(directory.root), torch.zeros(1, 3, 64, 64)
    model = build_base(parse_config({}, words), len(run.class_names)).eval()
    found, expected = model(images).final, run.model(images).final
    assert torch.allclose(found.class_logits, expected.class_logits, atol=1e-5)
    assert torch.allclose(found.boxes, expected.boxes, atol=1e-5)
    with pytest.raises(ConfigError, match=r"`task` must be detection with `model.weights: .*, but is semantic"):
        build_base(parse_config({}, ["task=semantic", words[1]]), len(run.class_names))


def test_train_run__resumes_a_task_and_refuses_another(
    eomt: dict[str, Any], panoptic_data: dict[str, Any], tmp_path: Path
) -> None:
    directory = RunDirectory(tmp_path / "run")
    config = {**eomt, "task": "semantic", "data": panoptic_data}
    train_run(parse_config(config, SHORT), directory)
    result = train_run(parse_config(config, [*SHORT, "train.steps=3"]), directory, resume=True)
    assert result.step == 3
    with pytest.raises(ConfigError, match="`task` was 'semantic' and is 'panoptic'"):
        train_run(parse_config({**config, "task": "panoptic"}, [*SHORT, "train.steps=3"]), directory, resume=True)


def test_train_run__keeps_features_of_boxes(tiny: dict[str, Any], tmp_path: Path) -> None:
    # the decoder alone is trained, so that the pixel decoder's outputs are kept
    plan = {"deltas": {}, "train": ["@heads"]}
    words = [*SHORT, "train.feature_cache=memory", "data.augment.variants=1"]
    cached, plain = RunDirectory(tmp_path / "cached"), RunDirectory(tmp_path / "plain")
    train_run(parse_config({**tiny, "task": "detection", "peft": plan}, words), cached)
    train_run(parse_config({**tiny, "task": "detection", "peft": plan}, [*SHORT, words[-1]]), plain)
    assert read_object(cached.summary)["feature_cache"]["behind"] == "pixel_decoder"
    losses = [
        [line["loss"] for line in read_metrics(run.metrics) if line["split"] == "train"] for run in (cached, plain)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_train_run__gives_oneformer_its_task(
    transformers_directory: Any, panoptic_data: dict[str, Any], tmp_path: Path
) -> None:
    model = {"name": "transformers", "weights": str(transformers_directory("oneformer")), "image_size": 64}
    plan = {"deltas": {}, "train": ["@heads"]}
    config = parse_config({"task": "panoptic", "model": model, "peft": plan, "data": panoptic_data})
    base = build_base(config, 5).eval()
    images = torch.rand(1, 3, 64, 64)
    found = {}
    for task in ("instance", "semantic", "panoptic"):
        base.on_task(task)
        found[task] = base(images).final.class_logits
    fresh = build_base(config, 5).eval()(images).final.class_logits
    assert torch.equal(fresh, found["panoptic"])
    assert not torch.equal(found["semantic"], found["panoptic"])
    assert not torch.equal(found["instance"], found["panoptic"])


def test_estimate__counts_less_without_masks(tiny: dict[str, Any], panoptic_data: dict[str, Any]) -> None:
    masks, boxes = (estimate(parse_config({**tiny, "task": task})) for task in ("instance", "detection"))
    assert boxes.forward_flops < masks.forward_flops
    assert estimate(parse_config({**tiny, "task": "semantic", "data": panoptic_data})).forward_flops > 0


def test_predict__gives_the_segments_of_a_task(
    eomt: dict[str, Any], panoptic_data: dict[str, Any], shapes_set: Path, tmp_path: Path
) -> None:
    directory = RunDirectory(tmp_path / "run")
    train_run(parse_config({**eomt, "task": "semantic", "data": panoptic_data}, SHORT), directory)
    (found,) = predict(load_run(directory.root), [_images(shapes_set)[0]])
    assert sum(mask_of(rle) for rle in found.rles).min() == 1
    assert sum(mask_of(rle).sum() for rle in found.rles) == 64 * 64


def test_commands__serve_label_maps(
    eomt: dict[str, Any], panoptic_data: dict[str, Any], shapes_set: Path, tmp_path: Path
) -> None:
    config = tmp_path / "eomt.yaml"
    config.write_text(json.dumps({**eomt, "task": "semantic", "data": panoptic_data}))
    run, runner = tmp_path / "run", CliRunner()
    trained = runner.invoke(app, ["train", str(config), *SHORT, "--out", str(run)])
    assert trained.exit_code == 0, trained.output
    assert "mIoU" in trained.output
    scored = runner.invoke(app, ["evaluate", str(run), "--json", str(tmp_path / "metrics.json")])
    assert "IoU by category" in scored.output
    assert read_object(tmp_path / "metrics.json")["miou"] == read_object(run / "summary.json")["miou"]
    predicted = runner.invoke(app, ["predict", str(run), str(_images(shapes_set)[0]), "--out", str(tmp_path / "out")])
    assert "images: 1, segments: " in predicted.output
    for command in (["compare", str(run), str(run)], ["evaluate", str(run), "--analysis"]):
        refused = runner.invoke(app, command)
        assert refused.exit_code == 1
        assert isinstance(refused.exception, DataError | SystemExit)


def test_with_kept_classes__keeps_stuff_as_stuff(panoptic_data: dict[str, Any]) -> None:
    coco_set = read_panoptic(Path(panoptic_data["train"]["annotations"]), None)
    kept = with_kept_classes(coco_set, ["zebra", "sky"])
    flags = {kind.name: kind.is_thing for kind in kept.categories}
    assert (flags["zebra"], flags["sky"], flags["ground"]) == (True, False, False)
    assert kept.class_names[:2] == ("zebra", "sky")


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
@pytest.mark.parametrize("family", ["mask2former", "pmt"])
def test_train_run__serves_every_family_of_ours(
    family: str, task: str, tiny: dict[str, Any], panoptic_data: dict[str, Any], tmp_path: Path
) -> None:
    options = {"num_queries": 12} if family == "pmt" else tiny["model"]["options"]
    model = {**tiny["model"], "name": family, "options": options}
    if family == "pmt":
        model |= {
            "backbone": "vit_small_patch16_dinov3",
            "backbone_options": {"depth": 4, "embed_dim": 48, "num_heads": 3},
        }
    plan = {"deltas": {}, "train": ["@heads"]}
    config = parse_config(
        {**tiny, "task": task, "model": model, "peft": plan, "data": panoptic_data},
        ["train.steps=1", "eval.object_mask_threshold=0.0"],
    )
    result = train_run(config, RunDirectory(tmp_path / "run"))
    assert result.summary is not None
    assert task in result.summary


@pytest.mark.parametrize("model_type", ["mask2former", "maskformer", "oneformer", "eomt"])
def test_train_run__serves_models_of_transformers(
    model_type: str, tiny: dict[str, Any], panoptic_data: dict[str, Any], transformers_directory: Any, tmp_path: Path
) -> None:
    model = {"name": "transformers", "weights": str(transformers_directory(model_type))}
    plan = {"deltas": {}, "train": ["@heads"]}
    config = parse_config(
        {**tiny, "task": "panoptic", "model": model, "peft": plan, "data": panoptic_data},
        ["train.steps=1", "eval.object_mask_threshold=0.0"],
    )
    result = train_run(config, RunDirectory(tmp_path / "run"))
    assert result.summary is not None
    assert result.summary["pq"] >= 0
