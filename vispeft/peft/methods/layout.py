"""Size and memory layout of the outputs of deltas."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vispeft.errors import PlanError


def laid_out_like(y: Tensor, result: Tensor) -> Tensor:
    """Return `result` in the memory layout of `y`, by which the kernels that follow are chosen."""
    # also where sizes of 1 make several layouts contiguous
    if result.stride() == y.stride():
        return result
    return torch.empty_like(y, dtype=result.dtype).copy_(result)


def refuse_resizing(module: nn.Conv2d) -> None:
    """Refuse a convolution that changes the size of its map, which a delta parallel to it cannot follow."""
    spans = [rate * (kernel - 1) for rate, kernel in zip(module.dilation, module.kernel_size, strict=True)]
    padding = (0, 0) if module.padding == "valid" else module.padding
    keeps = padding == "same" or list(spans) == [2 * int(pad) for pad in padding]
    if any(stride != 1 for stride in module.stride) or not keeps:
        raise PlanError(
            "A delta parallel to a convolution needs one that keeps its map's size, but this one changes it."
        )
