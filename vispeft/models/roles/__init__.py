"""Roles: names for the parts of a model, as data. `@encoder.qkv` means the same in every family that has one.

A role's pattern is in the pattern language of `vispeft.peft`; `first | second` means both.
"""

from __future__ import annotations

from torch import nn

from vispeft.models.base import SegmentationModel
from vispeft.models.roles import timm, torchvision, transformers
from vispeft.models.roles.placement import Patterns, family_roles

_ENCODERS: dict[str, Patterns] = {**transformers.ENCODERS, **torchvision.ENCODERS}
_MODELS: dict[str, Patterns] = {**transformers.MODELS, **torchvision.MODELS}


def roles_for(model: nn.Module) -> dict[str, str]:
    """Return role names (without `@`) with their patterns, of our models, timm's, transformers' and torchvision's.

    Of another model, those of the first part that one of these libraries defines; none if there is no such part.
    """
    if isinstance(model, SegmentationModel):
        return dict(model.roles())
    encoder = family_roles(model, _ENCODERS) or timm.inner_encoder_roles(model)
    return {**encoder, **family_roles(model, _MODELS)}
