"""Roles of timm's model families: where each keeps the usual parts of an encoder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

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
    """Return the roles `encoder.*` of a timm model that name something in it; none for a family not in `FAMILIES`.

    In families whose attention reads `qkv.weight` without calling `qkv` (BEiT, Swin V2, EVA-02), `encoder.qkv` is that
    parameter.

    family: name of the timm module that defines the model
    model: the model, or timm's list of its features, whose children may have flattened names
    """
    names = [*dict(model.named_modules()), *dict(model.named_parameters())]
    patterns = {name: _flattened(pattern, model) for name, pattern in FAMILIES.get(family, {}).items()}
    roles = {f"encoder.{name}": pattern for name, pattern in patterns.items() if _matches_any(pattern, names)}
    if "encoder.qkv" in roles and any(name.endswith("attn.q_bias") for name in names):
        roles["encoder.qkv"] += ".weight"
    return roles


def _flattened(pattern: str, body: nn.Module) -> str:
    """Return `layers.*.x` as `layers_*.x` if the body's children are named so, as in timm's feature backbones."""
    first = pattern.split(".")[0]
    is_flat = any(name.startswith(f"{first}_") for name, _ in body.named_children())
    return pattern.replace(f"{first}.*", f"{first}_*", 1) if is_flat else pattern


def _matches_any(pattern: str, names: Iterable[str]) -> bool:
    """Return True if a pattern, whose `*` is one component of a name or a part of one, matches one of the names."""
    expression = re.compile(re.escape(pattern).replace(r"\*", r"[^.]*"))
    return any(expression.fullmatch(name) for name in names)
