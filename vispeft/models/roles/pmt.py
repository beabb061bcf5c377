"""Roles of PMT's own parts; those of its encoder come from the encoder's family."""

from __future__ import annotations

from collections.abc import Mapping

_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")

PMT: Mapping[str, str] = {
    "decoder": "queries | decoder | predictor",
    "decoder.blocks": "decoder.blocks.*",
    **{f"decoder.{name}": f"decoder.blocks.*.self_attn.{name}" for name in _ATTENTION},
    **{f"decoder.{name}": f"decoder.blocks.*.{name}" for name in ("linear1", "linear2")},
    "laterals": "decoder.laterals",
    "laterals.fc1": "decoder.laterals.*.fc1",
    "laterals.fc2": "decoder.laterals.*.fc2",
    "queries": "queries",
    "upscale": "predictor.upscale",
    "heads": "predictor.class_embed | predictor.mask_embed",
    "class_head": "predictor.class_embed",
    # parts without weights in an encoder's checkpoint
    "new": "queries | decoder | predictor",
}
