"""Names of tensors in directories of transformers' Mask2Former, and ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vispeft.errors import CheckpointError
from vispeft.models.detectron2_names import unpacked

_Pairs = Sequence[tuple[str, str]]

_ENCODER = "model.pixel_level_module.encoder."
_PIXEL_DECODER = "model.pixel_level_module.decoder."
_DECODER = "model.transformer_module."
# their name and ours; `#` is a number. The longer of two names with the same start is first.
_HEAD: _Pairs = (
    (f"{_PIXEL_DECODER}input_projections.", "pixel_decoder.input_proj."),
    (f"{_PIXEL_DECODER}level_embed", "pixel_decoder.level_embed"),
    (f"{_PIXEL_DECODER}encoder.layers.#.self_attn_layer_norm.", "pixel_decoder.layers.#.norm1."),
    (f"{_PIXEL_DECODER}encoder.layers.#.final_layer_norm.", "pixel_decoder.layers.#.norm2."),
    (f"{_PIXEL_DECODER}encoder.layers.#.fc1.", "pixel_decoder.layers.#.linear1."),
    (f"{_PIXEL_DECODER}encoder.layers.#.fc2.", "pixel_decoder.layers.#.linear2."),
    (f"{_PIXEL_DECODER}encoder.layers.#.self_attn.", "pixel_decoder.layers.#.self_attn."),
    (f"{_PIXEL_DECODER}mask_projection.", "pixel_decoder.mask_features."),
    (f"{_PIXEL_DECODER}adapter_1.", "pixel_decoder.lateral_convs.0."),
    (f"{_PIXEL_DECODER}layer_1.", "pixel_decoder.output_convs.0."),
    (f"{_DECODER}queries_features.", "decoder.query_feat."),
    (f"{_DECODER}queries_embedder.", "decoder.query_embed."),
    (f"{_DECODER}level_embed.", "decoder.level_embed."),
    (f"{_DECODER}decoder.layers.#.cross_attn_layer_norm.", "decoder.layers.#.norm1."),
    (f"{_DECODER}decoder.layers.#.self_attn_layer_norm.", "decoder.layers.#.norm2."),
    (f"{_DECODER}decoder.layers.#.final_layer_norm.", "decoder.layers.#.norm3."),
    (f"{_DECODER}decoder.layers.#.fc1.", "decoder.layers.#.linear1."),
    (f"{_DECODER}decoder.layers.#.fc2.", "decoder.layers.#.linear2."),
    (f"{_DECODER}decoder.layers.#.self_attn.", "decoder.layers.#.self_attn."),
    (f"{_DECODER}decoder.layers.#.cross_attn.", "decoder.layers.#.cross_attn."),
    (f"{_DECODER}decoder.layernorm.", "decoder.norm."),
    (f"{_DECODER}decoder.mask_predictor.mask_embedder.#.0.", "decoder.mask_embed.layers.#."),
    ("class_predictor.", "decoder.class_embed."),
)
_BLOCK, _OUR_BLOCK = f"{_ENCODER}encoder.layers.#.blocks.#.", "backbone.body.layers_#.blocks.#."
_SWIN: _Pairs = (
    (f"{_ENCODER}embeddings.patch_embeddings.projection.", "backbone.body.patch_embed.proj."),
    (f"{_ENCODER}embeddings.norm.", "backbone.body.patch_embed.norm."),
    # timm puts the patch merging at the start of the next stage
    *(
        (f"{_ENCODER}encoder.layers.{i}.downsample.", f"backbone.body.layers_{i + 1}.downsample.")
        for i in range(3)
    ),
    *((f"{_BLOCK}attention.self.{name}.", f"{_OUR_BLOCK}attn.{name}.") for name in ("query", "key", "value")),
    (f"{_BLOCK}attention.self.relative_position_bias_table", f"{_OUR_BLOCK}attn.relative_position_bias_table"),
    (f"{_BLOCK}attention.output.dense.", f"{_OUR_BLOCK}attn.proj."),
    (f"{_BLOCK}intermediate.dense.", f"{_OUR_BLOCK}mlp.fc1."),
    (f"{_BLOCK}output.dense.", f"{_OUR_BLOCK}mlp.fc2."),
    (f"{_BLOCK}layernorm_before.", f"{_OUR_BLOCK}norm1."),
    (f"{_BLOCK}layernorm_after.", f"{_OUR_BLOCK}norm2."),
    *((f"{_ENCODER}hidden_states_norms.stage{i + 1}.", f"backbone.norms.{i}.") for i in range(4)),
)
_RESNET: _Pairs = (
    (f"{_ENCODER}embedder.embedder.convolution.", "backbone.body.conv1."),
    (f"{_ENCODER}embedder.embedder.normalization.", "backbone.body.bn1."),
    *(
        (f"{_ENCODER}encoder.stages.{i}.layers.#.{theirs}.", f"backbone.body.layer{i + 1}.#.{ours}.")
        for i in range(4)
        for theirs, ours in (
            ("shortcut.convolution", "downsample.0"),
            ("shortcut.normalization", "downsample.1"),
            *((f"layer.{j}.convolution", f"conv{j + 1}") for j in range(3)),
            *((f"layer.{j}.normalization", f"bn{j + 1}") for j in range(3)),
        )
    ),
)
_TIMM: _Pairs = ((f"{_ENCODER}_backbone.", "backbone.body."),)
# what our modules compute themselves, and a norm that no map passes
_IGNORED = rf"relative_position_index$|^criterion\.|^{re.escape(_ENCODER)}(swin\.)?layernorm\."
_SWIN_PARTS = ("query", "key", "value")
_ORDER = (*_SWIN_PARTS, "q_proj", "k_proj", "v_proj")


def is_of_transformers(tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether the names are those of transformers' Mask2Former."""
    return any(name.startswith(_PIXEL_DECODER) for name in tensors)


