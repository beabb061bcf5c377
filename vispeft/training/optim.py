"""AdamW with learning rates and weight decay per method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vispeft.errors import TrainingError
from vispeft.peft.delta import Delta, WeightDelta

FULL = "full"
# position, class and level tokens: weight decay would pull them to zero, as it would biases
_TOKEN_NAMES = frozenset({"pos_embed", "cls_token", "reg_token", "mask_token", "level_embed", "query_embed"})


@dataclass(frozen=True)
class Rates:
    """Learning rate and weight decay of some parameters; None: those of the run."""

    lr: float | None = None
    weight_decay: float | None = None


@dataclass(frozen=True)
class OptimSettings:
    """AdamW's settings.

    methods: rates by method name (`lora`, `adapter`, ...), and under `full` for parameters trained in full
    """

    lr: float = 1e-3
    weight_decay: float = 0.05
    methods: Mapping[str, Rates] = field(default_factory=dict)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def rates(self, method: str) -> tuple[float, float]:
        """Learning rate and weight decay of a method."""
        own = self.methods.get(method, Rates())
        return (
            self.lr if own.lr is None else own.lr,
            self.weight_decay if own.weight_decay is None else own.weight_decay,
        )


def build_optimizer(model: nn.Module, settings: OptimSettings) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of `model`, in groups named `<method>` and `<method>/no_decay`.

    What belongs to no delta is trained in full, the method `full`.
    """
    groups = param_groups(model, settings)
    if not groups:
        raise TrainingError("Nothing is trainable. Give `peft.deltas` or `peft.train` a pattern.")
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)


def param_groups(model: nn.Module, settings: OptimSettings) -> list[dict[str, Any]]:
    """Optimizer groups with `name`, `params`, `lr`, `initial_lr` and `weight_decay`, in the model's own order."""
    spared, method_of = _without_decay(model), _delta_methods(model)
    members: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            method = method_of.get(name, FULL)
            members.setdefault(f"{method}/no_decay" if name in spared else method, []).append(parameter)
    groups = []
    for group_name, params in members.items():
        method, _, is_spared = group_name.partition("/")
        lr, weight_decay = settings.rates(method)
        groups.append(
            {
                "name": group_name,
                "params": params,
                "lr": lr,
                "initial_lr": lr,
                "weight_decay": 0.0 if is_spared else weight_decay,
            }
        )
    return groups


def _delta_methods(model: nn.Module) -> dict[str, str]:
    """The method's name of each parameter that belongs to a delta."""
    return {
        f"{module_name}.{name}": module.method.name
        for module_name, module in model.named_modules()
        if isinstance(module, Delta | WeightDelta)
        for name, _ in module.named_parameters()
    }


def _without_decay(model: nn.Module) -> set[str]:
    """Names of parameters that weight decay must leave alone: one-dimensional, norms, embeddings and tokens."""
    names = set()
    for module_name, module in model.named_modules():
        is_spared = isinstance(module, (nn.LayerNorm, nn.Embedding))
        for name, parameter in module.named_parameters(recurse=False):
            if is_spared or parameter.ndim <= 1 or name in _TOKEN_NAMES:
                names.add(f"{module_name}.{name}" if module_name else name)
    return names
