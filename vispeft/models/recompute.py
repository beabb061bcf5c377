"""Layers whose activations are computed again in the backward pass instead of being kept (Chen et al. 2016,
https://arxiv.org/abs/1604.06174), by `torch.utils.checkpoint`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def call(layer: nn.Module, *args: Any, recompute: bool) -> Tensor:
    """What `layer` gives; with `recompute`, only its inputs are kept for its backward pass."""
    output: Tensor
    if recompute and torch.is_grad_enabled():
        output = checkpoint(layer, *args, use_reentrant=False)
    else:
        output = layer(*args)
    return output
