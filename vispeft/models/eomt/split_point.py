"""EoMT in two parts: split after a block of the encoder, at the latest where the queries join."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from vispeft.models.backbones.plain_vit import PlainViT
from vispeft.models.backbones.plain_vit_split import num_frozen_blocks
from vispeft.models.split import Split, SplitPoint
from vispeft.structures import Predictions, Targets


class EoMTParts(Protocol):
    """The parts of an EoMT that both sides of the split need."""

    encoder: PlainViT

    @property
    def num_first(self) -> int:
        """Return the number of the encoder's blocks before the queries join."""

    def continued(self, x: Tensor, rotary: Tensor | None, grid: tuple[int, int], *, first_block: int) -> Predictions:
        """Return the predictions from the tokens before a block of the encoder."""


def split_eomt(model: EoMTParts, images: Tensor) -> Split:
    """Return the last split of a model with nothing trained before it.

    SplitPointError where the first block or anything before it is trained.

    images: [B, 3, H, W], from which sizes are taken
    """
    num_frozen = min(num_frozen_blocks(model.encoder, "encoder"), model.num_first)
    later = (f"encoder.body.blocks.{index}" for index in range(num_frozen, model.encoder.num_blocks))
    point = SplitPoint((f"encoder.body.blocks.{num_frozen - 1}",), ("encoder",), (*later, "encoder.body.norm"))
    return _AfterBlock(point, num_frozen, model.encoder.grid(images))


@dataclass(frozen=True)
class _AfterBlock:
    """Split after a block of the encoder. num_frozen: blocks before it; grid: rows and columns of patches"""

    point: SplitPoint
    num_frozen: int
    grid: tuple[int, int]

    def prefix(self, model: EoMTParts, images: Tensor) -> tuple[Tensor, ...]:
        x, rotary = model.encoder.embedded(images)
        return (model.encoder.run_blocks(x, rotary, range(self.num_frozen)),)

    def tail(self, model: EoMTParts, features: Sequence[Tensor], targets: Sequence[Targets] | None) -> Predictions:
        (x,) = features
        rotary = model.encoder.rotary_positions(self.grid)
        return model.continued(x, rotary, self.grid, first_block=self.num_frozen)
