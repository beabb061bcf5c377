"""Tensor names of EoMT elsewhere: in checkpoints of the official repository, and in directories of transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from vispeft.errors import CheckpointError
from vispeft.models.backbones.transformers_vit import VitNames
from vispeft.models.tensor_names import NamePairs, to_ours, to_theirs

ENCODER = "encoder.body."
# ours -> official, after its prefix `network.`
OFFICIAL_HEADS: NamePairs = {
    "queries": "q.weight",
    "predictor.class_embed.": "class_head.",
    "predictor.mask_embed.layers.0.": "mask_head.0.",
    "predictor.mask_embed.layers.1.": "mask_head.2.",
    "predictor.mask_embed.layers.2.": "mask_head.4.",
    "predictor.upscale.*.": "upscale.*.",
}
_TRANSFORMERS_HEADS: NamePairs = {
    "queries": "query.weight",
    "predictor.class_embed.": "class_predictor.",
    "predictor.mask_embed.layers.0.": "mask_head.fc1.",
    "predictor.mask_embed.layers.1.": "mask_head.fc2.",
    "predictor.mask_embed.layers.2.": "mask_head.fc3.",
    "predictor.upscale.*.norm.": "upscale_block.block.*.layernorm2d.",
    "predictor.upscale.*.": "upscale_block.block.*.",
}
# what our modules compute themselves, or hold as plain numbers
_IGNORED = r"^(network\.)?((encoder\.)?pixel_(mean|std)|(decoder\.)?attn_mask_probs)$|^criterion\.|^metrics\.|inv_freq$"
_OFFICIAL_ENCODER = "encoder.backbone."
# DINOv3 in the official code is that of transformers, with two of its parts renamed
_OFFICIAL_DINOV3 = ((r"^patch_embed\.", "embeddings."), (r"^blocks\.", "layers."), (r"^norm\.", "layernorm."))


def own_names(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of EoMT by our names, whichever of the three layouts they are in.

    Raises CheckpointError naming a tensor that has no place in EoMT.

    own: the model's own tensors
    """
    if is_official(tensors):
        return from_official(tensors, own)
    if "query.weight" in tensors:
        return _from_transformers(tensors, own)
    return dict(tensors)


def class_head_of(tensors: Mapping[str, Tensor], official: str = "network.class_head.weight") -> Tensor | None:
    """Return the class rows [K + 1, C] of a checkpoint in any of the layouts; None where it has none.

    official: name of the rows in official checkpoints
    """
    names = ("predictor.class_embed.weight", official, "class_predictor.weight")
    by_name = {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}
    return next((by_name[name] for name in names if name in by_name), None)


def is_official(tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether the names are those of the official repository."""
    return any(name.startswith("network.") for name in tensors)


def from_official(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], heads: NamePairs = OFFICIAL_HEADS
) -> dict[str, Tensor]:
    """Return official tensors under our names. heads: pairs of the parts beside the encoder"""
    renamed: dict[str, Tensor] = {}
    encoder: dict[str, Tensor] = {}
    for name, tensor in unfused(tensors).items():
        # compiled modules have this in their tensors' names
        official = name.replace("_orig_mod.", "")
        if re.search(_IGNORED, official):
            continue
        official = official.removeprefix("network.")
        if official.startswith(_OFFICIAL_ENCODER):
            encoder[official.removeprefix(_OFFICIAL_ENCODER)] = tensor
        else:
            renamed[_known(to_ours(official, heads), name)] = tensor
    return renamed | {f"{ENCODER}{name}": tensor for name, tensor in _encoder_from_official(encoder, own).items()}


def to_transformers(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our tensors under the names of transformers."""
    heads = {name: tensor for name, tensor in own.items() if not name.startswith(ENCODER)}
    renamed = {_known(to_theirs(name, _TRANSFORMERS_HEADS), name): tensor for name, tensor in heads.items()}
    return renamed | VitNames.of(encoder_of(own)).to_transformers()


def encoder_of(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the encoder's tensors under the names of timm."""
    return {name.removeprefix(ENCODER): tensor for name, tensor in own.items() if name.startswith(ENCODER)}


def unfused(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return official tensors with q, k and v apart, as they are before the official code joins them.

    Keys have no bias; where they are joined with the others, it is zero.
    """
    split: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        start, joined, kind = name.partition("attention.qkv_proj.")
        if not joined:
            split[name] = tensor
            continue
        for part, chunk in zip("qkv", tensor.chunk(3), strict=True):
            if part != "k" or kind != "bias" or chunk.any():
                split[f"{start}attention.{part}_proj.{kind}"] = chunk
    return split


def _encoder_from_official(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    # others than DINOv3 are models of timm in the official code too
    if "patch_embed.cls_token" not in tensors:
        return tensors
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, replacement in _OFFICIAL_DINOV3:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return VitNames.of(encoder_of(own)).from_transformers(renamed)


def _from_transformers(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    encoder: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if re.search(_IGNORED, name):
            continue
        ours = to_ours(name, _TRANSFORMERS_HEADS)
        if ours is None:
            encoder[name] = tensor
        else:
            renamed[ours] = tensor
    named = VitNames.of(encoder_of(own)).from_transformers(encoder)
    return renamed | {f"{ENCODER}{name}": tensor for name, tensor in named.items()}


def _known(translated: str | None, name: str) -> str:
    if translated is None:
        raise CheckpointError(f"The tensor {name!r} has no place in EoMT; is it of another model?")
    return translated
