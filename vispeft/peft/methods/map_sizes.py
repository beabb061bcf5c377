"""Height and width of feature maps, for methods that need them where a module sees a sequence of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
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
    position: of the module in the model's order
    """

    def __init__(self, latest: list[MapSize], *, channel_dim: int, position: int) -> None:
        self._latest = latest
        self._channel_dim = channel_dim
        self.position = position
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


class SiteSizes:
    """Sizes of the maps that the tokens of one site may belong to: those of the modules before the site or inside it.

    Modules that follow have their sizes from the forward pass before, which do not count. The model's order tells this,
    and not that of the calls: the first modules may be those of a frozen prefix, which does not run each time.

    end: position of the last module of the site in the model's order
    """

    def __init__(self, latest: list[MapSize], module: nn.Module) -> None:
        self._latest = latest
        self.module = module
        self.end = 0

    def grid_of(self, tokens: Tensor) -> Grid:
        """Return the layout of tokens [B, N, C]. PlanError where no map before them has about N positions."""
        length = tokens.shape[1]
        for size in reversed(self._latest):
            positions = size.height * size.width
            fits = length < 2 * positions and 0 <= length - positions <= _MAX_PREFIX_TOKENS
            if fits and size.position <= self.end:
                return Grid(length - positions, size.height, size.width)
        raise PlanError(
            f"A sequence of {length} tokens has no known height and width: no convolution or LayerNorm before it in "
            "the model gave a map of as many positions, class and register tokens aside. Name a module that sees the "
            "whole map."
        )

    def apply_to_map(
        self, features: Tensor, on_map: Callable[[Tensor], Tensor], on_prefix: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return features after a function of their map, in their own layout. PlanError for tokens of unknown size.

        features: tokens [B, N, C] or a map [B, H, W, C]
        on_map: function of a map [B, C, H, W] that keeps height and width
        on_prefix: function of the prefix tokens [B, num_prefix, C], which may be none
        """
        if features.ndim == 4:
            return on_map(features.movedim(-1, 1)).movedim(1, -1)
        grid = self.grid_of(features)
        prefix, patches = features[:, : grid.num_prefix], features[:, grid.num_prefix :]
        maps = patches.mT.reshape(patches.shape[0], -1, grid.height, grid.width)
        return torch.cat([on_prefix(prefix), on_map(maps).flatten(2).mT], dim=1)


class MapSizes:
    """Sizes of the maps that convolutions and LayerNorms of a model gave, in the order in which they ran last.

    Most vision transformers make their tokens by a convolution, so its size is that of the token grid. Swin makes those
    of later stages by linear maps, but has LayerNorms over maps [B, H, W, C].

    sites: those that need sizes
    """

    def __init__(self) -> None:
        self.sites: list[SiteSizes] = []
        self._latest: list[MapSize] = []

    def at(self, module: nn.Module) -> SiteSizes:
        """Return the sizes for one more site."""
        self.sites.append(SiteSizes(self._latest, module))
        return self.sites[-1]

    def new(self, *, channel_dim: int, position: int) -> MapSize:
        """Return the record of one more module."""
        self._latest.append(MapSize(self._latest, channel_dim=channel_dim, position=position))
        return self._latest[-1]
