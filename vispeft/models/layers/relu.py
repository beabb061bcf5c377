"""ReLU that keeps one byte per value for backward in place of its output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def relu_before(linear_map: nn.Module, x: Tensor) -> Tensor:
    """Return the ReLU of x, the input of `linear_map`. Where that map is frozen, only the signs are kept for backward.

    A frozen linear map needs no input for its backward pass. A trained one keeps its input, which is the tensor that
    torch's own ReLU keeps as well.
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
