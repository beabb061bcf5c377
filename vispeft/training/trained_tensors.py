"""The tensors of a model that training may change: for checkpoints, read and written back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vispeft.errors import CheckpointError


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that training may change, by name, not copied: trainable parameters and buffers near them.

    Buffers count in a module in train mode that has trainable parameters of its own, or whose parameters, those of
    submodules included, are all trainable. A module in train mode with frozen parameters is only a container.
    """
    tensors: dict[str, Tensor] = {}
    for module_name, module in model.named_modules():
        own = {name: p for name, p in module.named_parameters(recurse=False) if p.requires_grad}
        if module.training and (own or all(p.requires_grad for p in module.parameters())):
            own |= dict(module.named_buffers(recurse=False))
        for name, tensor in own.items():
            tensors[f"{module_name}.{name}" if module_name else name] = tensor.detach()
    return tensors


@torch.no_grad()
def restore_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint's tensors into the model, in place, if they are exactly those that it trains."""
    own = trained_tensors(model)
    lacking, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    reshaped = [n for n in own.keys() & tensors.keys() if own[n].shape != tensors[n].shape]
    if lacking or unknown or reshaped:
        names = ", ".join(f"`{name}`" for name in (lacking + unknown + sorted(reshaped))[:6])
        raise CheckpointError(
            f"The checkpoint must hold what this run trains, but {len(lacking)} tensors are not in it, {len(unknown)} "
            f"are in it only and {len(reshaped)} have another shape: {names}. "
            "Resume with the configuration that began the run."
        )
    for name, tensor in own.items():
        tensor.copy_(tensors[name])
