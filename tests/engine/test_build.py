"""Configurations as models and plans."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from vispeft import peft
from vispeft.config import PeftConfig, RegionRates, load_config, parse_config
from vispeft.engine.attach import attach, build_plan
from vispeft.engine.build import arguments_without_weights, build_base, check_backbone, complete, with_class_head_rates
from vispeft.errors import ConfigError, VispeftError
from vispeft.models import MaskDINO
from vispeft.models.bundled import bundled_class_names
from vispeft.models.checkpoint_metadata import CheckpointMetadata, save_with_metadata
from vispeft.models.coco_classes import COCO_CLASSES
from vispeft.models.registry import build_model

CONFIGS = Path(__file__).parents[2] / "configs"


def test_build_base__is_the_same_for_the_same_seed_and_leaves_the_callers_random_state(tiny: dict[str, Any]) -> None:
    config = parse_config(tiny)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build_base(config, 3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second = build_base(config, 3).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = build_base(parse_config(tiny, ["train.seed=1"]), 3).state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("key", ["backbone", "size", "options"])
def test_build_base__refuses_model_arguments_beside_the_bundled_base(key: str) -> None:
    value = {"num_queries": 5} if key == "options" else "tiny"
    with pytest.raises(ConfigError, match=rf"`model\.{key}` must be left out"):
        build_base(parse_config({"model": {"weights": "bundled", key: value}}), 3)


def test_build_base__takes_the_settings_of_denoising_beside_the_bundled_base() -> None:
    options = {"denoising_budget": 20, "denoising_noise": 0.8}
    model = build_base(parse_config({"model": {"weights": "bundled", "options": options}}), 3)
    assert isinstance(model, MaskDINO)
    assert (model.decoder.denoising_budget, model.decoder.denoising_noise) == (20, 0.8)


def test_build_base__names_a_weights_file_that_is_not_there(tiny: dict[str, Any]) -> None:
    with pytest.raises(VispeftError, match=r"none\.pth"):
        build_base(parse_config(tiny, ["model.weights=none.pth"]), 3)


def test_build_base__checkpoints_activations_where_asked_to(tiny: dict[str, Any]) -> None:
    for word in ("false", "true"):
        model = build_base(parse_config(tiny, [f"model.activation_checkpointing={word}"]), 3)
        parts = (model.backbone.body.model.grad_checkpointing, model.pixel_decoder.recomputes)
        assert (*parts, model.decoder.recomputes) == (word == "true",) * 3


def test_build_base__refuses_two_sources_of_backbone_weights(tiny: dict[str, Any]) -> None:
    words = ["model.backbone_weights=vit.pth", "model.weights=whole.pth"]
    with pytest.raises(
        ConfigError, match=r"`model\.backbone_weights` must be left out with `model\.weights: whole\.pth`"
    ):
        build_base(parse_config(tiny, words), 3)
    words = ["model.backbone_weights=vit.pth", "model.backbone_options={checkpoint_path: vit.pth}"]
    with pytest.raises(ConfigError, match=r"`model\.backbone_options\.checkpoint_path` must be left out"):
        build_base(parse_config(tiny, words), 3)


def test_build_base__takes_the_backbone_from_a_file(tiny: dict[str, Any], tmp_path: Path) -> None:
    source = build_base(parse_config(tiny, ["train.seed=5"]), 3).backbone.body.state_dict()
    torch.save(source, tmp_path / "vit.pth")
    config = parse_config(tiny, [f"model.backbone_weights={tmp_path / 'vit.pth'}"])
    loaded = build_base(config, 3).backbone.body.state_dict()
    assert all(torch.equal(source[name], loaded[name]) for name in source)
    (tmp_path / "vit.pth").unlink()
    with pytest.raises(VispeftError, match=r"vit\.pth does not exist.*`model\.backbone_weights`"):
        build_base(config, 3)
    assert build_base(config, 3, with_weights=False)


def test_arguments_without_weights__names_no_file() -> None:
    options = {"depth": 3, "checkpoint_path": "vit.pth", "pretrained_cfg_overlay": {"file": "vit.pth"}}
    config = parse_config({"model": {"backbone": "test_vit", "backbone_options": options}})
    assert arguments_without_weights(config.model)["backbone_options"] == {"depth": 3}


def test_check_backbone__needs_no_data() -> None:
    model = {"backbone": "efficientformer_l1", "weights": "none", "size": "tiny", "image_size": 64}
    with pytest.raises(ConfigError, match=r"`model\.image_size` 64 .* set `model\.image_size=224`"):
        check_backbone(parse_config({"model": model}))


@pytest.mark.parametrize("size", ["[48, 64]", "0", "-32", "large", "64.5"])
def test_image_size__is_one_number(tiny: dict[str, Any], size: str) -> None:
    with pytest.raises(ConfigError, match=r"`model\.image_size` must be (a whole number|at least 1)"):
        parse_config(tiny, [f"model.image_size={size}"])


def test_build_plan__refuses_an_empty_plan() -> None:
    with pytest.raises(ConfigError, match="both are empty"):
        build_plan(PeftConfig())


def test_attach__takes_roles_and_leaves_the_outputs_alone(tiny: dict[str, Any]) -> None:
    config = parse_config(tiny)
    model = build_base(config, 3).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = model(images).final.class_logits
        attach(model, config)
        assert torch.equal(model(images).final.class_logits, before)
    assert set(peft.count(model).deltas) == {"lora"}


@pytest.mark.parametrize(
    ("recipe", "method", "expected"),
    [("paper_maskdino_r50_lora", "lora", 122_880 + 73_728), ("paper_maskdino_r50_adapter", "adapter", 794_112)],
)
def test_attach__paper_recipes_train_the_published_numbers(recipe: str, method: str, expected: int) -> None:
    config = load_config(CONFIGS / f"{recipe}.yaml")
    model = build_base(config, 80, with_weights=False)
    attach(model, config)
    counted = peft.count(model)
    assert counted.deltas == {method: expected}
    # class, mask and box embeddings as in the study, and the label embedding of denoising
    assert counted.full == 350_548 + 80 * 256


def test_complete__leaves_nothing_open(tiny: dict[str, Any]) -> None:
    done = complete(parse_config({**tiny, "train": {}}), 10)
    assert done.train.steps is not None
    assert complete(parse_config({"model": {"weights": "bundled"}}), 1).model.image_size == 256
    assert complete(parse_config({}), 1).model.image_size == 640


@pytest.mark.parametrize(
    ("weights", "num_classes", "is_scaled"), [("bundled", 3, True), ("bundled", 1, True), ("none", 3, False)]
)
def test_with_class_head_rates__only_where_the_weights_bring_other_classes(
    weights: str, num_classes: int, is_scaled: bool
) -> None:
    done = with_class_head_rates(parse_config({"model": {"weights": weights}}), ["a", "b", "c"][:num_classes])
    wanted = {"@class_head": RegionRates(lr_scale=10.0)} if is_scaled else {}
    assert done.train.regions == wanted


def test_with_class_head_rates__not_for_the_classes_of_the_bundled_base() -> None:
    config = parse_config({"model": {"weights": "bundled"}})
    assert with_class_head_rates(config, bundled_class_names()).train.regions == {}


def test_with_class_head_rates__leaves_the_users_own_rates() -> None:
    config = parse_config({"model": {"weights": "bundled"}, "train": {"regions": {}}})
    assert with_class_head_rates(config, ["a", "b", "c"]).train.regions == {}


def test_with_class_head_rates__reads_the_classes_of_official_files(tmp_path: Path) -> None:
    path = tmp_path / "official.pth"
    torch.save({"model": {"sem_seg_head.predictor.class_embed.weight": torch.zeros(80, 4)}}, path)
    config = parse_config({"model": {"weights": str(path)}})
    scaled = {"@class_head": RegionRates(lr_scale=10.0)}
    assert with_class_head_rates(config, COCO_CLASSES).train.regions == {}
    assert with_class_head_rates(config, [*COCO_CLASSES, "tree"]).train.regions == scaled
    assert with_class_head_rates(config, [*COCO_CLASSES[1:], "tree"]).train.regions == scaled


def test_build_base__starts_classes_from_those_of_the_nearest_name(tiny: dict[str, Any], tmp_path: Path) -> None:
    model = {key: tiny["model"][key] for key in ("backbone", "size", "image_size", "backbone_options")}
    arguments = {"name": "mask_dino", **model, **tiny["model"]["options"]}
    torch.manual_seed(3)
    old = build_model(num_classes=3, **arguments)
    with torch.no_grad():
        old.get_parameter("decoder.class_embed.bias").copy_(torch.tensor([-1.0, -2.0, -3.0]))
    path = tmp_path / "old.safetensors"
    notes = {"class_names": json.dumps(["object", "stop sign", "Zebra"])}
    save_with_metadata(old.state_dict(), path, CheckpointMetadata(arguments, 64), notes=notes)
    config = parse_config({"model": {"weights": str(path)}})
    names = ["zebra", "leaf", "sign", "root"]
    new = build_base(config, len(names), class_names=names)
    assert new.num_classes == 4
    rows = old.get_parameter("decoder.class_embed.weight")
    torch.testing.assert_close(new.get_parameter("decoder.class_embed.weight"), rows[[2, 0, 1, 0]])
    # two classes share the odds of "object"
    biases = torch.tensor([-3.0, -1.0 - math.log(2), -2.0, -1.0 - math.log(2)])
    torch.testing.assert_close(new.get_parameter("decoder.class_embed.bias").detach(), biases)
    same = build_base(config, 3, class_names=["object", "stop sign", "zebra"])
    torch.testing.assert_close(same.state_dict(), old.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("pattern", ["@no_role", "decoder.layr", "decoder["])
def test_attach__names_the_key_of_a_region_that_is_not_there(tiny: dict[str, Any], pattern: str) -> None:
    config = parse_config({**tiny, "train": {**tiny["train"], "regions": {pattern: {"lr_scale": 2.0}}}})
    with pytest.raises(ConfigError, match=rf"`train\.regions`: `{re.escape(pattern)}`"):
        attach(build_base(config, 3), config)


def test_attach__refuses_a_region_of_frozen_parameters_alone(tiny: dict[str, Any]) -> None:
    regions: dict[str, Any] = {"backbone": {"lr_scale": 0.1}, "@class_head": {"lr_scale": 10.0}}
    peft_section = {"deltas": {"@deformable.value_proj": {"method": "lora", "rank": 1}}}
    config = parse_config({**tiny, "peft": peft_section, "train": {**tiny["train"], "regions": regions}})
    with pytest.raises(ConfigError, match=r"`train\.regions`: `backbone` names \d+ parameters, all of them frozen"):
        attach(build_base(config, 3), config)
    del regions["backbone"]  # what is left is the default for new classes, which a frozen head may have
    config = parse_config({**tiny, "peft": peft_section, "train": {**tiny["train"], "regions": regions}})
    attach(build_base(config, 3), config)
