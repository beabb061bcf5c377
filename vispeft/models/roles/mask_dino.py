"""Roles of Mask DINO's own parts; those of its encoder come from the encoder's family."""

from __future__ import annotations

from collections.abc import Mapping

_DEFORMABLE = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
MASK_DINO: Mapping[str, str] = {
    **{f"deformable.{name}": f"**.{name}" for name in _DEFORMABLE},
    **{f"pixel_decoder.{name}": f"pixel_decoder.layers.*.self_attn.{name}" for name in _DEFORMABLE},
    **{f"decoder.{name}": f"decoder.layers.*.cross_attn.{name}" for name in _DEFORMABLE},
    **{f"decoder.{name}": f"decoder.layers.*.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")},
    **{
        f"{part}.{name}": f"{part}.layers.*.{name}"
        for part in ("pixel_decoder", "decoder")
        for name in ("linear1", "linear2")
    },
    # the last map of every attention sublayer: 24 sites in the published R50 model
    "attention_outputs": "**.output_proj | decoder.layers.*.self_attn.out_proj",
    "heads": "decoder.class_embed | decoder.label_embed | decoder.mask_embed | decoder.bbox_embed",
    "class_head": "decoder.class_embed | decoder.label_embed",
}

HEADS_WITHOUT_MASKS = "decoder.class_embed | decoder.label_embed | decoder.bbox_embed"
"""Role `heads` of a model of boxes alone."""
