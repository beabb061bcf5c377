"""EoMT of transformers with random weights and ours converted from it: outputs, losses, gradients, and the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vispeft.errors import CheckpointError
from vispeft.models import EoMT, build_model, load_weights
from vispeft.models.eomt.names import own_names, to_transformers
from vispeft.models.eomt.transformers_config import read_directory_metadata

transformers = pytest.importorskip("transformers")

CLASSES, SIDE = 3, 64
# parameters of transformers' model, timm's model and its options
COMMON = {"num_labels": CLASSES, "num_queries": 7, "num_blocks": 2, "image_size": SIDE, "num_upscale_blocks": 2}
CASES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "dinov2 with registers": (
        "Eomt",
        {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3},
        "vit_small_patch14_reg4_dinov2",
        {"depth": 4, "embed_dim": 48, "num_heads": 3},
    ),
    "dinov2 without registers": (
        "Eomt",
        {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "num_register_tokens": 0},
        "vit_base_patch14_dinov2",
        {"depth": 3, "embed_dim": 32, "num_heads": 2},
    ),
    "dinov2 with swiglu": (
        "Eomt",
        {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "use_swiglu_ffn": True},
        "vit_giant_patch14_reg4_dinov2",
        {"depth": 3, "embed_dim": 48, "num_heads": 4, "mlp_ratio": 5.34},
    ),
    "dinov3 with biases": (
        "EomtDinov3",
        {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 192},
        "vit_small_patch16_dinov3_qkvb",
        {"depth": 4, "embed_dim": 48, "num_heads": 3},
    ),
    "dinov3 without biases": (
        "EomtDinov3",
        {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 128,
            "query_bias": False,
            "value_bias": False,
        },
        "vit_base_patch16_dinov3",
        {"depth": 3, "embed_dim": 32, "num_heads": 2},
    ),
    "dinov3 with swiglu": (
        "EomtDinov3",
        {
            "hidden_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "intermediate_size": 192,
            "use_gated_mlp": True,
        },
        "vit_small_plus_patch16_dinov3_qkvb",
        {"depth": 3, "embed_dim": 48, "num_heads": 3},
    ),
}


def pair(case: str) -> tuple[Any, EoMT]:
    """Return transformers' model with random weights, and ours with the same."""
    kind, sizes, backbone, options = CASES[case]
    torch.manual_seed(0)
    # as timm has them; positions are not scaled at random
    as_timm = {"layer_norm_eps": 1e-5, "pos_embed_rescale": None} if kind == "EomtDinov3" else {}
    config = getattr(transformers, f"{kind}Config")(**COMMON, **as_timm, **sizes)
    theirs = getattr(transformers, f"{kind}ForUniversalSegmentation")(config)
    if sizes.get("use_gated_mlp"):
        # the configuration has one activation for these and the heads, which have GELU in the paper
        for layer in theirs.layers:
            layer.mlp.act_fn = nn.SiLU()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.normal_(1.0 if "norm" in name or "lambda" in name else 0.0, 0.2)
    options = {**options, "patch_size": 16, "img_size": SIDE}
    ours = build_model(
        "eomt",
        backbone=backbone,
        backbone_options=options,
        num_classes=CLASSES,
        size="tiny",
        num_queries=7,
        num_blocks=2,
    )
    assert isinstance(ours, EoMT)
    ours.load_tensors(theirs.state_dict(), source="transformers")
    return theirs, ours


@pytest.fixture(params=list(CASES))
def both(request: pytest.FixtureRequest) -> tuple[Any, EoMT]:
    return pair(request.param)


def their_logits(theirs: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    outputs = theirs(images)
    return outputs.class_queries_logits, outputs.masks_queries_logits


def our_logits(ours: EoMT, images: Tensor) -> tuple[Tensor, Tensor]:
    predictions = ours(images)
    masks = torch.einsum("bqd,bdhw->bqhw", predictions.final.mask_embeddings, predictions.mask_features)
    return predictions.final.class_logits, masks


def close(one: Tensor, other: Tensor, *, floor: float = 0.0) -> bool:
    """Compare within 1e-4 of the largest value. floor: values below are rounding errors of zero"""
    return float((one - other).detach().abs().max()) <= 1e-4 * max(floor, float(other.detach().abs().max()))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train with masks"])
def test_outputs_and_gradients__are_those_of_transformers(both: tuple[Any, EoMT], training: bool) -> None:
    theirs, ours = (model.train(training) for model in both)
    if not training:
        # a trained model's state: no masks at inference
        theirs.attn_mask_probs.zero_()
    images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    inputs = [images.clone().requires_grad_() for _ in both]
    expected, given = their_logits(theirs, inputs[0]), our_logits(ours, inputs[1])
    for one, other in zip(given, expected, strict=True):
        assert close(one, other)
    torch.manual_seed(2)
    weights = [torch.randn_like(x) / x.numel() ** 0.5 for x in expected]
    for logits in (expected, given):
        sum((weight * x).sum() for weight, x in zip(weights, logits, strict=True)).backward()
    assert inputs[0].grad is not None
    assert inputs[1].grad is not None
    assert close(inputs[1].grad, inputs[0].grad)
    their_gradients = gradients(theirs)
    # keys may have a bias, which has no gradient but rounding errors
    floor = 1e-2 * max(float(gradient.abs().max()) for gradient in their_gradients.values() if gradient.numel())
    for name, gradient in own_names(their_gradients, ours.state_dict()).items():
        own = ours.get_parameter(name).grad
        if name.endswith("pos_embed"):
            prefix = own.shape[1] - (SIDE // 16) ** 2
            own, gradient = own[:, prefix:], gradient[:, prefix:]
        assert close(own, gradient, floor=floor), name


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[name] = parameter.grad
    return found


def test_directory__is_read_with_its_encoder(both: tuple[Any, EoMT], tmp_path: Path) -> None:
    theirs, _ = (model.eval() for model in both)
    theirs.attn_mask_probs.zero_()
    theirs.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25], "size": 64}'
    )
    if getattr(theirs.config, "use_gated_mlp", False):
        with pytest.raises(CheckpointError, match=r"`use_gated_mlp` must be False in .*config\.json, but is True"):
            read_directory_metadata(tmp_path)
        return
    metadata = read_directory_metadata(tmp_path)
    assert metadata.image_size == SIDE
    ours = build_model(num_classes=CLASSES, **metadata.arguments).eval()
    assert ours.pixel_std == (63.75,) * 3
    load_weights(ours, tmp_path)
    images = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for one, other in zip(our_logits(ours, images), their_logits(theirs, images), strict=True):
            assert close(one, other)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_upscale_blocks": 3}))
    with pytest.raises(CheckpointError, match=r"`num_upscale_blocks` must be 2 in .* Use `name: transformers`"):
        read_directory_metadata(tmp_path)


def test_names__lead_back_to_transformers(both: tuple[Any, EoMT]) -> None:
    theirs, ours = both
    expected = {n: t for n, t in theirs.state_dict().items() if n not in ("attn_mask_probs", "criterion.empty_weight")}
    given = to_transformers(ours.state_dict())
    assert set(given) == set(expected)
    assert all(torch.equal(given[name], tensor) for name, tensor in expected.items())
