"""Wrappers around a model, which prefix its names: compiled models, and those that spread a model over devices."""

from __future__ import annotations

import torch
from torch import nn

from vispeft.errors import PlanError

# classes of wrappers by full name, so that none of their packages has to be loaded, and the attribute of the model
WRAPPERS = {
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.optim.swa_utils.AveragedModel": "module",
    "lightning_fabric.wrappers._FabricModule": "_original_module",
    "lightning.fabric.wrappers._FabricModule": "_original_module",
}

# wrappers that take the parameters of a model apart
_SHARDING = "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel"


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model itself, without the wrappers around it, so that its names have no prefix."""
    return wrapped_layers(model)[-1]


def wrapped_layers(model: nn.Module) -> list[nn.Module]:
    """Return the wrappers around a model, outermost first, and the model itself as the last; alone if it has none."""
    layers = [model]
    while (attribute := _attribute(layers[-1])) is not None:
        inner = getattr(layers[-1], attribute)
        assert isinstance(inner, nn.Module)
        layers.append(inner)
    return layers


def _attribute(model: nn.Module) -> str | None:
    """Return the attribute of a wrapper that holds what it wraps, or None for a model."""
    names = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(model).__mro__]
    if _SHARDING in names:
        raise PlanError(
            "This model is wrapped in FullyShardedDataParallel, which takes its parameters apart. Give the model "
            "itself, before it is wrapped."
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise PlanError(
            f"A {type(model).__name__} is compiled by TorchScript and cannot be changed. Give the model that it was "
            f"made from."
        )
    return next((WRAPPERS[name] for name in names if name in WRAPPERS), None)
