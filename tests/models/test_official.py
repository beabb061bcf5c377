"""Mask DINO against the official implementation's own numbers, on weights in the official layout."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vispeft.errors import CheckpointError
from vispeft.models import MaskDINO, build_model
from vispeft.models.checkpoints import from_official, load_state

REFERENCE = Path(__file__).parents[2].parent / "shared" / "reference"
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="../shared/reference is not here")


def official() -> ModuleType:
    """The script that fills an official layout with numbers."""
    spec = importlib.util.spec_from_file_location("official_state", REFERENCE / "official_state.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def r50() -> tuple[MaskDINO, dict[str, Tensor]]:
    folder = REFERENCE / "maskdino_r50"
    model = build_model("mask_dino").eval()
    load_state(model, from_official(official().official_state_dict(folder)), source="the reference")
    return model, load_file(folder / "expected.safetensors")


@needs_reference
def test_mask_dino__predicts_what_the_official_r50_predicts(r50: tuple[MaskDINO, dict[str, Tensor]]) -> None:
    model, expected = r50
    mean, std = (torch.tensor(x)[:, None, None] for x in (model.pixel_mean, model.pixel_std))
    with torch.inference_mode():
        predictions = model(((expected["image"] - mean) / std)[None])
    assert predictions.proposals is not None
    torch.testing.assert_close(predictions.proposals.class_logits[0], expected["interm_logits"], atol=2e-5, rtol=0)
    torch.testing.assert_close(predictions.final.class_logits[0], expected["pred_logits"], atol=2e-5, rtol=0)
    torch.testing.assert_close(predictions.final.boxes[0], expected["pred_boxes"], atol=1e-5, rtol=0)
    masks = predictions.mask_logits(0, torch.arange(len(expected["pred_masks"])))
    torch.testing.assert_close(masks, expected["pred_masks"], atol=2e-4, rtol=0)


@needs_reference
def test_from_official__fills_every_tensor_of_swin_l() -> None:
    folder = REFERENCE / "maskdino_swinl"
    tensors = json.loads((folder / "tensors.json").read_text())["tensors"]
    with torch.device("meta"):
        state = from_official(
            {name: torch.empty(entry["shape"]) for name, entry in tensors.items() if "float" in entry["dtype"]}
        )
        model = build_model("mask_dino", backbone="swin_large_patch4_window12_384", image_size=384, size="large")
    own = dict(model.named_parameters())
    assert set(own) == set(state)
    assert {n for n in own if own[n].shape != state[n].shape} == set()


def test_from_official__refuses_another_models_names() -> None:
    with pytest.raises(CheckpointError, match=r"sem_seg_mystery\.weight"):
        from_official({"sem_seg_mystery.weight": torch.zeros(1)})


def test_build_model__has_the_published_size() -> None:
    with torch.device("meta"):
        model = build_model("mask_dino")
    assert sum(p.numel() for p in model.parameters()) == 52_111_124
