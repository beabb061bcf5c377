"""Memory savings in the backward pass: activations recomputed by `torch.utils.checkpoint` (Chen et al. 2016,
https://arxiv.org/abs/1604.06174), and signs in place of activations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def run(layer: Callable[..., Tensor], *args: Any, recompute: bool) -> Tensor:
    """Return the output of `layer`; with `recompute`, only its inputs are kept for its backward pass."""
    if not (recompute and torch.is_grad_enabled()):
        return layer(*args)
    # a clone carries no notes that others left on the layer's own output, as on what it was made from: the next layer
    # keeps its input for long, and finds it without them when it runs again
    output: Tensor = checkpoint(lambda *again: layer(*again).clone(), *args, use_reentrant=False)
    return output


def relu_before(linear_map: nn.Module, x: Tensor) -> Tensor:
    """ReLU of x for the linear map that follows. Where that map is frozen, one byte per value is kept.

    A frozen linear map needs no input for its backward pass; a trained one keeps it, and ReLU's own copy is the same.
    """
    is_trained = any(parameter.requires_grad for parameter in linear_map.parameters())
    if is_trained or not x.requires_grad or torch.compiler.is_compiling():
        return F.relu(x)
    y: Tensor = _SignKeepingReLU.apply(x)
    return y


class _SignKeepingReLU(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.relu()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output > 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (is_positive,) = ctx.saved_tensors
        return torch.where(is_positive, grad, 0)
