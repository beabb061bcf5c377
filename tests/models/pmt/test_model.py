"""PMT as a whole, at a size that a test can afford."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vispeft.errors import CheckpointError, ConfigError
from vispeft.models import PMT, LossSettings, build_model, load_weights
from vispeft.models.layers.axial_rotary import axial_rotary, rotated
from vispeft.models.pmt.annealing import mask_probabilities
from vispeft.models.registry import family_of
from vispeft.peft import Adapter, LoRA, Names, Plan, check, inject, train_mode
from vispeft.structures import Targets

VIT = {"depth": 4, "embed_dim": 48, "num_heads": 3}
LEARNED, ROTARY = "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"


def small(backbone: str = ROTARY, num_classes: int = 3, **options: object) -> PMT:
    torch.manual_seed(0)
    given = {"size": "tiny", "num_queries": 12, **options}
    model = build_model("pmt", backbone=backbone, backbone_options=VIT, num_classes=num_classes, **given)
    assert isinstance(model, PMT)
    return model


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


@pytest.mark.parametrize(("backbone", "size", "cells"), [(ROTARY, (64, 96), (16, 24)), (LEARNED, (56, 84), (8, 12))])
def test_forward__gives_the_shapes_that_structures_tell(
    backbone: str, size: tuple[int, int], cells: tuple[int, int]
) -> None:
    model = small(backbone)
    predictions = model.train()(torch.randn(2, 3, *size))
    assert [layer.class_logits.shape for layer in predictions.layers] == [(2, 12, 4)] * 3
    assert all(predictions.mask_features_of(layer).shape == (2, 48, *cells) for layer in predictions.layers)
    assert all(layer.boxes is None for layer in predictions.layers)
    assert len(model.eval()(torch.randn(1, 3, *size)).layers) == 1


def test_build_model__has_the_published_sizes() -> None:
    torch.manual_seed(0)
    options = {"depth": 24, "embed_dim": 64, "num_heads": 2}
    model = build_model("pmt", backbone="vit_large_patch16_dinov3", backbone_options=options)
    assert isinstance(model, PMT)
    assert model.taps == (5, 11, 17, 23)
    assert (model.num_queries, len(model.decoder.blocks)) == (200, 6)
    assert model.decoder.blocks[0].linear1.out_features == 64


@pytest.mark.parametrize("counts", [(3, 0), (0, 0), (20, 1)], ids=["one empty", "all empty", "more than queries"])
def test_criterion__is_finite_and_gives_every_parameter_a_gradient(counts: tuple[int, ...]) -> None:
    model = small().train()
    losses = model.criterion(LossSettings(64))(model(torch.randn(2, 3, 64, 64)), targets(counts))
    loss = torch.stack(list(losses.values())).sum()
    loss.backward()
    assert loss.isfinite()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_decoder__is_the_papers_formula() -> None:
    """Fusion and a block, written out for one image in float64."""
    model = small().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
        for lateral in model.decoder.laterals:
            lateral.norm.running_mean.normal_()
            lateral.norm.running_var.uniform_(0.5, 2)
        taps = [torch.randn(1, 5 + 6, 48, dtype=torch.float64) for _ in range(2)]
        fused = torch.zeros_like(taps[0])
        for x, lateral in zip(taps, model.decoder.laterals, strict=True):
            norm = lateral.norm
            x = (x - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight + norm.bias
            fused += lateral.scale * (x + lateral.fc2(nn.functional.gelu(lateral.fc1(x))))
        torch.testing.assert_close(model.decoder.fused(taps), fused)

        block, rotary = model.decoder.blocks[0], model.decoder.rotary((2, 3), torch.device("cpu"))
        x = torch.cat((model.queries[None], fused), dim=1)
        torch.testing.assert_close(block(x, rotary, None), block_by_hand(block, x))


def block_by_hand(block: nn.Module, x: Tensor) -> Tensor:
    y = block.norm1(x)[0]
    q, k, v = (
        part(y).view(-1, 3, 16) for part in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj)
    )
    first = len(y) - 6
    q[first:], k[first:] = turned(q[first:]), turned(k[first:])
    attention = (torch.einsum("ihc,jhc->hij", q, k) / 4).softmax(-1)
    x = x + block.scale1 * block.self_attn.out_proj(torch.einsum("hij,jhc->ihc", attention, v).flatten(1))
    return x + block.scale2 * block.linear2(nn.functional.gelu(block.linear1(block.norm2(x))))


def turned(x: Tensor) -> Tensor:
    """Rotate channels i and i + 8 of the patches [2 * 3, heads, 16] by their angle."""
    y = x.clone()
    for index in range(6):
        row, column = divmod(index, 3)
        centre = (2 * (row + 0.5) / 2 - 1, 2 * (column + 0.5) / 3 - 1)
        for channel in range(8):
            angle = 2 * math.pi * centre[channel // 4] / 100 ** (channel % 4 / 4)
            a, b = x[index, :, channel], x[index, :, channel + 8]
            y[index, :, channel] = a * math.cos(angle) - b * math.sin(angle)
            y[index, :, channel + 8] = b * math.cos(angle) + a * math.sin(angle)
    return y


def test_rotated__leaves_the_first_tokens_alone() -> None:
    x = torch.randn(1, 2, 7, 8)
    cosines, sines = axial_rotary((2, 2), 8, device=torch.device("cpu"))
    y = rotated(x, cosines, sines)
    assert torch.equal(y[:, :, :3], x[:, :, :3])
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))


def test_mask_probabilities__are_those_of_the_published_schedule() -> None:
    starts, ends = (0, 23651, 32520, 41389, 50258, 59128), (3000, 38433, 47302, 56171, 65040, 73910)
    for step in (0, 1500, 3001, 30000, 45000, 60000, 70000, 80000):
        given = mask_probabilities(6, step, 88_692)
        for start, end, probability in zip(starts, ends, given, strict=True):
            progress = min(1.0, max(0.0, (step - start) / (end - start)))
            assert abs(probability - (1 - progress) ** 0.9) < 1e-3
    assert mask_probabilities(1, 10, 10) == (0.0,)
    assert mask_probabilities(2, 0, 10) == (1.0, 1.0)


def test_roles__name_sites_and_every_delta_runs() -> None:
    model = small()
    names = Names(model)
    counts = {role: len(names.sites(pattern)) for role, pattern in model.roles().items()}
    assert all(counts.values())
    assert counts["decoder.q_proj"] == counts["laterals.fc1"] == 2
    deltas = {
        "@encoder.qkv | @decoder.q_proj | @laterals.fc2": LoRA(2),
        "@decoder.out_proj | @decoder.linear2": Adapter(width=4),
    }
    inject(model, Plan(deltas, train=["@heads"]), roles=model.roles())
    check(model, torch.zeros(1, 3, 64, 64))


def test_train_mode__keeps_the_statistics_of_the_laterals() -> None:
    model = small()
    inject(model, Plan({"@decoder.q_proj": LoRA(2)}, train=["@new"]), roles=model.roles())
    train_mode(model)
    before = model.decoder.laterals[0].norm.running_mean.clone()
    model(torch.randn(2, 3, 64, 64))
    assert torch.equal(model.decoder.laterals[0].norm.running_mean, before)


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


@pytest.mark.parametrize(
    ("options", "message"), [({"num_taps": 5}, "`options.num_taps`"), ({"num_blocks": 0}, "`options.num_blocks`")]
)
def test_build_model__refuses_numbers_that_do_not_fit(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**options)


def test_load_weights__fits_another_class_head_and_names_what_is_missing(tmp_path) -> None:
    state = small(num_classes=3).state_dict()
    save_file(state, tmp_path / "whole.safetensors")
    model = small(num_classes=6)
    load_weights(model, tmp_path / "whole.safetensors")
    assert family_of("pmt").num_classes_in(tmp_path / "whole.safetensors") == 3
    assert torch.equal(model.decoder.laterals[1].fc1.weight, state["decoder.laterals.1.fc1.weight"])
    del state["decoder.norm.weight"]
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks decoder\.norm\.weight"):
        load_weights(small(), tmp_path / "part.safetensors")
