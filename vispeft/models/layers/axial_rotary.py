"""Rotary positions of DINOv3 (https://arxiv.org/abs/2508.10104): angles of rows and columns that fill the image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_BASE = 100.0


def axial_rotary(grid: tuple[int, int], head_dim: int, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [H W, head_dim] float32 of a grid of patches, by rows.

    Patch centres are at -1..1 over each side. The angles of the first half of a head's channels are those of the
    second half: channel i rotates with channel i + head_dim / 2.
    """
    rows, columns = (2 * (torch.arange(n, device=device, dtype=torch.float32) + 0.5) / n - 1 for n in grid)
    centres = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)  # [H W, 2]
    periods = _BASE ** (torch.arange(head_dim // 4, device=device, dtype=torch.float32) * 4 / head_dim)
    angles = (2 * math.pi * centres[:, :, None] / periods).flatten(1).tile(2)
    return angles.cos(), angles.sin()


def rotated(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Return queries or keys [B, heads, N, head_dim] whose last tokens, as many as there are angles, are rotated."""
    kept, patches = torch.split(x, [x.shape[2] - len(cosines), len(cosines)], dim=2)
    first, second = patches.chunk(2, dim=-1)
    turned = patches * cosines.to(x.dtype) + torch.cat((-second, first), dim=-1) * sines.to(x.dtype)
    return torch.cat((kept, turned), dim=2)
