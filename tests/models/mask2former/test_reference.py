"""Mask2Former against the official implementation's own outputs, on random weights in the official layout."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vispeft.models import Mask2Former, build_model
from vispeft.models.mask2former.weights import from_official

REFERENCE = Path(__file__).parents[3].parent / "shared" / "reference"
BUILDS: dict[str, dict[str, Any]] = {
    "mask2former_r50": {"backbone": "resnet50"},
    "mask2former_swint": {"backbone": "swin_tiny_patch4_window7_224"},
}

pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason="the official layouts are not here")


@pytest.fixture(scope="module")
def official() -> ModuleType:
    spec = importlib.util.spec_from_file_location("official_state", REFERENCE / "official_state.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def loaded(name: str, official: ModuleType) -> tuple[Mask2Former, dict[str, Tensor]]:
    state = official.official_state_dict(REFERENCE / name)
    model = build_model("mask2former", num_classes=80, **BUILDS[name]).eval()
    assert isinstance(model, Mask2Former)
    model.load_tensors(state, source=name)
    return model, state


@pytest.mark.parametrize("name", BUILDS)
def test_load_tensors__takes_every_tensor_of_the_official_layout(name: str, official: ModuleType) -> None:
    model, state = loaded(name, official)
    # loading refuses what is missing or unknown; renaming drops buffers that our modules compute themselves
    own = {key: tensor for key, tensor in from_official(state).items() if not key.endswith("attn_mask")}
    assert own.keys() <= model.state_dict().keys()
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in own.items())
    assert {key for key, _ in model.named_parameters()} <= own.keys()


def test_forward__gives_the_official_outputs(official: ModuleType) -> None:
    model, _ = loaded("mask2former_swint", official)
    expected = load_file(REFERENCE / "mask2former_swint" / "expected.safetensors")
    mean, std = (torch.tensor(x)[:, None, None] for x in (model.pixel_mean, model.pixel_std))
    with torch.inference_mode():
        predictions = model(((expected["image"] - mean) / std)[None])
    logits = predictions.final.class_logits[0]
    scale = expected["pred_logits"].abs().max()
    assert float((logits - expected["pred_logits"]).abs().max() / scale) < 1e-3
    masks = predictions.mask_logits(0, torch.arange(len(expected["pred_masks"])))
    assert float((masks - expected["pred_masks"]).abs().max() / expected["pred_masks"].abs().max()) < 1e-3
    means = predictions.mask_features[0].mean((1, 2))
    torch.testing.assert_close(means, expected["mask_features_mean"], atol=1e-4, rtol=1e-3)