def from_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return transformers' tensors under our names; packed attention weights are split, those of Swin are packed.

    Raises CheckpointError for a name that is neither known nor known to be redundant.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if re.search(_IGNORED, name) is None:
            renamed.update(unpacked(_rename(name, (*_HEAD, *_SWIN, *_RESNET, *_TIMM)), tensor))
    return _packed(renamed, r"(backbone\..*\.attn)\.(?P<part>query|key|value)\.(\w+)", r"\1.qkv.\3")


def to_transformers(tensors: Mapping[str, Tensor], *, is_swin: bool) -> dict[str, Tensor]:
    """Return our tensors under the names of transformers' files.

    is_swin: the backbone is written as transformers' Swin Transformer, else as a model of timm
    """
    backbone = _SWIN if is_swin else _TIMM
    pairs = [(ours, theirs) for theirs, ours in (*_HEAD, *backbone)]
    split: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        qkv = re.fullmatch(r"(backbone\..*\.attn)\.qkv\.(weight|bias)", name) if is_swin else None
        if qkv is None:
            split[name] = tensor
        else:
            split.update({f"{qkv[1]}.{part}.{qkv[2]}": rows for part, rows in zip(_SWIN_PARTS, tensor.chunk(3), strict=True)})
    renamed = {_rename(name, pairs): tensor for name, tensor in split.items()}
    return _packed(renamed, r"(.*\.cross_attn)\.(?P<part>[qkv]_proj)\.(\w+)", r"\1.in_proj_\3")


def _packed(tensors: Mapping[str, Tensor], pattern: str, together: str) -> dict[str, Tensor]:
    """Return tensors in which each three that `pattern` matches are one, of the name `together`.

    pattern: of their whole names, with q, k and v as the group `part`, in the order of its alternatives
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
        packed[name] = torch.cat([three[part] for part in sorted(three, key=_ORDER.index)])
    return packed


def _rename(name: str, pairs: _Pairs) -> str:
    for given, wanted in pairs:
        found = re.match(re.escape(given).replace(r"\#", r"(\d+)"), name)
        if found is not None:
            numbers = iter(found.groups())
            return re.sub("#", lambda _: next(numbers), wanted) + name[found.end() :]
    raise CheckpointError(
        f"The tensor {name!r} has no place in Mask2Former; is it another model's checkpoint, or another backbone's?"
    )
