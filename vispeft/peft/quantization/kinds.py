"""Kinds of quantised maps, ours and those of other libraries: the values of their weights, and what they cannot do.

Libraries are known by the full names of their classes, so that none of them has to be loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft.quantization.maps import QuantizedConv2d, QuantizedLinear


@dataclass(frozen=True)
class Kind:
    """One kind of quantised map.

    name: of the quantisation, for messages and adapter files
    weight: returns the values [out, ...] that the codes stand for
    unsupported_reason: returns the reason why such a map cannot be part of an injected model; None if it can
    prepare: changes how the map computes, so that it passes gradients
    """

    name: Callable[[Any], str]
    weight: Callable[[Any], Tensor]
    unsupported_reason: Callable[[Any], str | None] = lambda _: None
    prepare: Callable[[Any], None] = lambda _: None


def _own_name(module: QuantizedLinear | QuantizedConv2d) -> str:
    return "int8" if module.bits == 8 else "nf4"


def _own_weight(module: QuantizedLinear | QuantizedConv2d) -> Tensor:
    return module.weight


def _torchao_name(module: nn.Linear) -> str:
    return f"torchao {type(module.weight).__name__}"


# `Any`: attributes of classes that are not installed everywhere
def _torchao_weight(module: Any) -> Tensor:
    weight: Tensor = module.weight.dequantize()
    return weight


def _torchao_reason(module: Any) -> str | None:
    if module.weight.act_quant_kwargs is not None:
        return "it quantises its input as well and passes no gradient to it. Use a configuration for weights only"
    return None


def _unknown_torchao_reason(module: nn.Linear) -> str:
    return (
        f"a {type(module.weight).__name__} of torchao is not known to pass right gradients. Use "
        "Int8WeightOnlyConfig or Float8WeightOnlyConfig"
    )


def _int8_weight(module: Any) -> Tensor:
    codes, scales = (
        (module.weight.CB, module.weight.SCB)
        if module.weight.CB is not None
        else (module.weight.data, module.state.SCB)
    )
    dtype = torch.float32 if module.bias is None else module.bias.dtype
    weight: Tensor = (codes.float() * scales.float().view(-1, 1) / 127).to(dtype)
    return weight


def _int8_reason(module: Any) -> str | None:
    if module.weight.dtype != torch.int8:
        return "it is not quantised yet. Give it `has_fp16_weights=False` and move the model to its device first"
    if module.state.threshold:
        return f"its `threshold` is {module.state.threshold}, with which it computes more than `W x`. Set it to 0"
    return None


def _four_bit_weight(module: Any) -> Tensor:
    functional = import_module("bitsandbytes.functional")
    weight: Tensor = functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
    return weight


def _four_bit_reason(module: Any) -> str | None:
    if module.weight.quant_state is None:
        return "it is not quantised yet. Move the model to its device first"
    return None


def _four_bit_prepare(module: Any) -> None:
    """Switch off the kernel for CPUs with AVX512-BF16: it packs the codes anew in eval mode and passes no gradient."""
    module.support_avx512bf16_for_cpu = False
    # unpacks the codes where an earlier call has packed them
    module.state_dict()


_OWN = Kind(_own_name, _own_weight)
_INT8 = Kind(lambda _: "bitsandbytes int8", _int8_weight, _int8_reason)
_FOUR_BIT = Kind(
    lambda module: f"bitsandbytes {module.weight.quant_type}", _four_bit_weight, _four_bit_reason, _four_bit_prepare
)
_TORCHAO = Kind(_torchao_name, _torchao_weight, _torchao_reason)
_UNKNOWN_TORCHAO = Kind(_torchao_name, _torchao_weight, _unknown_torchao_reason)

_MODULES = {
    "vispeft.peft.quantization.maps.QuantizedLinear": _OWN,
    "vispeft.peft.quantization.maps.QuantizedConv2d": _OWN,
    "bitsandbytes.nn.modules.Linear8bitLt": _INT8,
    "bitsandbytes.nn.modules.Linear4bit": _FOUR_BIT,
    "bitsandbytes.nn.modules.LinearFP4": _FOUR_BIT,
    "bitsandbytes.nn.modules.LinearNF4": _FOUR_BIT,
}

# subclasses of tensors that torchao puts in the place of the weight of an nn.Linear
_TENSORS = {"torchao.quantization.Int8Tensor": _TORCHAO, "torchao.quantization.Float8Tensor": _TORCHAO}


def kind_of(module: nn.Module) -> Kind | None:
    """Return the kind of a quantised map; None for any other module."""
    kind = _MODULES.get(_full_name(type(module)))
    if kind is not None or not isinstance(module, nn.Linear):
        return kind
    weight = module._parameters.get("weight")
    if weight is None or type(weight) is nn.Parameter or not type(weight).__module__.startswith("torchao."):
        return None
    return _TENSORS.get(_full_name(type(weight)), _UNKNOWN_TORCHAO)


def frozen_weight(module: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Tensor:
    """Return the weight of a map, of a quantised one the values that its codes stand for."""
    kind = kind_of(module)
    return module.weight if kind is None else kind.weight(module)


def num_uncounted(module: nn.Module) -> int:
    """Return the number of weights of a quantised map that are not among its parameters."""
    if kind_of(module) is None:
        return 0
    if isinstance(module, QuantizedLinear | QuantizedConv2d):
        return module.weight_shape.numel()
    assert isinstance(module, nn.Linear)
    return module.in_features * module.out_features - module.weight.numel()


def quantization_of(model: nn.Module) -> str:
    """Return the names of the quantisations in a model, separated by commas; none for a model without."""
    return ", ".join(sorted({kind.name(module) for module in model.modules() if (kind := kind_of(module)) is not None}))


def refuse_unsupported(model: nn.Module) -> None:
    """Refuse a model with a quantised map through which training would fail or get wrong gradients."""
    for name, module in model.named_modules():
        kind = kind_of(module)
        reason = None if kind is None else kind.unsupported_reason(module)
        if kind is not None and reason is not None:
            raise PlanError(f"`{name}` ({kind.name(module)}) cannot be part of a model with deltas: {reason}.")


def prepare(model: nn.Module) -> None:
    """Make the quantised maps of a model pass gradients, in place. Their codes stay as they are."""
    for module in model.modules():
        kind = kind_of(module)
        if kind is not None:
            kind.prepare(module)


def _full_name(kind: type[Any]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
