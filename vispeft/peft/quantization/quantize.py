"""Quantisation of a model's frozen weights, in place, and the way back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft.inject import attached, is_injected
from vispeft.peft.quantization.kinds import frozen_weight, kind_of
from vispeft.peft.quantization.maps import QUANTIZED, quantize_map
from vispeft.peft.quantization.plain import make_plain
from vispeft.peft.targets import Names, Roles
from vispeft.peft.wrappers import unwrapped


def quantize(model: nn.Module, bits: int = 8, *, skip: Sequence[str] = (), roles: Roles | None = None) -> None:
    """Keep the weights of nn.Linear and nn.Conv2d modules in 8 or 4 bits, in place. Call it before `inject`.

    Codes are of 8 bits with a scale for each output, or NormalFloat of 4 bits with a scale for each 64 values. Modules
    of subclasses and weights that several modules share stay as they are.

    skip: patterns of modules or parameters that stay as they are, such as those that a plan trains in full
    roles: places of this model by the names that patterns write as `@role`
    """
    if bits not in (8, 4):
        raise PlanError(f"`bits` must be 8 or 4, but is {bits}.")
    model = unwrapped(model)
    if attached(model) or is_injected(model):
        raise PlanError("The model has a plan already. Call `quantize` before `inject`, or `remove` first.")
    names = Names(model)
    skipped = {id(names.parameters[name]) for pattern in skip for name in names.trained(pattern, roles)}
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is None or id(weight) in skipped or owners[id(weight)] > 1 or not _is_served(module, weight):
            continue
        quantize_map(module, bits)


def dequantize(model: nn.Module) -> None:
    """Turn every quantised map of a model without deltas into a plain one with the values of its codes, in place."""
    if attached(model):
        raise PlanError("The model has deltas. Call `merge` or `remove` first.")
    for module in unwrapped(model).modules():
        if kind_of(module) is not None:
            assert isinstance(module, nn.Linear | nn.Conv2d)
            make_plain(module, frozen_weight(module))


def _is_served(module: nn.Module, weight: Tensor) -> bool:
    """Return True for a module that is a plain map of a kind that has codes."""
    is_plain = type(module) in QUANTIZED and "forward" not in vars(module) and type(weight) is nn.Parameter
    has_values = weight.is_floating_point() and weight.numel() > 0 and not weight.is_meta
    has_numbers = not isinstance(module, nn.Conv2d) or (
        module.padding_mode == "zeros" and type(module.padding) is tuple
    )
    return is_plain and has_values and has_numbers
