"""Weights of PMT: our own whole models, and the official checkpoints, which hold the decoder alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from vispeft.models.eomt.names import ENCODER, OFFICIAL_HEADS, class_head_of, from_official, is_official
from vispeft.models.plain_mask.weights import load_own
from vispeft.models.tensor_names import NamePairs, within
from vispeft.models.weight_files import read_state

_BLOCK = {
    "norm1.": "norm1.",
    "norm2.": "norm2.",
    "self_attn.q_proj.": "attention.q_proj.",
    "self_attn.k_proj.": "attention.k_proj.",
    "self_attn.v_proj.": "attention.v_proj.",
    "self_attn.out_proj.": "attention.o_proj.",
    "scale1": "layer_scale1.lambda1",
    "scale2": "layer_scale2.lambda1",
    "linear1.": "mlp.up_proj.",
    "linear2.": "mlp.down_proj.",
}
_OFFICIAL: NamePairs = {
    **{ours: f"decoder.{theirs}" for ours, theirs in OFFICIAL_HEADS.items()},
    **within(_BLOCK, "decoder.blocks.*.", "decoder.blocks.*."),
    "decoder.norm.": "decoder.decoder_norm.",
    "decoder.laterals.*.norm.": "bn.*.",
    "decoder.laterals.*.fc1.": "decoder.lateral_projections.*.0.",
    "decoder.laterals.*.fc2.": "decoder.lateral_projections.*.2.",
    "decoder.laterals.*.scale": "decoder.scalers.*",
}


def load_pmt(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Load a whole model's tensors, in place, by our names or the official ones.

    A class head of another size is fitted. Official checkpoints without an encoder, as the published ones are, leave
    the model's own. Raises CheckpointError naming the tensors that are missing, unknown or of another shape; the model
    is unchanged then.

    source: name of the file, for errors
    """
    own = model.state_dict()
    given = from_official(tensors, own, _OFFICIAL) if is_official(tensors) else dict(tensors)
    if is_official(tensors) and not any(name.startswith(ENCODER) for name in given):
        given |= {name: tensor for name, tensor in own.items() if name.startswith(ENCODER)}
    load_own(model, given, source=source)


def num_classes_in(path: str | Path) -> int | None:
    """Return the number of classes that a weights file has a head for; None where it has none of PMT's.

    Raises CheckpointError where the file is missing, not readable or holds no tensors.
    """
    rows = class_head_of(read_state(path), "network.decoder.class_head.weight")
    return None if rows is None else len(rows) - 1
