"""Roles of timm's model families: where each keeps the usual parts of an encoder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import nn

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


def encoder_roles(family: str, model: nn.Module) -> dict[str, str]:
    """Return the roles `encoder.*` of a timm model that name something; none for a family that is not in `FAMILIES`.

    In families whose attention reads `qkv.weight` without calling `qkv` (BEiT, Swin V2, EVA-02), `encoder.qkv` is that
    parameter.

    family: name of the timm module that defines the model
    model: itself, or a feature backbone of timm's, which has the model inside it or its children under flattened names
    """
    names = [name for name, _ in model.named_modules()]
    roles = {}
    for role, pattern in FAMILIES.get(family, {}).items():
        named = next((each for each in _placed(pattern) if _names_any(each, names)), None)
        if named is not None:
            roles[f"encoder.{role}"] = named
    reads_weight = any(name.endswith("attn.q_bias") for name, _ in model.named_parameters())
    if reads_weight and "encoder.qkv" in roles:
        roles["encoder.qkv"] += ".weight"
    return roles


def _placed(pattern: str) -> tuple[str, str, str]:
    """Return the pattern of a model itself, and those of its two kinds of feature backbones."""
    first = pattern.split(".")[0]
    # feature lists flatten the first level of names: layers.0 becomes layers_0
    return pattern, f"model.{pattern}", pattern.replace(f"{first}.*", f"{first}_*", 1)


def _names_any(pattern: str, names: Sequence[str]) -> bool:
    """Return True if a pattern, in which `*` is one component or a part of one, matches a name."""
    expression = re.compile("[^.]*".join(re.escape(piece) for piece in pattern.split("*")))
    return any(expression.fullmatch(name) for name in names)
