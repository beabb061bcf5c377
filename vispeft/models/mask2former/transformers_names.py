"""Names of tensors in directories of transformers' Mask2Former, and ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from vispeft.errors import CheckpointError
from vispeft.models.detectron2_names import unpacked
from vispeft.models.tensor_names import NamePairs, to_ours, to_theirs, within

_ENCODER = "model.pixel_level_module.encoder."
_PIXEL_DECODER = "model.pixel_level_module.decoder."
# ours -> theirs
_HEADS: NamePairs = {
    "decoder.class_embed.": "class_predictor.",
    **within(
        {
            "input_proj.": "input_projections.",
            "level_embed": "level_embed",
            "layers.*.norm1.": "encoder.layers.*.self_attn_layer_norm.",
            "layers.*.norm2.": "encoder.layers.*.final_layer_norm.",
            "layers.*.linear1.": "encoder.layers.*.fc1.",
            "layers.*.linear2.": "encoder.layers.*.fc2.",
            "layers.*.self_attn.": "encoder.layers.*.self_attn.",
            "mask_features.": "mask_projection.",
            "lateral_convs.0.": "adapter_1.",
            "output_convs.0.": "layer_1.",
        },
        "pixel_decoder.",
        _PIXEL_DECODER,
    ),
    **within(
        {
            "query_feat.": "queries_features.",
            "query_embed.": "queries_embedder.",
            "level_embed.": "level_embed.",
            "layers.*.norm1.": "decoder.layers.*.cross_attn_layer_norm.",
            "layers.*.norm2.": "decoder.layers.*.self_attn_layer_norm.",
            "layers.*.norm3.": "decoder.layers.*.final_layer_norm.",
            "layers.*.linear1.": "decoder.layers.*.fc1.",
            "layers.*.linear2.": "decoder.layers.*.fc2.",
            "layers.*.self_attn.": "decoder.layers.*.self_attn.",
            "layers.*.cross_attn.": "decoder.layers.*.cross_attn.",
            "norm.": "decoder.layernorm.",
            "mask_embed.layers.*.": "decoder.mask_predictor.mask_embedder.*.0.",
        },
        "decoder.",
        "model.transformer_module.",
    ),
}
_BLOCK, _SWIN_BLOCK = "backbone.body.layers_*.blocks.*.", f"{_ENCODER}encoder.layers.*.blocks.*."
_SWIN_STEM: NamePairs = {
    "backbone.body.patch_embed.proj.": f"{_ENCODER}embeddings.patch_embeddings.projection.",
    "backbone.body.patch_embed.norm.": f"{_ENCODER}embeddings.norm.",
    # timm puts the patch merging at the start of the next stage
    **{f"backbone.body.layers_{i + 1}.downsample.": f"{_ENCODER}encoder.layers.{i}.downsample." for i in range(3)},
    **{f"backbone.norms.{i}.": f"{_ENCODER}hidden_states_norms.stage{i + 1}." for i in range(4)},
    f"{_BLOCK}norm1.": f"{_SWIN_BLOCK}layernorm_before.",
    f"{_BLOCK}norm2.": f"{_SWIN_BLOCK}layernorm_after.",
}
# of the blocks: names in files, and those of the library's modules since its fifth version
_SWIN_FILE: NamePairs = within(
    {
        **{f"attn.{part}.": f"attention.self.{part}." for part in ("query", "key", "value")},
        "attn.relative_position_bias_table": "attention.self.relative_position_bias_table",
        "attn.proj.": "attention.output.dense.",
        "mlp.fc1.": "intermediate.dense.",
        "mlp.fc2.": "output.dense.",
    },
    _BLOCK,
    _SWIN_BLOCK,
)
_SWIN_MODULES: NamePairs = within(
    {
        **{f"attn.{part}.": f"attention.{part[0]}_proj." for part in ("query", "key", "value")},
        "attn.relative_position_bias_table": "attention.relative_position_bias.relative_position_bias_table",
        "attn.proj.": "attention.o_proj.",
        "mlp.": "mlp.",
    },
    _BLOCK,
    _SWIN_BLOCK,
)
_RESNET: NamePairs = {
    "backbone.body.conv1.": f"{_ENCODER}embedder.embedder.convolution.",
    "backbone.body.bn1.": f"{_ENCODER}embedder.embedder.normalization.",
    **{
        f"backbone.body.layer{i + 1}.*.{ours}.": f"{_ENCODER}encoder.stages.{i}.layers.*.{theirs}."
        for i in range(4)
        for ours, theirs in (
            ("downsample.0", "shortcut.convolution"),
            ("downsample.1", "shortcut.normalization"),
            *((f"conv{j + 1}", f"layer.{j}.convolution") for j in range(3)),
            *((f"bn{j + 1}", f"layer.{j}.normalization") for j in range(3)),
        )
    },
}
_TIMM: NamePairs = {"backbone.body.": f"{_ENCODER}_backbone."}
# ours -> theirs, by the type of the backbone's configuration
_WRITTEN: Mapping[str, NamePairs] = {
    "swin": {**_HEADS, **_SWIN_STEM, **_SWIN_FILE},
    "resnet": {**_HEADS, **_RESNET},
    "timm_backbone": {**_HEADS, **_TIMM},
}
_READ = (*_WRITTEN.values(), _SWIN_MODULES)
# what our modules compute themselves, and a norm that no map passes
_IGNORED = rf"relative_position_index$|^criterion\.|^{re.escape(_ENCODER)}layernorm\."
_SWIN_PARTS = ("query", "key", "value")
_PARTS = (*_SWIN_PARTS, "q_proj", "k_proj", "v_proj")


def is_of_transformers(tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether the names are those of transformers' Mask2Former."""
    return any(name.startswith(_PIXEL_DECODER) for name in tensors)


