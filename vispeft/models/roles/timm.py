"""Roles of the encoders in timm models: the families of all kinds, and their feature backbones."""

from __future__ import annotations

from torch import nn

from vispeft.models.roles.placement import Patterns, module_and_parameter_names, placed_pattern, prefixed
from vispeft.models.roles.timm_convnets import CONVNETS
from vispeft.models.roles.timm_hybrids import HYBRIDS
from vispeft.models.roles.timm_transformers import TRANSFORMERS, blocks_at

# module that defines models of timm's registry -> where they keep the usual parts
FAMILIES: dict[str, Patterns] = {
    **{
        f"timm.models.{family}": patterns
        for table in (TRANSFORMERS, HYBRIDS, CONVNETS)
        for family, patterns in table.items()
    },
    # our own: the ViT behind a convolutional network, whose stages are `blocks` too
    "vispeft.models.backbones.hybrid": blocks_at("model.blocks.*"),
}


def encoder_roles(family: str, model: nn.Module) -> dict[str, str]:
    """Return the roles `encoder.*` of a timm model that name something; none for a family that is not in `FAMILIES`.

    In families whose attention reads `qkv.weight` without calling `qkv` (BEiT, Swin V2, EVA-02), `encoder.qkv` is that
    parameter.

    family: name of the timm module that defines the model
    model: itself, or a feature backbone of timm's, which has the model inside it or its children under flattened names
    """
    names = module_and_parameter_names(model)
    reads_weight = any(name.endswith("attn.q_bias") for name in names)
    roles = {}
    for role, pattern in FAMILIES.get(family, {}).items():
        named = placed_pattern(pattern, names) or placed_pattern(_flattened(pattern), names)
        if named:
            roles[f"encoder.{role}"] = f"{named}.weight" if reads_weight and role == "qkv" else named
    return roles


def inner_encoder_roles(model: nn.Module) -> dict[str, str]:
    """Return the roles `encoder.*` of a timm model, or of the first part of another model that timm defines."""
    for name, module in model.named_modules():
        roles = encoder_roles(type(module).__module__, module)
        if roles:
            return prefixed(roles, name)
    return {}


def _flattened(pattern: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """Return the pattern in a list of features, which flattens the first level of names: `layers_0`, not `layers.0`."""
    if isinstance(pattern, tuple):
        return tuple(str(_flattened(each)) for each in pattern)
    parts = (each.strip() for each in pattern.split("|"))
    return " | ".join(part.replace(".*", "_*", 1) if part.split(".")[1:2] == ["*"] else part for part in parts)
