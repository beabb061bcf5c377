"""Tensors and options that every implementation of the bottleneck adapter takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Maps(NamedTuple):
    """down_w [width, in]; down_b [width]; up_w [out, width]; up_b [out]."""

    down_w: Tensor
    down_b: Tensor
    up_w: Tensor
    up_b: Tensor

    def to(self, dtype: torch.dtype) -> Maps:
        """Return the same maps in another precision."""
        return Maps(*(one.to(dtype) for one in self))


@dataclass(frozen=True)
class AdapterOptions:
    """activation: gelu (exact), relu or silu; scale: factor of the adapter's output."""

    activation: str = "gelu"
    scale: float = 1.0


@dataclass(frozen=True, eq=False)
class Kept:
    """Tensors kept for the backward pass: x [M, in], z = down(x) [M, width] and the weights.

    is_sequential: true where x is also the stream that the adapter's output is added to
    """

    x: Tensor
    z: Tensor
    down_w: Tensor
    up_w: Tensor
    is_sequential: bool


class Gradients(NamedTuple):
    """Gradients of x [M, in], where it is needed, and of the maps."""

    x: Tensor | None
    down_w: Tensor
    down_b: Tensor
    up_w: Tensor
    up_b: Tensor
