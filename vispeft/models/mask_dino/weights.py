"""Weights of Mask DINO: our own checkpoints, the official ones by their names, and class heads of another size."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from vispeft.errors import CheckpointError
from vispeft.models.class_head import ClassHead, fit_class_head
from vispeft.models.detectron2_names import (
    BACKBONE_NAMES,
    PIXEL_DECODER,
    PIXEL_DECODER_NAMES,
    PREDICTOR,
    rename,
    unpacked,
)
from vispeft.models.weight_files import load_state, read_state

CLASS_HEAD = ClassHead(linears=("decoder.class_embed",), embeddings=("decoder.label_embed",))

# official name -> ours, tried in order; the first that matches rewrites the name
_OFFICIAL_NAMES: tuple[tuple[str, str], ...] = (
    *PIXEL_DECODER_NAMES,
    (r"^sem_seg_head\.predictor\.decoder\.(layers|ref_point_head)\.", r"decoder.\1."),
    (r"^sem_seg_head\.predictor\.decoder_norm\.", "decoder.norm."),
    (r"^sem_seg_head\.predictor\.label_enc\.", "decoder.label_embed."),
    (r"^sem_seg_head\.predictor\._bbox_embed\.", "decoder.bbox_embed."),
    (r"^sem_seg_head\.predictor\.(enc_output|enc_output_norm|class_embed|mask_embed)\.", r"decoder.\1."),
    *BACKBONE_NAMES,
)
# shared copies of the same tensor, and what our modules compute themselves
_IGNORED = (
    r"^sem_seg_head\.predictor\.decoder\.(norm|bbox_embed)\.",
    r"^sem_seg_head\.predictor\.bbox_embed\.",
    r"relative_position_index$",
    r"^criterion\.",
    r"^pixel_(mean|std)$",
)


def is_official(state: Mapping[str, Tensor]) -> bool:
    """Tell whether the names are those of the official Mask DINO checkpoints."""
    return any(name.startswith((PIXEL_DECODER, PREDICTOR)) for name in state)


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return official Mask DINO tensors under our names; packed self-attention weights are split into q, k and v.

    Raises CheckpointError for a name that is neither known nor known to be redundant.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if any(re.search(pattern, name) for pattern in _IGNORED):
            continue
        renamed.update(unpacked(rename(name, _OFFICIAL_NAMES, family="Mask DINO"), tensor))
    return renamed


def load_mask_dino(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Load a whole model's tensors, in place, by our own names or by those of the official checkpoints.

    A class head of another size is fitted (see `fit_class_head`). Raises CheckpointError naming the tensors that are
    missing, unknown or of another shape; the model is unchanged then.

    source: name of the file, for errors
    """
    if not any(re.search(r"(^|\.)(pixel_)?decoder\.", name) for name in tensors):
        raise CheckpointError(
            f"{source} holds no decoder, so it is not a whole model but, as it seems, the weights of a backbone alone "
            f"(such as {next(iter(tensors))}). Load those by `backbone_weights={source}`, together with "
            "`backbone` and without `weights`."
        )
    own = from_official(tensors) if is_official(tensors) else tensors
    num_classes = len(model.get_parameter("decoder.class_embed.weight"))
    load_state(model, fit_class_head(own, CLASS_HEAD, num_classes), source=source)


def num_classes_in(path: str | Path) -> int | None:
    """Return the number of classes that a weights file has a head for; None where it has none of Mask DINO's.

    Raises CheckpointError where the file is missing, not readable or holds no tensors.
    """
    state = read_state(path)
    name = f"{PREDICTOR}class_embed.weight" if is_official(state) else "decoder.class_embed.weight"
    return len(state[name]) if name in state else None
