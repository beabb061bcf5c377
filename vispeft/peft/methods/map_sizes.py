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


class MapSize:
    """Height and width of the last map of one convolution."""

    def __init__(self, latest: list[MapSize]) -> None:
        self._latest = latest
        self.height = self.width = 0

    def record(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """Record the size of an output [B, C, H, W]: a forward hook."""
        self.height, self.width = output.shape[-2:]
        self._latest.remove(self)
        self._latest.append(self)


class MapSizes:
    """Sizes of the maps that the convolutions of a model gave, in the order in which they ran last.

    Every vision transformer makes its tokens by a convolution, so its size is that of the token grid.
    """

    def __init__(self) -> None:
        self.is_used = False
        self._latest: list[MapSize] = []

    def new(self) -> MapSize:
        """Return the record of one more convolution."""
        self._latest.append(MapSize(self._latest))
        return self._latest[-1]

    def grid_of(self, tokens: Tensor) -> Grid:
        """Return the layout of tokens [B, N, C]. PlanError where no map of this forward pass has about N positions."""
        length = tokens.shape[1]
        for size in reversed(self._latest):
            positions = size.height * size.width
            if length < 2 * positions and 0 <= length - positions <= _MAX_PREFIX_TOKENS:
                return Grid(length - positions, size.height, size.width)
        raise PlanError(
            f"A sequence of {length} tokens has no known height and width: no convolution of the model gave a map of "
            "as many positions, class and register tokens aside. Name a module that sees the whole map."
        )