def from_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return transformers' tensors under our names; packed attention weights are split, those of Swin are packed.

    Raises CheckpointError for a name that is neither known nor known to be redundant.
    """
    renamed: dict[str, Tensor] = {}
    for given, tensor in tensors.items():
        name = given.replace(f"{_ENCODER}swin.", _ENCODER)
        if re.search(_IGNORED, name) is None:
            ours = next((found for pairs in _READ if (found := to_ours(name, pairs))), None)
            renamed.update(unpacked(_known(ours, given), tensor))
    return _packed(renamed, r"(backbone\..*\.attn)\.(?P<part>query|key|value)\.(\w+)", r"\1.qkv.\3")


def to_transformers(tensors: Mapping[str, Tensor], backbone_type: str) -> dict[str, Tensor]:
    """Return our tensors under the names of transformers' files.

    backbone_type: `model_type` of the backbone's configuration: swin, resnet or timm_backbone
    """
    split: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        qkv = re.fullmatch(r"(backbone\..*\.attn)\.qkv\.(weight|bias)", name) if backbone_type == "swin" else None
        if qkv is None:
            split[name] = tensor
        else:
            rows = zip(_SWIN_PARTS, tensor.chunk(3), strict=True)
            split.update({f"{qkv[1]}.{part}.{qkv[2]}": part_rows for part, part_rows in rows})
    pairs = _WRITTEN[backbone_type]
    renamed = {_known(to_theirs(name, pairs), name): tensor for name, tensor in split.items()}
    return _packed(renamed, r"(.*\.cross_attn)\.(?P<part>[qkv]_proj)\.(\w+)", r"\1.in_proj_\3")


def _packed(tensors: Mapping[str, Tensor], pattern: str, together: str) -> dict[str, Tensor]:
    """Return tensors in which each three that `pattern` matches are one, of the name `together`.

    pattern: of their whole names, with q, k or v as the group `part`
    """
    packed: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        found = re.fullmatch(pattern, name)
        if found is None:
            packed[name] = tensor
        else:
            parts.setdefault(found.expand(together), {})[found["part"]] = tensor
    for name, three in parts.items():
        if len(three) < 3:
            raise CheckpointError(f"The checkpoint has only {', '.join(three)} of the three parts of {name}.")
        packed[name] = torch.cat([three[part] for part in sorted(three, key=_PARTS.index)])
    return packed


def _known(translated: str | None, name: str) -> str:
    if translated is None:
        raise CheckpointError(
            f"The tensor {name!r} has no place in Mask2Former; is it another model's checkpoint, or another backbone's?"
        )
    return translated
