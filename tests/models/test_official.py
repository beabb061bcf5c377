"""Mask DINO against the official implementation's own numbers, on weights in the official layout.

`data/mask_dino_*.json.gz` list the names and shapes of the published checkpoints (IDEA-Research/MaskDINO: ResNet-50 of
`maskdino_R50_bs16_50ep_3s_dowsample1_2048.yaml`, Swin-L of `swin/maskdino_R50_bs16_50ep_4s_dowsample1_2048.yaml`; of a
tensor under two names, both). `data/mask_dino_r50_expected.safetensors` holds what the official code computed in
float32 on a CPU, in eval mode, from the weights of `official_weights` and the image of `official_image`: the spatial
means of its features, every box, and every fourth class logit, row and column of its class and mask logits.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vispeft.errors import CheckpointError
from vispeft.models import MaskDINO, build_model, load_weights
from vispeft.models.mask_dino.weights import from_official

DATA = Path(__file__).parent / "data"
REFERENCE = Path(__file__).parents[2].parent / "shared" / "reference"
BUILDS: dict[str, dict[str, Any]] = {
    "mask_dino_r50": {},
    "mask_dino_swin_l": {"backbone": "swin_large_patch4_window12_384", "image_size": 384, "size": "large"},
}


def layout(name: str) -> dict[str, Any]:
    """Official tensor names with their `shape`, and `like` where the tensor is another name's."""
    tensors: dict[str, Any] = json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))
    return tensors


def official_weights(name: str) -> dict[str, Tensor]:
    """Random weights in an official layout, each from the checksum of its name, at a scale that keeps signals alive."""
    return {key: weight(entry.get("like", key), entry["shape"]) for key, entry in layout(name).items()}


def weight(name: str, shape: list[int]) -> Tensor:
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if name.endswith("running_var"):
        return 1 + 0.1 * noise.abs()
    if noise.dim() <= 1:
        is_norm = name.endswith("weight") and ("norm" in name or ".bn" in name)
        return 0.1 * noise + (1 if is_norm else 0)
    scale = 0.3 if "bbox_embed" in name or "sampling_offsets" in name else 1.0
    # in this order: the outputs were computed from these very bits
    return (noise / math.sqrt(noise[0].numel())) * scale


def official_image() -> Tensor:
    """[3, 192, 256] in 0..255."""
    return torch.randint(0, 256, (3, 192, 256), generator=torch.Generator().manual_seed(0)).float()


@pytest.fixture(scope="module")
def r50() -> MaskDINO:
    model = build_model("mask_dino").eval()
    model.load_tensors(official_weights("mask_dino_r50"), source="the reference")
    return model


def prepared(model: MaskDINO, image: Tensor) -> Tensor:
    mean, std = (torch.tensor(x)[:, None, None] for x in (model.pixel_mean, model.pixel_std))
    return ((image - mean) / std)[None]


