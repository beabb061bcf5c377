"""EoMT: shapes, masks of the attention, sizes, weights and roles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vispeft import peft
from vispeft.errors import ConfigError
from vispeft.models import DetectionLimits, EoMT, LossSettings, build_model, load_weights
from vispeft.models.eomt.model import _attention_mask
from vispeft.models.eomt.weights import fit_class_head
from vispeft.models.split import SplitPointError
from vispeft.structures import ImageMeta, LayerPredictions, Targets


def build(num_classes: int = 3, backbone: str = "vit_tiny_patch16_224", **options: Any) -> EoMT:
    torch.manual_seed(0)
    backbone_options = {"depth": 4, "embed_dim": 48, "num_heads": 3, **options.pop("backbone_options", {})}
    model = build_model(
        "eomt",
        backbone=backbone,
        num_classes=num_classes,
        pretrained=False,
        image_size=64,
        backbone_options=backbone_options,
        **{"num_queries": 7, "num_blocks": 2, **options},
    )
    assert isinstance(model, EoMT)
    return model


def images(height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("backbone", "divisor", "doublings"),
    [("vit_tiny_patch16_224", 16, 2), ("vit_small_patch14_reg4_dinov2", 14, 1)],
    ids=["vit", "dinov2"],
)
def test_eomt__predicts_from_every_last_block_in_training_and_once_at_inference(
    backbone: str, divisor: int, doublings: int
) -> None:
    model = build(backbone=backbone)
    x = images(4 * divisor, 6 * divisor)
    predictions = model.train()(x)
    assert len(predictions.layers) == 3  # before each of the two last blocks, and after them
    assert [layer.mask_features is None for layer in predictions.layers] == [False, False, True]
    assert predictions.final.class_logits.shape == (2, 7, 4)
    assert predictions.final.mask_embeddings.shape == (2, 7, 48)
    assert predictions.mask_features.shape[-2:] == (4 * 2**doublings, 6 * 2**doublings)
    assert len(model.eval()(x).layers) == 1


def test_eomt__runs_the_encoder_as_timm_does_without_queries() -> None:
    model = build(num_queries=1).eval()
    encoder = model.encoder
    x = encoder.first_tokens(images())
    for block in encoder.last_blocks:
        x = encoder.run_block(block, x, None)
    torch.testing.assert_close(encoder.norm(x), encoder.body.forward_features(images()))


def test_eomt__masks_change_training_until_they_are_annealed() -> None:
    model = build().train()
    masked = model(images()).final.class_logits
    model.on_progress(10, 10)
    assert model.mask_probs == (0.0, 0.0)
    free = model(images()).final.class_logits
    assert not torch.allclose(masked, free)
    assert torch.equal(free, model.eval()(images()).final.class_logits)


def test_attention_mask__lets_queries_see_their_mask_the_prefix_and_each_other() -> None:
    # 2 queries, 1 prefix token, 2 x 2 patches; the first mask is the left column, the second is empty
    features = torch.tensor([[[1.0, -1.0], [1.0, -1.0]]])[None]
    layer = LayerPredictions(torch.zeros(1, 2, 2), None, torch.tensor([[[1.0], [0.0]]]), features)
    mask = _attention_mask(layer, (2, 2), 1.0, num_tokens=7)
    assert mask is not None
    assert mask.shape == (1, 1, 7, 7)
    assert mask[0, 0, 0].tolist() == [True] * 3 + [True, False, True, False]
    assert mask[0, 0, 1].tolist() == [True] * 3 + [False] * 4
    assert bool(mask[0, 0, 2:].all())
    assert _attention_mask(layer, (2, 2), 0.0, num_tokens=7) is None


def test_attention_mask__frees_queries_by_the_probability() -> None:
    torch.manual_seed(0)
    layer = LayerPredictions(torch.zeros(1, 1000, 2), None, torch.zeros(1, 1000, 1), torch.ones(1, 1, 2, 2))
    mask = _attention_mask(layer, (2, 2), 0.3, num_tokens=1004)
    assert mask is not None
    is_masked = ~mask[0, 0, :1000, -4:].any(-1)
    assert 0.25 < float(is_masked.float().mean()) < 0.35


def test_eomt__loss_reaches_every_parameter() -> None:
    model = build().train()
    masks = torch.zeros(2, 64, 96, dtype=torch.bool)
    masks[0, :30, :30], masks[1, 30:, 40:] = True, True
    targets = [
        Targets(torch.tensor([0, 2]), torch.full((2, 4), 0.5), masks),
        Targets(*(t[:0] for t in (torch.tensor([0]), torch.zeros(1, 4), masks))),
    ]
    losses = model.criterion(LossSettings(num_points=128))(model(images(), targets), targets)
    torch.stack(list(losses.values())).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_eomt__recomputing_gives_the_same_gradients() -> None:
    gradients = []
    for enable in (False, True):
        model = build().train()
        model.set_activation_checkpointing(enable)
        model(images()).mask_features.square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert (gradient is None) == (gradients[1][name] is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, gradients[1][name])


def test_eomt__gives_instances_with_boxes_around_their_masks() -> None:
    model = build().eval()
    metas = [ImageMeta(i, f"{i}.png", 50, 70, 60, 84) for i in range(2)]
    with torch.no_grad():
        predictions = model(images())
    found = model.instances(predictions, metas, padded_size=(64, 96), limits=DetectionLimits(max_detections=5))
    for instances in found:
        assert len(instances.scores) <= 5
        assert instances.scores.tolist() == sorted(instances.scores.tolist(), reverse=True)
        assert set(instances.labels.tolist()) <= {0, 1, 2}
        assert all(rle["size"] == [50, 70] for rle in instances.rles)


def test_eomt__refuses_what_it_cannot_run() -> None:
    with pytest.raises(ConfigError, match=r"must be a plain ViT of timm with learned positions .* 'resnet18'"):
        build(backbone="resnet18", backbone_options={})
    with pytest.raises(ConfigError, match=r"`options.num_blocks` must be in 1..3"):
        build(num_blocks=4)
    with pytest.raises(ConfigError, match="must be multiples of 16"):
        build()(images(60, 96))
    with pytest.raises(SplitPointError, match="no split point"):
        build().split(images())


def test_eomt__loads_its_own_weights_and_fits_the_class_head(tmp_path: Path) -> None:
    model, other = build(3), build(5)
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, tmp_path / "eomt.safetensors")
    load_weights(other, tmp_path / "eomt.safetensors")
    assert torch.equal(other.queries, model.queries)
    old, new = model.predictor.class_embed, other.predictor.class_embed
    assert torch.equal(new.weight[-1], old.weight[-1])
    torch.testing.assert_close(new.weight[0], old.weight[:3].mean(0))
    # the odds of an object against none stay those of equal logits
    state = {"predictor.class_embed.weight": torch.zeros(4, 8), "predictor.class_embed.bias": torch.zeros(4)}
    fitted = fit_class_head(state, 6)["predictor.class_embed.bias"]
    assert fitted.softmax(0)[-1] == pytest.approx(0.25)


def test_eomt__has_roles_for_its_encoder_its_last_blocks_and_its_heads() -> None:
    model = build()
    names = peft.Names(model)
    for role in model.roles():
        assert names.sites(f"@{role}", model.roles()), role
    last = {site.name for site in names.sites("@decoder.qkv", model.roles())}
    assert last == {"encoder.body.blocks.2.attn.qkv", "encoder.body.blocks.3.attn.qkv"}
