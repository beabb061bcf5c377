"""Activation checkpointing: a layer keeps only its inputs for backward, where it runs again (Chen et al. 2016,
https://arxiv.org/abs/1604.06174).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def run_layer(layer: Callable[..., Tensor], *args: Any, recompute: bool) -> Tensor:
    """Return `layer(*args)`. recompute: autograd keeps `args` alone, and the layer runs again in backward"""
    if not (recompute and torch.is_grad_enabled()):
        return layer(*args)
    output: Tensor = checkpoint(_run_on_aliases, layer, *args, use_reentrant=False)
    return output


def _run_on_aliases(layer: Callable[..., Tensor], *args: Any) -> Tensor:
    """Return `layer(*args)`, called with new tensor objects over the same memory.

    A delta may keep the tensor that its input was computed from in the place of the input, which it finds by the tensor
    object. In backward the layer's inputs may be other objects, but a layer must keep the same tensors both times.
    """
    return layer(*(arg.view_as(arg) if isinstance(arg, Tensor) else arg for arg in args))
