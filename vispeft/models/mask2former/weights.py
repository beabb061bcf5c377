"""Weights of Mask2Former: our own checkpoints, the official ones by their names, and those of transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from vispeft.errors import CheckpointError
from vispeft.models.class_head import ClassHead, fit_class_head, num_classes_of
from vispeft.models.detectron2_names import (
    BACKBONE_NAMES,
    PIXEL_DECODER,
    PIXEL_DECODER_NAMES,
    PREDICTOR,
    rename,
    unpacked,
)
from vispeft.models.query_rows import fit_query_rows
from vispeft.models.weight_files import load_state, read_state

CLASS_HEAD = ClassHead(linears=("decoder.class_embed",), has_no_object=True)
_QUERY_ROWS = ("decoder.query_feat.weight", "decoder.query_embed.weight")
# official name -> ours
_OFFICIAL_NAMES: tuple[tuple[str, str], ...] = (
    *PIXEL_DECODER_NAMES,
    (
        r"^sem_seg_head\.predictor\.transformer_cross_attention_layers\.(\d+)\.multihead_attn\.",
        r"decoder.layers.\1.cross_attn.",
    ),
    (r"^sem_seg_head\.predictor\.transformer_cross_attention_layers\.(\d+)\.norm\.", r"decoder.layers.\1.norm1."),
    (r"^sem_seg_head\.predictor\.transformer_self_attention_layers\.(\d+)\.norm\.", r"decoder.layers.\1.norm2."),
    (r"^sem_seg_head\.predictor\.transformer_ffn_layers\.(\d+)\.norm\.", r"decoder.layers.\1.norm3."),
    (r"^sem_seg_head\.predictor\.transformer_(?:self_attention|ffn)_layers\.", "decoder.layers."),
    (r"^sem_seg_head\.predictor\.decoder_norm\.", "decoder.norm."),
    # as in the first checkpoints
    (r"^sem_seg_head\.predictor\.static_query\.", "decoder.query_feat."),
    (r"^sem_seg_head\.predictor\.(query_feat|query_embed|level_embed|class_embed|mask_embed)\.", r"decoder.\1."),
    *BACKBONE_NAMES,
)
# what our modules compute themselves
_IGNORED = r"relative_position_index$|^criterion\.|^pixel_(mean|std)$"


def is_official(state: Mapping[str, Tensor]) -> bool:
    """Tell whether the names are those of the official Mask2Former checkpoints."""
    return any(name.startswith((PIXEL_DECODER, PREDICTOR)) for name in state)


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return official Mask2Former tensors under our names; packed attention weights are split into q, k and v.

    Raises CheckpointError for a name that is neither known nor known to be redundant.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if re.search(_IGNORED, name) is None:
            renamed.update(unpacked(rename(name, _OFFICIAL_NAMES, family="Mask2Former"), tensor))
    return renamed


def load_mask2former(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Load a whole model's tensors, in place, by our own names, the official ones or those of transformers.

    A class head of another size is fitted, and further queries start as copies of those of the file. Raises
    CheckpointError naming the tensors that are missing, unknown or of another shape; the model is unchanged then.

    source: name of the file, for errors
    """
    own = _by_own_names(tensors)
    if not any(name.startswith("decoder.") for name in own):
        raise CheckpointError(
            f"{source} holds no decoder, so it is not a whole model but, as it seems, the weights of a backbone alone "
            f"(such as {next(iter(tensors))}). Load those by `backbone_weights={source}`, together with "
            "`backbone` and without `weights`."
        )
    fitted = fit_class_head(own, CLASS_HEAD, num_classes_of(model.state_dict(), CLASS_HEAD))
    num_queries = len(model.get_parameter(_QUERY_ROWS[0]))
    load_state(model, fit_query_rows(fitted, _QUERY_ROWS, num_queries), source=source)


def num_classes_in(path: str | Path) -> int | None:
    """Return the number of classes that a weights file has a head for; None where it has none of Mask2Former's.

    Raises CheckpointError where the file is missing, not readable or holds no tensors.
    """
    return num_classes_of(_by_own_names(read_state(path)), CLASS_HEAD)


def _by_own_names(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return from_official(tensors) if is_official(tensors) else tensors
