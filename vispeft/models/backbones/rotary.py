"""Rotary positions in the form of timm: sines and cosines of each token's angles, one row per token."""

from __future__ import annotations

import torch
from torch import Tensor


def with_unrotated(rotary: Tensor, count: int) -> Tensor:
    """Return positions for `count` further tokens before the others, which are not rotated.

    rotary: [..., N, 2 D], sines first
    """
    sines, cosines = rotary.chunk(2, dim=-1)
    shape = (*rotary.shape[:-2], count, sines.shape[-1])
    unrotated = torch.cat((sines.new_zeros(shape), cosines.new_ones(shape)), dim=-1)
    return torch.cat((unrotated, rotary), dim=-2)