def test_mask_dino__has_the_official_features(r50: MaskDINO) -> None:
    expected = load_file(DATA / "mask_dino_r50_expected.safetensors")
    with torch.inference_mode():
        maps = r50.backbone(prepared(r50, official_image()))
        features = r50.pixel_decoder(maps)
    for stage, x in enumerate(maps, start=2):
        torch.testing.assert_close(x[0].mean((1, 2)), expected[f"feat_res{stage}_mean"], atol=2e-5, rtol=1e-5)
    levels = features.memory[0].split([h * w for h, w in features.spatial_shapes])
    for level, x in enumerate(levels):
        torch.testing.assert_close(x.mean(0), expected[f"multi{level}_mean"], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(
        features.mask_features[0].mean((1, 2)), expected["mask_features_mean"], atol=2e-5, rtol=1e-5
    )


def test_mask_dino__predicts_what_the_official_r50_predicts(r50: MaskDINO) -> None:
    expected = load_file(DATA / "mask_dino_r50_expected.safetensors")
    assert_predictions(r50, official_image(), expected, every=4)


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the complete outputs are not here; the test before has a part")
def test_mask_dino__predicts_all_that_the_official_r50_predicts(r50: MaskDINO) -> None:
    expected = load_file(REFERENCE / "maskdino_r50" / "expected.safetensors")
    assert torch.equal(expected["image"], official_image())
    assert_predictions(r50, expected["image"], expected, every=1)


def assert_predictions(model: MaskDINO, image: Tensor, expected: dict[str, Tensor], *, every: int) -> None:
    """Compare with classes, rows and columns of which only each `every`th is there."""
    with torch.inference_mode():
        predictions = model(prepared(model, image))
    assert predictions.proposals is not None
    first, last = (layer.class_logits[0, :, ::every] for layer in (predictions.proposals, predictions.final))
    # of two cells with almost the same score, another processor may take the other one first
    order = torch.cdist(expected["interm_logits"], first, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    assert len(order.unique()) == len(order)
    torch.testing.assert_close(first[order], expected["interm_logits"], atol=2e-5, rtol=0)
    torch.testing.assert_close(last[order], expected["pred_logits"], atol=2e-5, rtol=0)
    torch.testing.assert_close(predictions.final.boxes[0, order], expected["pred_boxes"], atol=1e-5, rtol=0)
    masks = predictions.mask_logits(0, order[: len(expected["pred_masks"])])[:, ::every, ::every]
    torch.testing.assert_close(masks, expected["pred_masks"], atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", BUILDS)
def test_from_official__fills_every_tensor_and_drops_none(name: str) -> None:
    tensors = layout(name)
    with torch.device("meta"):
        state = from_official({key: torch.empty(entry["shape"]) for key, entry in tensors.items()})
        model = build_model("mask_dino", **BUILDS[name])
    structural = ("num_batches_tracked", "relative_position_index", "attn_mask")
    own = {key: value for key, value in model.state_dict().items() if not key.endswith(structural)}
    assert set(own) == set(state)
    assert {key for key in own if own[key].shape != state[key].shape} == set()
    # one official tensor for each of ours, but for the packed q, k and v
    distinct = {entry.get("like", key) for key, entry in tensors.items()}
    assert len(state) == len(distinct) + 2 * sum("in_proj" in key for key in distinct)


def test_from_official__splits_packed_attention_in_the_order_of_its_rows() -> None:
    packed = torch.arange(6.0)[:, None].expand(6, 2)
    prefix = "sem_seg_head.predictor.decoder.layers.3.self_attn"
    state = from_official({f"{prefix}.in_proj_weight": packed, f"{prefix}.in_proj_bias": packed[:, 0]})
    for row, part in ((0, "q"), (2, "k"), (4, "v")):
        assert state[f"decoder.layers.3.self_attn.{part}_proj.weight"].tolist() == [[row, row], [row + 1, row + 1]]
        assert state[f"decoder.layers.3.self_attn.{part}_proj.bias"].tolist() == [row, row + 1]


def test_load_weights__reads_an_official_checkpoint_from_its_file(tmp_path: Path) -> None:
    """A pickled dictionary with the tensors under `model`, as published; here with a class head of another size."""
    options = {"backbone": "resnet26", "backbone_options": {"base_width": 8}, "dim": 32, "ffn_dim": 32, "num_heads": 2}
    torch.manual_seed(0)
    model, source = (build_model("mask_dino", num_classes=n, **options) for n in (3, 5))
    own = source.state_dict()
    official: dict[str, Tensor] = {}
    for key in layout("mask_dino_r50"):
        ours = list(from_official({key: torch.zeros(3)}))
        if ours and all(name in own for name in ours):
            official[key] = torch.cat([own[name] for name in ours]) if "in_proj" in key else own[ours[0]]
    torch.save({"model": official, "iteration": 7}, tmp_path / "model.pth")
    load_weights(model, tmp_path / "model.pth")
    loaded = model.state_dict()
    fitted = {"decoder.class_embed.weight", "decoder.class_embed.bias", "decoder.label_embed.weight"}
    assert {key for key in own if not key.endswith("tracked") and not torch.equal(loaded[key], own[key])} == fitted


def test_from_official__refuses_another_models_names() -> None:
    with pytest.raises(CheckpointError, match=r"sem_seg_mystery\.weight"):
        from_official({"sem_seg_mystery.weight": torch.zeros(1)})


def test_build_model__has_the_published_size() -> None:
    with torch.device("meta"):
        model = build_model("mask_dino")
    assert sum(p.numel() for p in model.parameters()) == 52_111_124
