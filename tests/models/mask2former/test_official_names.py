"""Every published Mask2Former: its official tensors, written out from the sizes of its parts, are exactly ours.

The models are those of the official model zoo for COCO instances. Names and shapes are those of detectron2's ResNet and
of the official Swin Transformer, pixel decoder and predictor.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vispeft.models import Mask2Former, build_model, load_weights
from vispeft.models.mask2former.weights import from_official, num_classes_in

REFERENCE = Path(__file__).parents[3].parent / "shared" / "reference"
DIM, CLASSES = 256, 80
Shapes = dict[str, tuple[int, ...]]

MODELS: dict[str, dict[str, Any]] = {
    "r50": {"backbone": "resnet50"},
    "r101": {"backbone": "resnet101"},
    "swin-t": {"backbone": "swin_tiny_patch4_window7_224"},
    "swin-s": {"backbone": "swin_small_patch4_window7_224"},
    "swin-b": {"backbone": "swin_base_patch4_window12_384"},
    "swin-l": {"backbone": "swin_large_patch4_window12_384", "size": "large"},
}
RESNETS = {"r50": (3, 4, 6, 3), "r101": (3, 4, 23, 3)}
# width, depths, heads and window
SWINS = {
    "swin-t": (96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
    "swin-s": (96, (2, 2, 18, 2), (3, 6, 12, 24), 7),
    "swin-b": (128, (2, 2, 18, 2), (4, 8, 16, 32), 12),
    "swin-l": (192, (2, 2, 18, 2), (6, 12, 24, 48), 12),
}
# of the four other ones, the layouts are given for these
LAYOUTS = {"r50": "mask2former_r50", "swin-t": "mask2former_swint"}


def linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def conv_and_batch_norm(name: str, outputs: int, inputs: int, kernel: int) -> Shapes:
    statistics = {f"{name}.norm.{key}": (outputs,) for key in ("weight", "bias", "running_mean", "running_var")}
    return {f"{name}.weight": (outputs, inputs, kernel, kernel), **statistics}


def resnet(depths: tuple[int, ...]) -> Shapes:
    shapes, inputs = conv_and_batch_norm("backbone.stem.conv1", 64, 3, 7), 64
    for stage, depth in enumerate(depths):
        width, outputs = 64 * 2**stage, 256 * 2**stage
        for number in range(depth):
            block = f"backbone.res{stage + 2}.{number}"
            if number == 0:
                shapes |= conv_and_batch_norm(f"{block}.shortcut", outputs, inputs, 1)
            shapes |= conv_and_batch_norm(f"{block}.conv1", width, inputs, 1)
            shapes |= conv_and_batch_norm(f"{block}.conv2", width, width, 3)
            shapes |= conv_and_batch_norm(f"{block}.conv3", outputs, width, 1)
            inputs = outputs
    return shapes


def swin(width: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int) -> Shapes:
    shapes = {"backbone.patch_embed.proj.weight": (width, 3, 4, 4), "backbone.patch_embed.proj.bias": (width,)}
    shapes |= norm("backbone.patch_embed.norm", width)
    for stage, depth in enumerate(depths):
        dim = width * 2**stage
        for number in range(depth):
            block = f"backbone.layers.{stage}.blocks.{number}"
            table = ((2 * window - 1) ** 2, heads[stage])
            shapes |= norm(f"{block}.norm1", dim) | norm(f"{block}.norm2", dim)
            shapes |= {f"{block}.attn.relative_position_bias_table": table}
            shapes |= {f"{block}.attn.relative_position_index": (window**2, window**2)}
            shapes |= linear(f"{block}.attn.qkv", 3 * dim, dim) | linear(f"{block}.attn.proj", dim, dim)
            shapes |= linear(f"{block}.mlp.fc1", 4 * dim, dim) | linear(f"{block}.mlp.fc2", dim, 4 * dim)
        if stage < 3:
            shapes |= {f"backbone.layers.{stage}.downsample.reduction.weight": (2 * dim, 4 * dim)}
            shapes |= norm(f"backbone.layers.{stage}.downsample.norm", 4 * dim)
        shapes |= norm(f"backbone.norm{stage}", dim)
    return shapes


def pixel_decoder(widths: list[int]) -> Shapes:
    start = "sem_seg_head.pixel_decoder"
    shapes: Shapes = {f"{start}.transformer.level_embed": (3, DIM)}
    # coarsest first
    for level, width in enumerate(widths[:0:-1]):
        shapes |= {f"{start}.input_proj.{level}.0.weight": (DIM, width, 1, 1)}
        shapes |= {f"{start}.input_proj.{level}.0.bias": (DIM,)} | norm(f"{start}.input_proj.{level}.1", DIM)
    for number in range(6):
        layer = f"{start}.transformer.encoder.layers.{number}"
        # 8 heads, 3 levels and 4 points
        shapes |= linear(f"{layer}.self_attn.sampling_offsets", 192, DIM)
        shapes |= linear(f"{layer}.self_attn.attention_weights", 96, DIM)
        for name in ("value_proj", "output_proj"):
            shapes |= linear(f"{layer}.self_attn.{name}", DIM, DIM)
        shapes |= norm(f"{layer}.norm1", DIM) | norm(f"{layer}.norm2", DIM)
        shapes |= linear(f"{layer}.linear1", 1024, DIM) | linear(f"{layer}.linear2", DIM, 1024)
    shapes |= {f"{start}.mask_features.weight": (DIM, DIM, 1, 1), f"{start}.mask_features.bias": (DIM,)}
    shapes |= {f"{start}.adapter_1.weight": (DIM, widths[0], 1, 1)} | norm(f"{start}.adapter_1.norm", DIM)
    return shapes | {f"{start}.layer_1.weight": (DIM, DIM, 3, 3)} | norm(f"{start}.layer_1.norm", DIM)


def predictor(num_queries: int) -> Shapes:
    start = "sem_seg_head.predictor"
    shapes: Shapes = {f"{start}.{name}.weight": (num_queries, DIM) for name in ("query_feat", "query_embed")}
    shapes |= {f"{start}.level_embed.weight": (3, DIM)} | norm(f"{start}.decoder_norm", DIM)
    shapes |= linear(f"{start}.class_embed", CLASSES + 1, DIM)
    for number in range(3):
        shapes |= linear(f"{start}.mask_embed.layers.{number}", DIM, DIM)
    for number in range(9):
        for kind, attention in (("self_attention", "self_attn"), ("cross_attention", "multihead_attn")):
            layer = f"{start}.transformer_{kind}_layers.{number}"
            packed = {f"{layer}.{attention}.in_proj_weight": (3 * DIM, DIM)}
            shapes |= packed | {f"{layer}.{attention}.in_proj_bias": (3 * DIM,)}
            shapes |= linear(f"{layer}.{attention}.out_proj", DIM, DIM) | norm(f"{layer}.norm", DIM)
        layer = f"{start}.transformer_ffn_layers.{number}"
        shapes |= linear(f"{layer}.linear1", 2048, DIM) | linear(f"{layer}.linear2", DIM, 2048)
        shapes |= norm(f"{layer}.norm", DIM)
    return shapes


def official(name: str) -> Shapes:
    """Return the official tensors of a published model."""
    if name in RESNETS:
        backbone, widths = resnet(RESNETS[name]), [256, 512, 1024, 2048]
    else:
        backbone, widths = swin(*SWINS[name]), [SWINS[name][0] * 2**stage for stage in range(4)]
    return backbone | pixel_decoder(widths) | predictor(200 if name == "swin-l" else 100)


def shapes_of(tensors: Mapping[str, torch.Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", MODELS)
def test_from_official__fills_every_tensor_of_the_published_models(name: str) -> None:
    with torch.device("meta"):
        model = build_model("mask2former", num_classes=CLASSES, **MODELS[name])
        tensors = from_official({key: torch.empty(shape) for key, shape in official(name).items()})
    structural = ("num_batches_tracked", "relative_position_index", "attn_mask")
    own = {key: shape for key, shape in shapes_of(model.state_dict()).items() if not key.endswith(structural)}
    assert shapes_of(tensors) == own


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the official layouts are not here")
@pytest.mark.parametrize("name", LAYOUTS)
def test_official__is_the_given_layout(name: str) -> None:
    tensors = json.loads((REFERENCE / LAYOUTS[name] / "tensors.json").read_text())["tensors"]
    assert official(name) == {key: tuple(entry["shape"]) for key, entry in tensors.items()}


def test_load_weights__reads_a_published_file(tmp_path: Path) -> None:
    """A pickle of numpy arrays under `model`, as the model zoo has them."""
    rng = np.random.default_rng(0)
    arrays = {key: rng.standard_normal(shape, dtype=np.float32) for key, shape in official("r50").items()}
    content = {"model": arrays, "__author__": "Mask2Former", "matching_heuristics": True}
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps(content))
    model = build_model("mask2former", num_classes=CLASSES, **MODELS["r50"])
    assert isinstance(model, Mask2Former)
    load_weights(model, path)
    assert num_classes_in(path) == CLASSES
    expected = from_official({key: torch.from_numpy(array) for key, array in arrays.items()})
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in expected.items())
