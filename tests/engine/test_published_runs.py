"""Published models: what is built from their entries, and their use in the place of runs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from vispeft.config import load_config, parse_config
from vispeft.engine import evaluate_run, load_run
from vispeft.engine.attach import build_plan
from vispeft.engine.build import build_base, model_arguments
from vispeft.engine.published_runs import COCO_IDS
from vispeft.engine.saved_runs import load_base
from vispeft.errors import ConfigError
from vispeft.models import build_model
from vispeft.models.checkpoint_metadata import CheckpointMetadata, save_with_metadata
from vispeft.models.coco_classes import COCO_CLASSES
from vispeft.models.roles import roles_for
from vispeft.peft import inject
from vispeft.zoo import BACKBONES, MODELS, ZooModel

ROOT = Path(__file__).parents[2]
OURS = [model for model in MODELS.values() if model.family != "transformers" and model.name != "bundled"]


@pytest.mark.parametrize("model", OURS, ids=[model.name for model in OURS])
def test_published__has_its_parameters_and_the_sites_of_its_recipe(model: ZooModel) -> None:
    config = load_config(ROOT / "configs" / model.recipe, [f"model.weights={model.name}"])
    assert config.model.name == model.family
    with torch.device("meta"):
        built = build_model(num_classes=80, **model_arguments(config.model))
    assert round(sum(parameter.numel() for parameter in built.parameters()) / 1e6, 1) == model.millions
    inject(built, build_plan(config.peft), roles=roles_for(built))


@pytest.mark.parametrize("backbone", BACKBONES, ids=[backbone.name for backbone in BACKBONES])
def test_backbone__has_its_parameters(backbone: Any) -> None:
    with torch.device("meta"):
        built = timm.create_model(backbone.name, num_classes=0)
    assert round(sum(parameter.numel() for parameter in built.parameters()) / 1e6, 1) == backbone.millions


@pytest.fixture
def small(tiny: dict[str, Any], hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a published model with COCO's classes and random weights."""
    model = build_base(parse_config(tiny), 80)
    path = tmp_path / "small.safetensors"
    save_with_metadata(model.state_dict(), path, CheckpointMetadata({}), notes={})
    hub.files["/small.safetensors"] = path.read_bytes()
    keys = tiny["model"]
    arguments = {key: keys[key] for key in ("backbone", "size", "backbone_options")} | keys["options"]
    entry = replace(
        MODELS["mask_dino_r50"],
        name="small",
        weights=f"{hub.url}/small.safetensors",
        image_size=64,
        arguments=arguments,
    )
    monkeypatch.setitem(MODELS, "small", entry)
    return entry.name


@pytest.fixture
def coco(shapes_set: Path, tmp_path: Path) -> list[str]:
    """Overrides that name a validation set with classes of COCO."""
    document = json.loads((shapes_set / "val.json").read_text())
    for category, name in zip(document["categories"], reversed(COCO_CLASSES), strict=False):
        category["name"] = name
    path = tmp_path / "val.json"
    path.write_text(json.dumps(document))
    return [f"data.val.annotations={path}", f"data.val.images={shapes_set / 'images'}", "train.device=cpu"]


def test_load_run__takes_a_published_model(small: str, hub: Any) -> None:
    run = load_run(small)
    assert run.class_names == COCO_CLASSES
    assert run.category_ids == COCO_IDS
    assert (COCO_IDS[0], COCO_IDS[79], len(COCO_IDS)) == (1, 90, 80)
    assert dict(zip(COCO_CLASSES, COCO_IDS, strict=True))["zebra"] == 24
    assert run.config.model.image_size == 64
    assert not run.model.training


def test_evaluate_run__scores_a_published_model(small: str, coco: list[str]) -> None:
    metrics = evaluate_run(small, coco)
    assert set(metrics.per_category) == set(COCO_CLASSES)
    assert 0 <= metrics.segm["AP"] <= 1
    assert metrics.per_category["dog"] == -1


def test_load_run__takes_the_bundled_base() -> None:
    names = load_run("bundled").class_names
    assert names[0] == "object"
    assert {"person", "building", "shirt"} <= set(names)


def test_load_run__shows_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"neither a run directory nor .* Did you mean `mask_dino_r50`"):
        load_run("mask_dino_r5")


def test_load_run__refuses_other_classes() -> None:
    with pytest.raises(ConfigError, match="answers for other classes than the 80 of COCO's instances"):
        load_run("hf_oneformer_swin_l")


def test_load_run__prefers_a_directory(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(small).mkdir()
    with pytest.raises(ConfigError, match="must be a run directory"):
        load_run(small)


def test_evaluate_run__asks_for_data_before_it_fetches_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISPEFT_OFFLINE", "1")
    with pytest.raises(ConfigError, match=r"`data\.val\.annotations` must be set"):
        evaluate_run("mask_dino_swin_l")


def test_load_run__names_a_directory_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="`nothing-here` must be a run directory, but does not exist"):
        load_run("nothing-here")


def test_load_base__refuses_published_models() -> None:
    with pytest.raises(ConfigError, match="`mask_dino_r50` is a published model, which has no adapter"):
        load_base("mask_dino_r50")
