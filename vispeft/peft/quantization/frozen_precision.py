"""Precision in which a model's frozen weights are stored, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from vispeft.peft.quantization.quantize import quantize
from vispeft.peft.targets import Names, Roles

FrozenPrecision = Literal["fp32", "bf16", "int8", "nf4"]

# modules that autocast computes in a half precision anyway, with the names of the parameters that it rounds
_ROUNDED: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("weight", "bias"),
    nn.modules.linear.NonDynamicallyQuantizableLinear: ("weight", "bias"),
    nn.Conv2d: ("weight", "bias"),
    nn.ConvTranspose2d: ("weight", "bias"),
    nn.MultiheadAttention: ("in_proj_weight", "in_proj_bias"),
}


def set_frozen_precision(
    model: nn.Module, precision: FrozenPrecision, *, trained: Sequence[str], roles: Roles | None = None
) -> None:
    """Store the weights of linear maps, convolutions and attention in a lower precision, in place, before `inject`.

    precision: "fp32" leaves all as it is; "bf16" is for models that run under autocast in bf16, which then rounds
        nothing more: outputs are equal to the bit. Norms, embeddings and everything else stay in float32.
    trained: patterns of what will be trained in full, which stays as it is
    roles: places of this model by the names that patterns write as `@role`
    """
    match precision:
        case "fp32":
            return
        case "bf16":
            _round(model, trained, roles)
        case "int8":
            quantize(model, 8, skip=trained, roles=roles)
        case "nf4":
            quantize(model, 4, skip=trained, roles=roles)


def _round(model: nn.Module, trained: Sequence[str], roles: Roles | None) -> None:
    names = Names(model)
    kept = {id(names.parameters[name]) for pattern in trained for name in names.trained(pattern, roles)}
    kept |= {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name not in _ROUNDED.get(type(module), ())
    }
    for module in model.modules():
        for name in _ROUNDED.get(type(module), ()):
            parameter = module._parameters.get(name)
            if parameter is not None and id(parameter) not in kept and parameter.dtype == torch.float32:
                parameter.data = parameter.data.to(torch.bfloat16)
