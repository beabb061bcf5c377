"""A model continued from its kept features gives the predictions and gradients of the model, to the bit."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from vispeft.models import MaskDINO, build_model
from vispeft.models.split import FrozenPrefix, SplitPointError, Tail
from vispeft.structures import Predictions, Targets

VIT = {"backbone": "vit_tiny_patch16_224", "backbone_options": {"depth": 3, "embed_dim": 48}}
EVA = {"backbone": "eva02_tiny_patch14_224", "backbone_options": {"depth": 3}}
SAM = {"backbone": "samvit_base_patch16_224", "backbone_options": {"depth": 3, "embed_dim": 48, "num_heads": 3}}
RESNET = {"backbone": "resnet18"}
CONVNEXT = {"backbone": "convnext_atto"}
EFFICIENTNET = {"backbone": "efficientnet_b0"}
HYBRID = {
    "backbone": "efficientnet_lite0_vit_tiny",
    "backbone_options": {"depth": 2, "embed_dim": 64, "num_heads": 1},
}
BLOCKS = "backbone.body.model.blocks"

CASES: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "heads": (VIT, ["decoder.class_embed"], "pixel_decoder"),
    "pixel decoder": (VIT, ["pixel_decoder"], "backbone.body"),
    "pyramid": (VIT, ["backbone.pyramid"], "backbone.body"),
    "last block": (VIT, [f"{BLOCKS}.2"], f"{BLOCKS}.1"),
    "block with rotary embedding": (EVA, [f"{BLOCKS}.1"], f"{BLOCKS}.0"),
    "stage of several maps": (RESNET, ["backbone.body.layer3"], "backbone.body.layer2"),
    "block of maps, not tokens": (SAM, [f"{BLOCKS}.2"], f"{BLOCKS}.1"),
    "module without a map of its own": (RESNET, ["backbone.body.bn1"], "backbone.body.conv1"),
    "maps in channels-last memory": (CONVNEXT, ["backbone.body.stages_2"], "backbone.body.stages_1"),
    "ViT of a hybrid": (HYBRID, ["backbone.body.model.patch_embed"], "backbone.body.cnn"),
    "backbone in one piece": (EFFICIENTNET, ["pixel_decoder"], "backbone.body"),
}


def build(arguments: dict[str, Any], trained: Sequence[str]) -> MaskDINO:
    torch.manual_seed(0)
    sizes = {"dim": 32, "ffn_dim": 64, "mask_dim": 16, "num_queries": 12}
    model = build_model("mask_dino", num_classes=2, size="tiny", image_size=64, **arguments, **sizes)
    model.requires_grad_(False).eval()
    for name in trained:
        model.get_submodule(name).requires_grad_(True)
    return model


def prefix_of(model: MaskDINO, images: torch.Tensor) -> FrozenPrefix:
    return FrozenPrefix(model, model.split(images), images)


def images_for(model: MaskDINO, count: int = 2) -> torch.Tensor:
    side = 2 * model.size_divisor
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def equal(one: Predictions, other: Predictions) -> bool:
    pairs = [(one.mask_features, other.mask_features)]
    for a, b in zip(one.layers, other.layers, strict=True):
        pairs += [(a.class_logits, b.class_logits), (a.boxes, b.boxes), (a.mask_embeddings, b.mask_embeddings)]
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("case", CASES)
def test_tail__continues_to_the_bit(case: str) -> None:
    arguments, trained, name = CASES[case]
    model = build(arguments, trained)
    images = images_for(model)
    prefix = prefix_of(model, images)
    assert prefix.point.name == name
    # kept from a batch in another order; another batch size may change the last bit
    features = [feature.flip(0).contiguous() for feature in prefix(model, images.flip(0))]
    assert all(feature.is_contiguous() for feature in features)
    with torch.no_grad():
        assert equal(Tail(model, prefix)(features), model(images))


@pytest.mark.parametrize("case", CASES)
def test_split__runs_each_module_in_one_part_only(case: str) -> None:
    arguments, trained, _ = CASES[case]
    model = build(arguments, trained)
    images = images_for(model)
    prefix, ran = prefix_of(model, images), list[str]()
    for name, module in model.named_modules():
        if not any(True for _ in module.children()):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    features = prefix(model, images)
    assert ran
    assert all(prefix.point.is_in_prefix(name) for name in ran)
    ran.clear()
    Tail(model, prefix)(features)
    assert any(name.startswith(trained[0]) for name in ran)
    assert not any(prefix.point.is_in_prefix(name) for name in ran)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(
    ("arguments", "trained"),
    [(VIT, f"{BLOCKS}.2"), (RESNET, "backbone.body.layer3"), (HYBRID, f"{BLOCKS}.1")],
    ids=["block", "stage", "hybrid"],
)
def test_tail__gives_the_gradients_of_the_model(arguments: dict[str, Any], trained: str, checkpointing: bool) -> None:
    model = build(arguments, [trained, "decoder"])
    model.set_activation_checkpointing(checkpointing)
    images = images_for(model)
    targets = [Targets(torch.zeros(1, dtype=torch.int64), torch.full((1, 4), 0.4), torch.ones(1, 64, 64) > 0)] * 2
    prefix = prefix_of(model, images)
    model.train()
    for frozen in ("backbone", "pixel_decoder"):
        model.get_submodule(frozen).eval()
    gradients = []
    for module, inputs in ((model, images), (Tail(model, prefix), prefix(model, images))):
        torch.manual_seed(3)
        model.zero_grad()
        predictions = module(inputs, targets)
        assert predictions.denoising is not None
        (predictions.final.mask_embeddings.square().sum() + predictions.final.class_logits.sum()).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert any(name.startswith(trained) for name in gradients[0])
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_tail__follows_the_model_and_leaves_it_as_it_was() -> None:
    model = build(VIT, [f"{BLOCKS}.2", "decoder.class_embed"])
    keys, modules = list(model.state_dict()), dict(model.named_modules())
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules.values()]
    images = images_for(model)
    prefix = prefix_of(model, images)
    tail, features = Tail(model, prefix), prefix(model, images)
    with torch.no_grad():
        model.decoder.class_embed.bias.add_(1.0)
        assert equal(tail(features), model(images))
        assert equal(copy.deepcopy(tail)(features), model(images))
    assert list(model.state_dict()) == keys
    assert dict(model.named_modules()) == modules
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules.values()] == hooks
    assert {id(p) for p in tail.parameters()} == {id(p) for p in model.parameters()}


def test_tail__runs_hooks_of_its_modules() -> None:
    model = build(VIT, [f"{BLOCKS}.2"])
    images = images_for(model)
    prefix = prefix_of(model, images)
    features = prefix(model, images)
    for name in (f"{BLOCKS}.2", f"{BLOCKS}.2.attn.qkv"):
        model.get_submodule(name).register_forward_hook(lambda _module, _args, output: output * 1.5)
    with torch.no_grad():
        assert equal(Tail(model, prefix)(features), model(images))


@pytest.mark.parametrize(
    ("trained", "reason"),
    [
        ([f"{BLOCKS}.0.attn.qkv", "decoder"], r"`backbone\.body\.model\.blocks\.0\.attn\.qkv\.weight` is trained"),
        (["backbone.body.model.patch_embed"], r"patch_embed\.proj\.weight` is trained, and the first block or stage"),
    ],
    ids=["first block", "patch embedding"],
)
def test_split__names_the_trained_parameter_that_prevents_it(trained: list[str], reason: str) -> None:
    model = build(VIT, trained)
    with pytest.raises(SplitPointError, match=reason):
        model.split(images_for(model))


def test_split__refuses_a_hybrid_whose_network_is_trained() -> None:
    model = build(HYBRID, ["backbone.body.cnn.blocks"])
    with pytest.raises(SplitPointError, match=r"`backbone\.body\.cnn\.blocks\..*` is trained, and no block or stage"):
        model.split(images_for(model))


def test_split__refuses_a_backbone_in_one_piece_that_is_trained() -> None:
    model = build(EFFICIENTNET, ["backbone.body.blocks.3"])
    with pytest.raises(
        SplitPointError, match=r"`backbone\.body\.blocks\.3.*` is trained, and no block or stage before"
    ):
        model.split(images_for(model))


def test_frozen_prefix__refuses_random_modules() -> None:
    model = build(VIT, ["decoder"])
    model.get_submodule(f"{BLOCKS}.1.attn").train()
    with pytest.raises(
        SplitPointError, match=r"`backbone\.body\.model\.blocks\.1\.attn\.qkv` is frozen, but in train mode"
    ):
        prefix_of(model, images_for(model))


class Counting(nn.Module):
    """A block whose output depends on the number of blocks like it that ran before."""

    def __init__(self, inner: nn.Module, seen: list[int]) -> None:
        super().__init__()
        self.inner, self.seen = inner, seen

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(1)
        y: torch.Tensor = self.inner(x)
        return y + len(self.seen)


def test_frozen_prefix__refuses_a_backbone_with_state() -> None:
    model = build(VIT, [f"{BLOCKS}.2"])
    blocks, seen = model.get_submodule(BLOCKS), list[int]()
    for name, block in list(blocks.named_children()):
        blocks.add_module(name, Counting(block, seen))
    with pytest.raises(SplitPointError, match="gives other predictions"):
        prefix_of(model.eval(), images_for(model))
