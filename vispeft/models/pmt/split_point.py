"""PMT in two parts: split after the encoder where that is frozen, else after one of its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from vispeft.models.backbones.plain_vit import PlainViT
from vispeft.models.backbones.plain_vit_split import num_frozen_blocks
from vispeft.models.split import Split, SplitPoint
from vispeft.structures import Predictions, Targets


class PMTParts(Protocol):
    """The parts of a PMT that both sides of the split need."""

    encoder: PlainViT
    taps: tuple[int, ...]

    def tapped(self, x: Tensor, rotary: Tensor | None, blocks: range) -> tuple[Tensor, ...]:
        """Return the tokens after those of some of the encoder's blocks that are taps."""

    def continued(self, first: Sequence[Tensor], later: Sequence[Tensor], grid: tuple[int, int]) -> Predictions:
        """Return the predictions from the tokens of the first and the later taps."""


def split_pmt(model: PMTParts, images: Tensor) -> Split:
    """Return the last split of a model with nothing trained before it.

    SplitPointError where the first block or anything before it is trained.

    images: [B, 3, H, W], from which sizes are taken
    """
    num_frozen = num_frozen_blocks(model.encoder, "encoder")
    # the last frozen block is kept too: later blocks, if there are any, continue from it
    kept = sorted({*(tap for tap in model.taps if tap < num_frozen), num_frozen - 1})
    later = (f"encoder.body.blocks.{index}" for index in range(num_frozen, model.encoder.num_blocks))
    names = tuple(f"encoder.body.blocks.{index}" for index in kept)
    # the last norm is computed from each tap anew, so that it may be trained
    point = SplitPoint(names, ("encoder",), (*later, "encoder.body.norm"))
    return _AfterBlocks(point, tuple(kept), model.encoder.grid(images))


@dataclass(frozen=True)
class _AfterBlocks:
    """Split after a block of the encoder. kept: numbers of the blocks whose tokens are kept, the last one included"""

    point: SplitPoint
    kept: tuple[int, ...]
    grid: tuple[int, int]

    def prefix(self, model: PMTParts, images: Tensor) -> tuple[Tensor, ...]:
        x, rotary = model.encoder.embedded(images)
        features, start = [], 0
        for index in self.kept:
            x = model.encoder.run_blocks(x, rotary, range(start, index + 1))
            features.append(x)
            start = index + 1
        return tuple(features)

    def tail(self, model: PMTParts, features: Sequence[Tensor], targets: Sequence[Targets] | None) -> Predictions:
        first = [x for index, x in zip(self.kept, features, strict=True) if index in model.taps]
        blocks = range(self.kept[-1] + 1, model.encoder.num_blocks)
        later = model.tapped(features[-1], model.encoder.rotary_positions(self.grid), blocks)
        return model.continued(first, later, self.grid)
