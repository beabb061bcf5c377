"""Size and memory layout of the outputs of deltas."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft.methods.base import Widths


class ChannelDim:
    """Dimension of the channels of a module's output: 1 or -1.

    That of a map is known. A larger module may give another layout than the maps inside it: tokens [B, N, C] from a
    convolution, [B, C, H, W] from attention over tokens, [B, H, W, C] from a ConvNeXt block. The sizes of its output
    decide, where one dimension alone has as many entries as there are channels and agrees with the maps. Otherwise the
    hooks find the dimension by a trial and `settle` it.
    """

    def __init__(self, size: Widths) -> None:
        self._size = size
        # by the number of dimensions of the output
        self._settled: dict[int, int] = {}

    @property
    def of_maps(self) -> int | None:
        """Dimension for outputs of four dimensions; None before the first one that tells it."""
        return self._size.dim if self._size.is_map else self._settled.get(4)

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self._size.outputs

    def is_known(self, y: Tensor) -> bool:
        """Return True if the dimension for an output is known."""
        return self._find(y) is not None

    def settle(self, y: Tensor, dim: int) -> None:
        """Set the dimension for outputs with as many dimensions as y, whose sizes do not tell it."""
        self._settled[y.ndim] = dim

    def of(self, y: Tensor) -> int:
        """Return the dimension for an output. PlanError where it is not known."""
        dim = self._find(y)
        if dim is None:
            raise PlanError(
                f"An output of {list(y.shape)} does not tell which dimension holds the {self.channels} channels. Run "
                "the model once on a map of another size, or name a module inside."
            )
        return dim

    def _find(self, y: Tensor) -> int | None:
        size = self._size
        if size.is_map or y.ndim < 3:
            return size.dim
        fitting = [dim for dim in (1, -1) if y.shape[dim] == size.outputs]
        if not fitting:
            return size.dim
        if len(fitting) == 1 and (size.is_mixed or fitting[0] == size.dim):
            if y.ndim not in self._settled:
                self._settled[y.ndim] = fitting[0]
            return fitting[0]
        # tokens of linear maps alone, and maps of convolutions alone
        is_usual = not size.is_mixed and (y.ndim == 3) == (size.dim == -1) and len(fitting) == 2
        return self._settled.get(y.ndim, size.dim if is_usual else None)


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
