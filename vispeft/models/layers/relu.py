"""ReLU before a linear map that may be frozen."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vispeft_kernels.relu import sign_keeping_relu


def relu_before(linear_map: nn.Module, x: Tensor) -> Tensor:
    """Return the ReLU of x, the input of `linear_map`. Where that map is frozen, backward keeps the signs alone."""
    is_trained = any(parameter.requires_grad for parameter in linear_map.parameters())
    if is_trained or not x.requires_grad or torch.compiler.is_compiling():
        return F.relu(x)
    return sign_keeping_relu(x)
