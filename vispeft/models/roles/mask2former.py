"""Roles of Mask2Former's own parts; those of its encoder come from the encoder's family."""

from __future__ import annotations

from collections.abc import Mapping

_DEFORMABLE = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
MASK2FORMER: Mapping[str, str] = {
    **{f"deformable.{name}": f"**.{name}" for name in _DEFORMABLE},
    **{f"pixel_decoder.{name}": f"pixel_decoder.layers.*.self_attn.{name}" for name in _DEFORMABLE},
    **{f"decoder.{name}": f"decoder.layers.*.*_attn.{name}" for name in _PROJECTIONS},
    **{f"decoder.self_attn.{name}": f"decoder.layers.*.self_attn.{name}" for name in _PROJECTIONS},
    **{f"decoder.cross_attn.{name}": f"decoder.layers.*.cross_attn.{name}" for name in _PROJECTIONS},
    **{
        f"{part}.{name}": f"{part}.layers.*.{name}"
        for part in ("pixel_decoder", "decoder")
        for name in ("linear1", "linear2")
    },
    # the last map of every attention sublayer: 24 sites in the published models
    "attention_outputs": "**.output_proj | decoder.layers.*.*_attn.out_proj",
    "queries": "decoder.query_feat | decoder.query_embed",
    "heads": "decoder.class_embed | decoder.mask_embed",
    "class_head": "decoder.class_embed",
}
