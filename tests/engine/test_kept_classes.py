"""A model learns one more class and keeps those of its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vispeft.config import parse_config
from vispeft.data import read_coco
from vispeft.engine import RunDirectory, evaluate_run, load_run, train_run
from vispeft.engine.build import build_base, kept_class_names
from vispeft.engine.kept_classes import weights_class_names, with_kept_classes
from vispeft.engine.saved_runs import write_merged
from vispeft.errors import ConfigError
from vispeft.models import SegmentationModel
from vispeft.models.checkpoint_metadata import CheckpointMetadata, save_with_metadata
from vispeft.models.class_head import nearest_class
from vispeft.models.coco_classes import COCO_CLASSES
from vispeft.models.registry import build_model

FAMILIES = ["mask_dino", "eomt"]


def arguments_of(tiny: dict[str, Any], family: str) -> dict[str, Any]:
    model = tiny["model"]
    options = model["options"] if family == "mask_dino" else {"num_queries": 12}
    chosen = {key: model[key] for key in ("backbone", "size", "image_size", "backbone_options")}
    return {"name": family, **chosen, **options}


@pytest.fixture
def old_names(shapes_set: Path) -> list[str]:
    """Three classes, the second of which the data set has too, in capital letters."""
    categories = json.loads((shapes_set / "train.json").read_text())["categories"]
    return ["zebra", categories[0]["name"].upper(), "stop sign"]


@pytest.fixture
def weights(tiny: dict[str, Any], old_names: list[str], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    arguments = arguments_of(tiny, request.param)
    torch.manual_seed(3)
    model = build_model(num_classes=3, **arguments)
    path = tmp_path / "old.safetensors"
    notes = {"class_names": json.dumps(old_names)}
    save_with_metadata(model.state_dict(), path, CheckpointMetadata(arguments, 64), notes=notes)
    return path


def config_of(tiny: dict[str, Any], weights: Path, *more: str) -> Any:
    words = ["train.steps=3", "train.weight_decay=0.5", "train.lr=0.01", *more]
    model = {"weights": str(weights), "keep_classes": True}
    return parse_config({**tiny, "model": model, "peft": {"train": ["@class_head"]}}, words)


def logits(model: SegmentationModel) -> torch.Tensor:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(images).final.class_logits


@pytest.mark.parametrize("weights", FAMILIES, indirect=True)
def test_train_run__does_not_move_the_scores_of_classes_without_labels(
    weights: Path, tiny: dict[str, Any], old_names: list[str], tmp_path: Path
) -> None:
    config, directory = config_of(tiny, weights, "model.num_queries=2000"), RunDirectory(tmp_path / "run")
    result = train_run(config, directory)
    run = load_run(directory.root)
    names = run.class_names
    assert names[:3] == ("zebra", old_names[1].lower(), "stop sign")
    before = build_base(config, len(names), class_names=names)
    first, last = logits(before), logits(run.model)
    # EoMT's last row is "no object"
    fixed = [0, 2, *([-1] if first.shape[-1] > len(names) else [])]
    # Mask DINO orders its queries by their scores, new classes included
    torch.testing.assert_close(last[..., fixed].sort(1).values, first[..., fixed].sort(1).values)
    for moved in (1, 3):
        assert (last[..., moved].sort(1).values - first[..., moved].sort(1).values).abs().max() > 0.01
    head = f"{before.class_rows().linears[0]}.weight"
    rows, kept = run.model.get_parameter(head), before.get_parameter(head)
    assert torch.equal(rows[fixed], kept[fixed])
    assert result.summary is not None
    assert tuple(result.summary["per_category"]) != ()
    assert result.summary["per_category"]["zebra"] == -1
    assert evaluate_run(directory.root).segm == result.summary["segm"]


@pytest.mark.parametrize("weights", FAMILIES, indirect=True)
def test_build_base__keeps_the_rows_of_the_weights(weights: Path, tiny: dict[str, Any], old_names: list[str]) -> None:
    config = config_of(tiny, weights)
    plain = build_base(config.model_copy(update={"model": config.model.model_copy(update={"keep_classes": False})}), 3)
    grown = build_base(config, 5, class_names=[*old_names, "traffic sign", "quark"])
    old, new = logits(plain), logits(grown)
    # two-stage queries may be chosen by a new class
    if new.shape[-1] == 6:
        torch.testing.assert_close(new[..., :3], old[..., :3])
    head = grown.class_rows().linears[0]
    rows, kept = grown.get_submodule(head).weight, plain.get_submodule(head).weight
    assert torch.equal(rows[:3], kept[:3])
    assert torch.equal(rows[3], kept[2])
    assert torch.equal(rows[4], kept[:3].mean(0))
    assert grown.num_classes == 5


@pytest.mark.parametrize("weights", ["mask_dino"], indirect=True)
def test_write_merged__names_all_classes_for_the_next_model(
    weights: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    directory = RunDirectory(tmp_path / "run")
    train_run(config_of(tiny, weights), directory)
    run = load_run(directory.root)
    write_merged(run, tmp_path / "merged.safetensors")
    assert kept_class_names(config_of(tiny, tmp_path / "merged.safetensors").model) == run.class_names


def test_with_kept_classes__matches_by_name(shapes_set: Path) -> None:
    own = read_coco(shapes_set / "train.json", None)
    found = with_kept_classes(own, ["a", own.class_names[1].upper(), "b"])
    assert found.class_names[:3] == ("a", own.class_names[1], "b")
    assert set(found.class_names) == {"a", "b", *own.class_names}
    assert found.labelled == (1, *range(3, len(found.class_names)))
    for before, after in zip(own.annotations[0], found.annotations[0], strict=True):
        assert found.class_names[after.category_idx] == own.class_names[before.category_idx]
        assert found.category_ids[after.category_idx] == own.category_ids[before.category_idx]


def test_weights_class_names__asks_for_names() -> None:
    def names(num_classes: int | None, *words: str) -> tuple[str, ...]:
        return weights_class_names(parse_config({}, ["model.weights=x.pth", *words]).model, num_classes)

    assert names(80) == COCO_CLASSES
    assert names(2, "model.weights_classes=[a, b]") == ("a", "b")
    with pytest.raises(ConfigError, match=r"names of the 7 classes of `model\.weights: x\.pth`, which names none"):
        names(7)
    with pytest.raises(ConfigError, match="which names 2"):
        names(7, "model.weights_classes=[a, b]")
    with pytest.raises(ConfigError, match="has no classes"):
        names(None)
    with pytest.raises(ConfigError, match="each class once"):
        names(2, "model.weights_classes=[a, a]")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("aeroplane", "airplane"), ("traffic_cone", "traffic light"), ("Teddy", "teddy bear"), ("hazelnut", None)],
)
def test_nearest_class(name: str, nearest: str | None) -> None:
    idx = nearest_class(name, COCO_CLASSES)
    assert (None if idx is None else COCO_CLASSES[idx]) == nearest
