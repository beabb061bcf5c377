"""Mask2Former as a whole, at a size that a test can afford."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vispeft.errors import CheckpointError, ConfigError
from vispeft.models import LossSettings, Mask2Former, build_model, load_weights
from vispeft.models.mask2former.weights import from_official
from vispeft.peft import LoRA, Names, Plan, check, inject
from vispeft.structures import Targets

SMALL = {"dim": 32, "ffn_dim": 48, "pixel_decoder_ffn_dim": 48, "num_heads": 2, "mask_dim": 16, "num_queries": 7}
RESNET = {"backbone": "resnet18", "backbone_options": {"channels": (8, 8, 16, 16)}}


def small(num_classes: int = 3, **options: int) -> Mask2Former:
    torch.manual_seed(0)
    model = build_model("mask2former", num_classes=num_classes, size="tiny", **RESNET, **{**SMALL, **options})
    assert isinstance(model, Mask2Former)
    return model


def halves(side: int = 64) -> Targets:
    masks = torch.zeros(2, side, side, dtype=torch.bool)
    masks[0, : side // 2], masks[1, side // 2 :] = True, True
    return Targets(torch.tensor([2, 0]), torch.tensor([[0.5, 0.25, 1.0, 0.5], [0.5, 0.75, 1.0, 0.5]]), masks)


def test_forward__gives_the_shapes_that_structures_tell() -> None:
    model = small().eval()
    with torch.inference_mode():
        predictions = model(torch.randn(2, 3, 64, 96))
    # before the first layer and after each of three
    assert [layer.class_logits.shape for layer in predictions.layers] == [(2, 7, 4)] * 4
    assert predictions.final.boxes is None
    assert predictions.mask_features.shape == (2, 16, 16, 24)
    assert (model.num_classes, model.num_queries, model.size_divisor) == (3, 7, 32)


@pytest.mark.parametrize(
    "targets", [halves(), Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), halves().masks[:0])]
)
def test_criterion__gives_every_parameter_a_gradient(targets: Targets) -> None:
    model = small().train()
    losses = model.criterion(LossSettings(num_points=64))(model(torch.randn(1, 3, 64, 64)), [targets])
    assert losses.keys() == {"class", "mask", "dice"}
    sum(losses.values()).backward()
    lacking = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert lacking == [] or len(targets) == 0


def test_training__fits_one_image() -> None:
    model = small().train()
    criterion, images, targets = model.criterion(LossSettings(num_points=256)), torch.randn(1, 3, 64, 64), [halves()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    totals = []
    for _ in range(25):
        loss = sum(criterion(model(images), targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(float(loss.detach()))
    assert min(totals[-5:]) < 0.6 * totals[0]


def test_roles__name_modules_that_run() -> None:
    model = small()
    names, roles = Names(model), model.roles()
    assert all(names.sites(pattern) or names.trained(pattern) for pattern in roles.values())
    inject(model, Plan({"@decoder.q_proj | @deformable.value_proj": LoRA(rank=2)}, train=["@heads"]), roles=roles)
    check(model, torch.randn(1, 3, 64, 64))


def test_load_weights__fits_classes_and_queries(tmp_path: Path) -> None:
    source, target = small(3), small(5, num_queries=9)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    load_weights(target, tmp_path / "model.safetensors")
    old, new = source.decoder.class_embed.weight, target.decoder.class_embed.weight
    torch.testing.assert_close(new[:5], old[:3].mean(0, keepdim=True).expand(5, -1))
    assert torch.equal(new[5], old[3])
    assert torch.equal(target.decoder.query_feat.weight[:7], source.decoder.query_feat.weight)


def test_from_official__splits_packed_attention_and_refuses_other_names() -> None:
    packed = torch.arange(6.0)[:, None].expand(6, 2)
    prefix = "sem_seg_head.predictor.transformer_cross_attention_layers.3.multihead_attn"
    state = from_official({f"{prefix}.in_proj_weight": packed})
    for row, part in ((0, "q"), (2, "k"), (4, "v")):
        assert state[f"decoder.layers.3.cross_attn.{part}_proj.weight"].tolist() == [[row, row], [row + 1, row + 1]]
    with pytest.raises(CheckpointError, match=r"sem_seg_mystery\.weight"):
        from_official({"sem_seg_mystery.weight": torch.zeros(1)})


def test_build_model__refuses_a_backbone_with_few_maps() -> None:
    with pytest.raises(ConfigError, match="backbone"):
        build_model("mask2former", backbone="resnet18", size="tiny", backbone_options={"out_indices": (3, 4)})
