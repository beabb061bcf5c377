"""Recipes of models other than Mask DINO R50: their sites exist, and they train the numbers that they name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vispeft import peft
from vispeft.config import load_config
from vispeft.engine.attach import attach, build_plan
from vispeft.engine.build import build_base
from vispeft.models.roles import roles_for

CONFIGS = Path(__file__).parents[2] / "configs"
SWIN_T = [
    *("model.weights=pretrained", "model.backbone=swin_tiny_patch4_window7_224"),
    *("model.size=large", "model.image_size=224"),
]
MASK2FORMER = ["model.weights=pretrained", "model.backbone=resnet50", "model.image_size=224"]


@pytest.mark.parametrize(
    ("recipe", "overrides", "expected"),
    [
        # nothing in the backbone, so that a smaller one gives the same
        ("paper_maskdino_swinl_adapter", SWIN_T, {"adapter": 24 * 33_088}),
        ("paper_maskdino_swinl_lora", SWIN_T, {"lora": 204_288}),
        ("mask2former_lora", MASK2FORMER, {"lora": 193_536}),
        ("mask2former_r50_adapter", MASK2FORMER, {"adapter": 794_112}),
        # q, v and proj of 12 blocks of width 384
        ("eomt_dinov2_lora", ["model.backbone=vit_small_patch14_reg4_dinov2"], {"lora": 12 * 3 * 16 * (384 + 384)}),
        ("pmt_dinov3", ["model.backbone=vit_small_patch16_dinov3"], {}),
    ],
)
def test_recipes__train_what_they_say(recipe: str, overrides: list[str], expected: dict[str, int]) -> None:
    config = load_config(CONFIGS / f"{recipe}.yaml", overrides)
    model = build_base(config, 80, with_weights=False)
    attach(model, config)
    counted = peft.count(model)
    assert counted.deltas == expected
    assert counted.full > 0


@pytest.mark.parametrize("family", ["mask2former", "eomt", "pmt", "transformers"])
def test_recipes__name_the_family_that_they_are_for(family: str) -> None:
    # otherwise a file without metadata in the place of the published weights would be read as one of Mask DINO
    recipes = list(CONFIGS.glob(f"{family}_*.yaml"))
    assert recipes
    assert {load_config(path, ["model.weights=a.pth"]).model.name for path in recipes} == {family}


@pytest.mark.parametrize(
    ("recipe", "model_type"), [("transformers_mask2former_lora", "mask2former"), ("sam3_lora", "sam3")]
)
def test_recipes__fit_directories_of_transformers(
    recipe: str, model_type: str, transformers_directory: Callable[[str], Path]
) -> None:
    config = load_config(CONFIGS / f"{recipe}.yaml", [f"model.weights={transformers_directory(model_type)}"])
    model = build_base(config, 3, class_names=["date", "fig", "hazelnut"])
    attach(model, config)
    peft.check(model, torch.randn(1, 3, 64, 64))
    assert peft.count(model).deltas["lora"] > 0


def test_sam3_lora__trains_what_it_says_of_the_published_sizes() -> None:
    transformers = pytest.importorskip("transformers")
    config = load_config(CONFIGS / "sam3_lora.yaml")
    with torch.device("meta"):
        network = transformers.Sam3Model(transformers.Sam3Config())
        peft.inject(network, build_plan(config.peft), roles=roles_for(network))
    counted = peft.count(network)
    # q and v of two attentions of 6 layers of neck and decoder, width 256, rank 8
    assert counted.deltas == {"lora": 12 * 2 * 2 * 8 * (256 + 256)}
    assert counted.full == 1_644_805
    assert f"{counted.percent:.2f}" == "0.22"
