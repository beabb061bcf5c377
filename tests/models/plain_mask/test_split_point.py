"""EoMT and PMT continued from their kept features give the predictions and gradients of the model, to the bit."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from vispeft.models import build_model
from vispeft.models.plain_mask.model import PlainMaskModel
from vispeft.models.split import FrozenPrefix, SplitPointError, Tail
from vispeft.structures import Predictions

LEARNED, ROTARY, MIXED = "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3", "vit_small_patch16_rope_mixed_224"
BLOCKS = "encoder.body.blocks"
OTHERS = {"eomt": "predictor", "pmt": "decoder"}
CASES = {
    "eomt: heads": ("eomt", LEARNED, ["predictor"], (f"{BLOCKS}.1",)),
    "eomt: rotary positions": ("eomt", ROTARY, ["predictor"], (f"{BLOCKS}.1",)),
    "eomt: learned rotary positions": ("eomt", MIXED, ["predictor"], (f"{BLOCKS}.1",)),
    "eomt: block of the queries": ("eomt", LEARNED, [f"{BLOCKS}.3"], (f"{BLOCKS}.1",)),
    "eomt: block before the queries": ("eomt", ROTARY, [f"{BLOCKS}.1"], (f"{BLOCKS}.0",)),
    "pmt: decoder": ("pmt", ROTARY, ["decoder", "encoder.body.norm"], (f"{BLOCKS}.1", f"{BLOCKS}.3")),
    "pmt: block of a tap": ("pmt", LEARNED, [f"{BLOCKS}.3"], (f"{BLOCKS}.1", f"{BLOCKS}.2")),
    "pmt: block before the first tap": ("pmt", ROTARY, [f"{BLOCKS}.1"], (f"{BLOCKS}.0",)),
}


def build(family: str, backbone: str, trained: Sequence[str]) -> PlainMaskModel:
    torch.manual_seed(0)
    options = {"depth": 4, "embed_dim": 48, "num_heads": 3}
    model = build_model(family, backbone=backbone, backbone_options=options, num_classes=2, size="tiny", num_queries=5)
    assert isinstance(model, PlainMaskModel)
    model.requires_grad_(False).eval()
    for name in trained:
        model.get_submodule(name).requires_grad_(True)
    return model


def images_for(model: PlainMaskModel) -> torch.Tensor:
    side = model.size_divisor
    return torch.randn(2, 3, 3 * side, 4 * side, generator=torch.Generator().manual_seed(1))


def gradients(model: PlainMaskModel, predictions: Predictions) -> list[torch.Tensor]:
    model.zero_grad()
    loss = sum(layer.class_logits.square().sum() + layer.mask_embeddings.sum() for layer in predictions.layers)
    (loss + predictions.mask_features.square().sum()).backward()
    return [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]


@pytest.mark.parametrize("case", CASES)
def test_tail__continues_with_the_same_predictions_and_gradients(case: str) -> None:
    family, backbone, trained, kept = CASES[case]
    model = build(family, backbone, trained)
    images = images_for(model)
    prefix = FrozenPrefix(model, model.split(images), images)
    assert prefix.point.kept == kept
    model.training = True  # predictions before every block
    model.on_progress(1, 1)  # masks would be drawn anew
    expected = model(images)
    given = Tail(model, prefix)(prefix(model, images))
    assert torch.equal(given.mask_features, expected.mask_features)
    assert len(given.layers) == len(expected.layers) == 3
    for one, other in zip(given.layers, expected.layers, strict=True):
        assert torch.equal(one.class_logits, other.class_logits)
    for one, other in zip(gradients(model, given), gradients(model, expected), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("family", ["eomt", "pmt"])
@pytest.mark.parametrize(
    ("trained", "message"),
    [("patch_embed", "patch_embed.proj.weight` is trained, and the first block"), ("blocks.0", "no block before it")],
)
def test_split__is_refused_where_the_first_block_is_not_frozen(family: str, trained: str, message: str) -> None:
    model = build(family, LEARNED, [f"encoder.body.{trained}"])
    with pytest.raises(SplitPointError, match=message):
        model.split(images_for(model))
