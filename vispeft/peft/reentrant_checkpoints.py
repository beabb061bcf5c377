"""Reentrant activation checkpointing in frozen models, as transformers' layers have it with `use_reentrant=True`.

Torch gives the parameters inside such a checkpoint no gradient where no input requires one. In a frozen model those are
the first layers, whose deltas would not be trained.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class ReentrantCheckpoints:
    """Hook of the layers that can recompute their activations."""

    def require_gradient(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Let the first input of a reentrant checkpoint require a gradient, if no input does: a forward pre-hook."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or not _is_reentrant(module):
            return None
        tensors = [(place, x) for place, x in enumerate(args) if isinstance(x, Tensor) and x.is_floating_point()]
        if not tensors or any(x.requires_grad for _, x in tensors):
            return None
        place, x = tensors[0]
        return (*args[:place], x.detach().requires_grad_(), *args[place + 1 :])


def can_recompute(module: nn.Module) -> bool:
    """Return True for a layer of transformers, which checkpoints its own `forward` where that is switched on."""
    return isinstance(getattr(type(module), "gradient_checkpointing", None), bool)


def _is_reentrant(module: nn.Module) -> bool:
    """Return True for a layer that runs as a reentrant checkpoint now."""
    own = vars(module)
    function = own.get("_gradient_checkpointing_func")
    is_on = module.training and own.get("gradient_checkpointing", False)
    return is_on and isinstance(function, partial) and bool(function.keywords.get("use_reentrant", False))
