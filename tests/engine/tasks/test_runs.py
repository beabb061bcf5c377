"""Runs of each task: trained, evaluated, predicted and merged from a configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vispeft.coco.label_maps import id_of_colour
from vispeft.config import parse_config
from vispeft.engine import RunDirectory, evaluate_run, load_run, predict_images, train_run
from vispeft.errors import ConfigError
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
    message = "`task` must be instance or semantic or panoptic with `model.name: eomt`, .* which mask_dino can"
    with pytest.raises(ConfigError, match=message):
        train_run(parse_config({**eomt, "task": "detection"}), RunDirectory(tmp_path / "run"))


def test_parse_config__refuses_tiles_of_label_maps(tiny: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"`model.tile` must be left out with `task: semantic`"):
        parse_config({**tiny, "task": "semantic"}, ["model.tile=32"])
