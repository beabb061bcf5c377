from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vispeft.errors import ConfigError
from vispeft.models import build_model
from vispeft.models.backbones.hybrid import HybridFeatures
from vispeft.models.backbones.timm_encoder import Backbone

NAME = "efficientnet_lite0_vit_tiny"
SMALL = {"depth": 2, "embed_dim": 64, "num_heads": 1}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    return Backbone(NAME, options=SMALL)


def test_maps__have_the_declared_channels_and_strides(backbone: Backbone) -> None:
    maps = backbone(torch.randn(2, 3, 64, 96))
    assert backbone.strides == [4, 8, 16, 32]
    assert [x.shape[1] for x in maps] == backbone.channels == [24, 40, 64, 64]
    assert [tuple(x.shape[2:]) for x in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_batch_norms__are_constants(backbone: Backbone) -> None:
    body = backbone.body
    assert isinstance(body, HybridFeatures)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in body.modules())
    images = torch.randn(2, 3, 64, 64)
    backbone.train()
    trained = body.cnn(images)
    backbone.eval()
    for x, y in zip(trained, body.cnn(images), strict=True):
        assert torch.equal(x, y)


def test_blocks__see_the_last_map_of_the_network(backbone: Backbone) -> None:
    # first the channels of the map of stride 16, then those of stride 32
    weight = backbone.body.model.patch_embed.proj.weight
    assert weight.shape[1] == 112 + 320
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = backbone(images)[2]
        kept = weight[:, 112:].clone()
        weight[:, 112:] = 0
        changed = backbone(images)[2]
        weight[:, 112:] = kept
    assert not torch.allclose(before, changed)


def test_gradients__are_equal_with_recomputation(backbone: Backbone) -> None:
    images = torch.randn(1, 3, 64, 64)
    weights = {n: p for n, p in backbone.named_parameters() if "qkv.weight" in n or "conv_pw.weight" in n}

    def gradients() -> list[torch.Tensor]:
        loss = sum(x.square().mean() for x in backbone(images))
        return list(torch.autograd.grad(loss, list(weights.values())))

    plain = gradients()
    backbone.set_activation_checkpointing(True)
    recomputed = gradients()
    backbone.set_activation_checkpointing(False)
    for name, x, y in zip(weights, plain, recomputed, strict=True):
        torch.testing.assert_close(x, y, msg=name)


def test_roles__name_the_blocks(backbone: Backbone) -> None:
    roles = backbone.roles("backbone")
    # the network's stages are `cnn.blocks`
    assert roles["encoder.blocks"] == "backbone.body.model.blocks.*"
    assert roles["encoder.qkv"] == "backbone.body.model.blocks.*.attn.qkv"
    assert roles["encoder.fc2"] == "backbone.body.model.blocks.*.mlp.fc2"


def test_channels__may_be_others_than_rgb() -> None:
    model = build_model(
        "mask_dino", backbone=NAME, num_classes=2, size="tiny", backbone_options={**SMALL, "in_chans": 5}, num_queries=5
    )
    with torch.no_grad():
        predictions = model.eval()(torch.randn(1, 5, 64, 64))
    assert predictions.final.class_logits.shape == (1, 5, 2)


def test_weights_of_the_backbone__are_refused(tmp_path: Path) -> None:
    sources: list[dict[str, Any]] = [{"pretrained": True}, {"weights": tmp_path / "some.pth"}]
    for source in sources:
        with pytest.raises(ConfigError, match=r"^`backbone` efficientnet_lite0_vit_tiny has no pretrained weights"):
            Backbone(NAME, **source)


def test_unknown_option__is_an_error() -> None:
    with pytest.raises(ConfigError, match="timm cannot build `backbone` 'efficientnet_lite0_vit_tiny'"):
        Backbone(NAME, options={"width": 3})
