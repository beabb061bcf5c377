"""Height and width of feature maps, for methods that need them where a module sees a sequence of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vispeft.errors import PlanError

# class and register tokens of today's models
_MAX_PREFIX_TOKENS = 16


@dataclass(frozen=True)
class Grid:
    """Layout of a token sequence: `num_prefix` tokens without a place, then `height * width` tokens by rows."""

    num_prefix: int
    height: int
    width: int


def gives_maps(module: nn.Module) -> bool:
    """Return True for a module whose outputs of four dimensions are maps: a convolution, or a norm over channels."""
    return isinstance(module, nn.Conv2d) or (isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1)


class MapSize:
    """Height and width of the last map of one module.

    channel_dim: dimension of the channels, 1 or -1
    """

    def __init__(self, latest: list[MapSize], channel_dim: int) -> None:
        self._latest = latest
        self._channel_dim = channel_dim
        self.height = self.width = 0

    def record(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """Record the size of an output [B, C, H, W] or [B, H, W, C]: a forward hook. Others, as tokens, have none."""
        if output.ndim != 4:
            return
        height, width = output.shape[2:] if self._channel_dim == 1 else output.shape[1:3]
        # the norm of the queries of a single head is [B, 1, N, C]
        if self._channel_dim == -1 and height == 1:
            return
        self.height, self.width = height, width
        self._latest.remove(self)
        self._latest.append(self)


class MapSizes:
    """Sizes of the maps that convolutions and LayerNorms of a model gave, in the order in which they ran last.

    Most vision transformers make their tokens by a convolution, so its size is that of the token grid. Swin makes those
    of later stages by linear maps, but has LayerNorms over maps [B, H, W, C].
    """

    def __init__(self) -> None:
        self.is_used = False
        self._latest: list[MapSize] = []

    def new(self, channel_dim: int) -> MapSize:
        """Return the record of one more module, whose maps have their channels in this dimension."""
        self._latest.append(MapSize(self._latest, channel_dim))
        return self._latest[-1]

    def grid_of(self, tokens: Tensor) -> Grid:
        """Return the layout of tokens [B, N, C]. PlanError where no map of this forward pass has about N positions."""
        length = tokens.shape[1]
        for size in reversed(self._latest):
            positions = size.height * size.width
            if length < 2 * positions and 0 <= length - positions <= _MAX_PREFIX_TOKENS:
                return Grid(length - positions, size.height, size.width)
        raise PlanError(
            f"A sequence of {length} tokens has no known height and width: no convolution or LayerNorm of the model "
            "gave a map of as many positions, class and register tokens aside. Name a module that sees the whole map."
        )
