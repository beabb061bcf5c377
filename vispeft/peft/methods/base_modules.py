"""Frozen maps that are known to be `W x + c`, by the class whose `forward` they run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from vispeft.peft.methods.base import Delta

# classes whose `forward` is linear in weight and bias, row by row of their output; a test compares each numerically
LINEAR_FORWARDS = frozenset(
    {
        "torch.nn.modules.linear.Linear",
        "torch.nn.modules.conv.Conv2d",
        "torch.nn.modules.normalization.LayerNorm",
        "torch.nn.modules.normalization.GroupNorm",
        "torch.nn.modules.batchnorm._BatchNorm",
        "timm.layers.conv2d_same.Conv2dSame",
        "timm.layers.linear.Linear",
        "timm.layers.norm.GroupNorm",
        "timm.layers.norm.GroupNorm1",
        "timm.layers.norm.LayerNorm",
        "timm.layers.norm.LayerNorm2d",
        "timm.layers.norm.LayerNorm2dFp32",
        "timm.layers.norm.LayerNormFp32",
        "torchvision.models.convnext.LayerNorm2d",
        "transformers.models.convnext.modeling_convnext.ConvNextLayerNorm",
        "transformers.models.convnextv2.modeling_convnextv2.ConvNextV2LayerNorm",
        "transformers.models.dinov3_convnext.modeling_dinov3_convnext.DINOv3ConvNextLayerNorm",
        "transformers.models.sam.modeling_sam.SamLayerNorm",
        "transformers.models.sam2.modeling_sam2.Sam2LayerNorm",
        "transformers.models.sam_hq.modeling_sam_hq.SamHQLayerNorm",
        "vispeft.models.layers.pyramid.ChannelNorm",
    }
)

# classes whose `forward` is linear in their weight, for updates of it; a test compares each numerically
LINEAR_IN_WEIGHT_FORWARDS = frozenset(
    {
        "torch.nn.modules.conv.Conv1d",
        "torch.nn.modules.conv.Conv3d",
        "torch.nn.modules.conv.ConvTranspose1d",
        "torch.nn.modules.conv.ConvTranspose2d",
        "torch.nn.modules.conv.ConvTranspose3d",
        "torch.nn.modules.sparse.Embedding",
    }
)

# classes of norms with an activation and a dropout as children: linear where all children are nn.Identity
LINEAR_UNLESS_ACTIVATED = frozenset(
    {
        "timm.layers.norm_act.BatchNormAct2d",
        "timm.layers.norm_act.GroupNormAct",
        "timm.layers.norm_act.LayerNormAct",
        "timm.layers.norm_act.LayerNormAct2d",
    }
)

# classes that are linear in the weight that their codes stand for
QUANTIZED_FORWARDS = frozenset(
    {
        "bitsandbytes.nn.modules.Linear4bit",
        "bitsandbytes.nn.modules.Linear8bitLt",
        "vispeft.peft.quantization.maps.QuantizedConv2d",
        "vispeft.peft.quantization.maps.QuantizedLinear",
    }
)

# maps whose weight rows and bias belong to the features of their output, so that a linear delta merges into them
_MERGING_BASES = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.BatchNorm2d, nn.GroupNorm)

# maps that only updates of the whole weight are attached to, since they have no known width
_MERGING_BASES_OF_UPDATES = (
    *(nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    nn.Embedding,
)

_MERGING_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Return True for an nn.Linear that runs torch's own `forward` on a weight of torch's own type."""
    return type(module) is nn.Linear and "forward" not in vars(module) and type(module.weight) in (nn.Parameter, Tensor)


def has_backward_hooks(module: nn.Module) -> bool:
    """Return True for a module whose hooks are to see the gradients of its own inputs and outputs."""
    return bool(module._backward_hooks or module._backward_pre_hooks)


def merge_unsupported_reason(module: nn.Module, weights: dict[str, Tensor]) -> str | None:
    """Return the reason why a map is not known to be `W x + c` with plain weights, as a clause; None if it is.

    weights: its parameters of that name, among them those that deltas of ours stand before
    """
    kind = type(module).__name__
    if not isinstance(module, (*_MERGING_BASES, *_MERGING_BASES_OF_UPDATES)):
        return f"a {kind} has no weight and bias that belong to its outputs"
    if "forward" in vars(module):
        return "its `forward` was replaced by another library or by hand"
    owners = set(_owners(module))
    if not owners <= LINEAR_FORWARDS | LINEAR_IN_WEIGHT_FORWARDS | LINEAR_UNLESS_ACTIVATED | QUANTIZED_FORWARDS:
        return f"a {kind} has a `forward` of its own, which may do more than `W x + c`"
    if owners & LINEAR_UNLESS_ACTIVATED and not all(isinstance(x, Delta | nn.Identity) for x in module.children()):
        return f"a {kind} has an activation or a dropout of its own"
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) > 1:
        return "it normalises over several axes"
    return next(
        (reason for name in ("weight", "bias") if (reason := tensor_unsupported_reason(module, name, weights))), None
    )


def tensor_unsupported_reason(module: nn.Module, name: str, weights: dict[str, Tensor]) -> str | None:
    """Return the reason why a parameter of a map cannot take merged values, as a clause."""
    tensor = weights.get(name, getattr(module, name, None))
    if tensor is None:
        return "it has no `weight`" if name == "weight" else None
    if name not in weights:
        return f"its `{name}` is no parameter, but computed from others (as by weight norm, spectral norm or pruning)"
    if type(tensor) is not nn.Parameter or tensor.dtype not in _MERGING_DTYPES:
        dtype = str(tensor.dtype).removeprefix("torch.")
        return f"its `{name}` is a {type(tensor).__name__} of {dtype}, which cannot hold merged values"
    return None


def _owners(module: nn.Module) -> Iterator[str]:
    """Yield the full names of the classes whose methods run when the module is called, abstract ones of torch aside."""
    for method in ("forward", "_conv_forward", "__call__"):
        owner: type[Any] | None = next((kind for kind in type(module).__mro__ if method in vars(kind)), None)
        if owner not in (None, nn.Module, _ConvNd):
            assert owner is not None
            yield f"{owner.__module__}.{owner.__qualname__}"
