"""Tensors and options that every implementation of the low-rank update takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Factors(NamedTuple):
    """a [parts * r, in] and b [parts * n, r]."""

    a: Tensor
    b: Tensor

    def to(self, dtype: torch.dtype) -> Factors:
        """Return the same factors in another precision."""
        return Factors(self.a.to(dtype), self.b.to(dtype))


@dataclass(frozen=True, eq=False)
class LoraOptions:
    """Scale, output columns and dropout of a low-rank update.

    column_offsets: the first output column of each part
    dropout: the probability to drop an element of x
    seed: int64 [1], from which the masks of dropout are drawn; None without dropout
    """

    scale: float
    column_offsets: tuple[int, ...] = (0,)
    dropout: float = 0.0
    seed: Tensor | None = None

    @property
    def parts(self) -> int:
        """Number of target projections."""
        return len(self.column_offsets)


@dataclass(frozen=True, eq=False)
class InputRows:
    """Rows of x [M, K]: kept as they are, or recomputed block by block from the tensor that is kept."""

    kept: Tensor
    recompute: Callable[[Tensor], Tensor] | None
    dtype: torch.dtype

    def __getitem__(self, block: slice) -> Tensor:
        rows = self.kept[block]
        return rows if self.recompute is None else self.recompute(rows).to(self.dtype)


@dataclass(frozen=True, eq=False)
class Kept:
    """Tensors kept for the backward pass: x, the frozen weight [N, K] if there is one, a, b and h [M, parts * r]."""

    rows: InputRows
    weight: Tensor | None
    factors: Factors
    hidden: Tensor
