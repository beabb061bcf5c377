"""Decoder of PMT: lateral projections of the encoder's taps, and blocks over queries and tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vispeft.models.layers.activation_checkpointing import run_layer
from vispeft.models.layers.axial_rotary import axial_rotary
from vispeft.models.pmt.block import Block


class Lateral(nn.Module):
    """Projection of the tokens of one tap: batch norm, a residual MLP of half the width, and a scale per channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(dim)
        self.fc1 = nn.Linear(dim, dim // 2)
        self.fc2 = nn.Linear(dim // 2, dim)
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, N, C]. x: [B, N, C]"""
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        y: Tensor = (x + self.fc2(F.gelu(self.fc1(x)))) * self.scale
        return y


class PlainMaskDecoder(nn.Module):
    """Plain Mask Decoder: sum of the laterals, blocks as in DINOv3 with rotary positions of the patches, and a norm."""

    def __init__(self, dim: int, *, num_taps: int, num_blocks: int, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(Lateral(dim) for _ in range(num_taps))
        self.blocks = nn.ModuleList(Block(dim, num_heads=num_heads, ffn_dim=ffn_dim) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(dim)
        self.head_dim = dim // num_heads
        self.recomputes = False

    def fused(self, taps: Sequence[Tensor]) -> Tensor:
        """Return the tokens [B, P + H W, C] on which the decoder works, from those of each tap."""
        tokens = torch.stack([lateral(x) for lateral, x in zip(self.laterals, taps, strict=True)])
        return tokens.sum(0)

    def rotary(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        """Return cosines and sines [2, H W, head_dim] of the patches."""
        return torch.stack(axial_rotary(grid, self.head_dim, device=device))

    def run_block(self, index: int, x: Tensor, mask: Tensor | None, rotary: Tensor) -> Tensor:
        """Return the tokens [B, Q + P + H W, C] after a block.

        mask: [B, 1, N, N] bool, True where a token (row) may attend to another (column); None: everywhere
        """
        return run_layer(self.blocks[index], x, rotary, mask, recompute=self.recomputes)
