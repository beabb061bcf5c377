"""Size and memory layout of the outputs of deltas."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft.methods.base import Widths


class ChannelDim:
    """Dimension of the channels of a module's output: 1 or -1.

    A module with convolutions and linear maps may give [B, C, H, W], as ConvNeXt's blocks, or [B, H, W, C]. The first
    output that fits one of them alone decides.
    """

    def __init__(self, size: Widths) -> None:
        self._size = size
        self._known = None if size.is_mixed else size.dim

    def of(self, y: Tensor) -> int:
        """Return the dimension for an output. PlanError where both fit and none is known."""
        if y.ndim != 4:
            return self._size.dim
        if self._known is None:
            fitting = [dim for dim in (1, -1) if y.shape[dim] == self._size.outputs]
            if len(fitting) != 1:
                raise PlanError(
                    f"An output of {list(y.shape)} does not tell which dimension holds the {self._size.outputs} "
                    "channels. Run the model once on a map of another size, or name a module inside."
                )
            self._known = fitting[0]
        return self._known


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


def refuse_sequence_first(module: nn.Module, method: str) -> None:
    """Refuse an attention over tokens [N, B, C], which a method that needs the map of each image cannot read."""
    if isinstance(module, nn.MultiheadAttention) and not module.batch_first:
        raise PlanError(
            f"`{method}` needs tokens [B, N, C], but this nn.MultiheadAttention gets [N, B, C]. Build it with "
            "`batch_first=True`."
        )
