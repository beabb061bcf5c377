"""Roles: names for the parts of a model, as data. `@encoder.qkv` means the same in every family that has one.

A role's pattern is in the pattern language of `vispeft.peft`; `first | second` means both.
"""

from __future__ import annotations

from torch import nn

from vispeft.models.base import SegmentationModel
from vispeft.models.roles.timm import encoder_roles


def roles_for(model: nn.Module) -> dict[str, str]:
    """Return role names (without `@`) with their patterns, of our models and of timm's; none for other models."""
    if isinstance(model, SegmentationModel):
        return dict(model.roles())
    return encoder_roles(type(model).__module__, model)
