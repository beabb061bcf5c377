"""EoMT as a whole, at a size that a test can afford."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vispeft.errors import CheckpointError, ConfigError
from vispeft.models import EoMT, LossSettings, build_model, load_weights
from vispeft.models.backbones.plain_vit import PlainViT
from vispeft.models.registry import family_of
from vispeft.peft import LoRA, Names, Plan, check, inject
from vispeft.structures import Targets

VIT = {"depth": 3, "embed_dim": 48, "num_heads": 3}
PLAIN, REGISTERS = "vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"


def small(backbone: str = PLAIN, num_classes: int = 3, **options: object) -> EoMT:
    torch.manual_seed(0)
    return build_model(
        "eomt",
        backbone=backbone,
        backbone_options=VIT,
        num_classes=num_classes,
        size="tiny",
        num_queries=12,
        **options,
    )


def targets(counts: tuple[int, ...], side: int = 64) -> list[Targets]:
    generator = torch.Generator().manual_seed(1)
    return [
        Targets(
            torch.randint(0, 3, (count,), generator=generator),
            torch.rand(count, 4, generator=generator) * 0.3 + 0.2,
            torch.rand(count, side, side, generator=generator) > 0.5,
        )
        for count in counts
    ]


@pytest.mark.parametrize(("backbone", "size", "cells"), [(PLAIN, (64, 96), (16, 24)), (REGISTERS, (56, 84), (8, 12))])
def test_forward__gives_the_shapes_that_structures_tell(
    backbone: str, size: tuple[int, int], cells: tuple[int, int]
) -> None:
    model = small(backbone)
    predictions = model.train()(torch.randn(2, 3, *size))
    assert [layer.class_logits.shape for layer in predictions.layers] == [(2, 12, 4)] * 3
    assert all(predictions.mask_features_of(layer).shape == (2, 48, *cells) for layer in predictions.layers)
    assert predictions.mask_logits(1, torch.tensor([3, 5])).shape == (2, *cells)
    assert all(layer.boxes is None for layer in predictions.layers)


@pytest.mark.parametrize("counts", [(3, 0), (0, 0), (20, 1)], ids=["one empty", "all empty", "more than queries"])
def test_criterion__is_finite_and_gives_every_parameter_a_gradient(counts: tuple[int, ...]) -> None:
    model = small().train()
    given = targets(counts)
    loss = torch.stack(list(model.criterion(LossSettings(64))(model(torch.randn(2, 3, 64, 64)), given).values())).sum()
    loss.backward()
    assert loss.isfinite()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_plain_vit__block_by_block_is_timms_own_model() -> None:
    torch.manual_seed(0)
    encoder = PlainViT(REGISTERS, options=VIT).eval()
    images = torch.randn(1, 3, 56, 84)
    with torch.no_grad():
        x = encoder.run_blocks(*encoder.embedded(images), range(3))
        torch.testing.assert_close(encoder.norm(x), encoder.body.forward_features(images))


def test_forward__in_eval_mode_needs_no_masks() -> None:
    model, images = small().eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model(images)
        model.on_progress(10, 10)
        after = model(images)
        unmasked = model.train()(images)
    assert len(before.layers) == 1
    assert torch.equal(before.final.class_logits, after.final.class_logits)
    torch.testing.assert_close(unmasked.final.class_logits, before.final.class_logits)
    model.on_progress(0, 10)
    with torch.no_grad():
        masked = model(images)
    assert not torch.allclose(masked.final.class_logits, before.final.class_logits)


def test_forward__with_activation_checkpointing_has_the_same_gradients() -> None:
    def gradients(model: nn.Module) -> list[Tensor]:
        predictions = model(images)
        sum(layer.class_logits.square().sum() + layer.mask_embeddings.sum() for layer in predictions.layers).backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    images = torch.randn(1, 3, 64, 64)
    kept, recomputing = small().train(), small().train()
    recomputing.set_activation_checkpointing()
    for one, other in zip(gradients(kept), gradients(recomputing), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["resnet50", "beit_base_patch16_224"])
def test_build_model__refuses_what_is_no_plain_vit(name: str) -> None:
    with pytest.raises(ConfigError, match=f"`backbone` must be a plain ViT.*{name}"):
        build_model("eomt", backbone=name)


@pytest.mark.parametrize("num_blocks", [0, 3])
def test_build_model__leaves_blocks_to_the_image_alone(num_blocks: int) -> None:
    with pytest.raises(ConfigError, match=r"`options.num_blocks` must be in 1\.\.2"):
        small(num_blocks=num_blocks)


def test_backbone_weights__are_loaded_by_timms_names(tmp_path) -> None:
    torch.manual_seed(1)
    saved = timm.create_model(PLAIN, **VIT)
    save_file(saved.state_dict(), tmp_path / "vit.safetensors")
    model = small(backbone_weights=tmp_path / "vit.safetensors")
    assert torch.equal(model.encoder.body.blocks[2].attn.qkv.weight, saved.blocks[2].attn.qkv.weight)
    assert torch.equal(model.encoder.body.norm.weight, saved.norm.weight)


def test_roles__name_sites_and_every_delta_runs() -> None:
    model = small()
    names = Names(model)
    assert {role: len(names.sites(pattern)) for role, pattern in model.roles().items()}["decoder.qkv"] == 2
    deltas = {"@encoder.qkv": LoRA(2), "predictor.mask_embed.layers.*": LoRA(2)}
    inject(model, Plan(deltas, train=["@new"]), roles=model.roles())
    check(model, torch.zeros(1, 3, 64, 64))


def test_check_image_size__names_the_size() -> None:
    small().check_image_size(70)
    options = {**VIT, "dynamic_img_size": False, "img_size": 64}
    fixed = build_model("eomt", backbone=PLAIN, backbone_options=options, size="tiny")
    with pytest.raises(ConfigError, match="`image_size` 96"):
        fixed.check_image_size(96)


def test_load_weights__keeps_the_odds_of_no_object_for_other_classes(tmp_path) -> None:
    source, model = small(num_classes=3), small(num_classes=6)
    with torch.no_grad():
        source.predictor.class_embed.weight[:3] = source.predictor.class_embed.weight[0]
        source.predictor.class_embed.bias[:3] = 0.5
    save_file(source.state_dict(), tmp_path / "whole.safetensors")
    load_weights(model, tmp_path / "whole.safetensors")
    assert family_of("eomt").num_classes_in(tmp_path / "whole.safetensors") == 3
    x = torch.randn(5, 48)
    one, other = (m.predictor.class_embed(x).softmax(-1)[:, -1] for m in (source, model))
    torch.testing.assert_close(one, other)


def test_load_weights__names_what_is_missing(tmp_path) -> None:
    state = small().state_dict()
    del state["queries"]
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(CheckpointError, match="lacks queries"):
        load_weights(small(), tmp_path / "part.safetensors")
