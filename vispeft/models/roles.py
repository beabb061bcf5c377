"""Roles: names for the places of a model family, as data. `@encoder.qkv` means the same in every family that has one.

A role's pattern is read by the site language of `vispeft.peft`; `first | second` is both.
"""

from __future__ import annotations

from collections.abc import Mapping

import timm
from torch import nn

from vispeft.models.mask_dino.model import MaskDINO

_PLAIN = {
    "blocks": "blocks.*",
    "qkv": "blocks.*.attn.qkv",
    "proj": "blocks.*.attn.proj",
    "fc1": "blocks.*.mlp.fc1",
    "fc2": "blocks.*.mlp.fc2",
}
_LAYERS = {role: f"layers.*.{pattern}" for role, pattern in _PLAIN.items()}
_STAGES = {role: f"stages.*.{pattern}" for role, pattern in _PLAIN.items()}
_RESNET = {"blocks": "layer*.*", **{f"conv{i}": f"layer*.*.conv{i}" for i in (1, 2, 3)}}

# timm module -> where its models keep the usual parts
FAMILIES: dict[str, Mapping[str, str]] = {
    "timm.models.vision_transformer": _PLAIN,
    "timm.models.vision_transformer_sam": _PLAIN,
    "timm.models.deit": _PLAIN,
    "timm.models.eva": _PLAIN,
    "timm.models.beit": _PLAIN,
    "timm.models.hiera": _PLAIN,
    "timm.models.xcit": _PLAIN,
    "timm.models.naflexvit": _PLAIN,
    "timm.models.swin_transformer": _LAYERS,
    "timm.models.swin_transformer_v2": _LAYERS,
    "timm.models.mvitv2": _STAGES,
    "timm.models.tiny_vit": _STAGES,
    "timm.models.convnext": {role: _STAGES[role] for role in ("blocks", "fc1", "fc2")},
    "timm.models.pvt_v2": {
        **{role: _STAGES[role] for role in ("blocks", "proj", "fc1", "fc2")},
        "q": "stages.*.blocks.*.attn.q",
        "kv": "stages.*.blocks.*.attn.kv",
    },
    "timm.models.resnet": _RESNET,
}

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
    # what a timm checkpoint does not bring: train it in full when starting from a backbone's weights alone
    "new": "backbone.pyramid | pixel_decoder | decoder",
}


def roles_for(model: nn.Module) -> dict[str, str]:
    """Role name (without `@`) to site pattern, for our models and the timm families in `FAMILIES`; else empty.

    In families whose attention reads `qkv.weight` without calling `qkv` (BEiT, Swin V2, EVA-02), `encoder.qkv` is
    that parameter.
    """
    if not isinstance(model, MaskDINO):
        return _encoder_roles(type(model).__module__, model)
    backbone = model.backbone
    family = timm.model_entrypoint(backbone.name.split(".")[0]).__module__
    encoder = _encoder_roles(family, backbone)
    if backbone.is_plain:
        roles = {name: f"backbone.body.model.{pattern}" for name, pattern in encoder.items()}
    else:
        # timm's feature lists flatten the first level of names: layers.0 becomes layers_0
        roles = {name: f"backbone.body.{_flattened(pattern, backbone.body)}" for name, pattern in encoder.items()}
    published = {name: pattern for name, pattern in MASK_DINO.items() if name != "new" or backbone.is_plain}
    return {**roles, **published, **({} if backbone.is_plain else {"new": "pixel_decoder | decoder"})}


def _encoder_roles(family: str, model: nn.Module) -> dict[str, str]:
    roles = {f"encoder.{name}": pattern for name, pattern in FAMILIES.get(family, {}).items()}
    reads_weight = any(name.endswith("attn.q_bias") for name, _ in model.named_parameters())
    if reads_weight and "encoder.qkv" in roles:
        roles["encoder.qkv"] += ".weight"
    return roles


def _flattened(pattern: str, body: nn.Module) -> str:
    """`layers.*.x` as `layers_*.x` where the body's children are named so."""
    first = pattern.split(".")[0]
    is_flat = any(name.startswith(f"{first}_") for name, _ in body.named_children())
    return pattern.replace(f"{first}.*", f"{first}_*", 1) if is_flat else pattern
