"""Block of PMT's decoder: a layer of DINOv3 whose attention has rotary positions of the patches alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vispeft.models.layers.axial_rotary import rotated


class Attention(nn.Module):
    """Self-attention of all tokens; the last ones, the patches, have rotary positions. Keys have no bias."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rotary: Tensor, mask: Tensor | None) -> Tensor:
        """Return [B, N, C].

        x: [B, N, C]
        rotary: cosines and sines [2, H W, head_dim] of the last H W tokens
        mask: [B, 1, N, N] bool, True where a token (row) may attend to another (column); None: everywhere
        """
        B, N, C = x.shape
        q, k, v = (
            part(x).view(B, N, self.num_heads, -1).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotated(q, *rotary), rotated(k, *rotary)
        y: Tensor = self.out_proj(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).reshape(B, N, C))
        return y


class Block(nn.Module):
    """Attention and feed-forward layer, each behind a norm and in front of a scale per channel (pre-norm residuals)."""

    def __init__(self, dim: int, *, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.self_attn = Attention(dim, num_heads)
        self.scale1 = nn.Parameter(torch.ones(dim))
        self.norm2 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.scale2 = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, rotary: Tensor, mask: Tensor | None) -> Tensor:
        """Return [B, N, C]. x: [B, N, C]; rotary and mask: those of `Attention`"""
        x = x + self.scale1 * self.self_attn(self.norm1(x), rotary, mask)
        y: Tensor = x + self.scale2 * self.linear2(F.gelu(self.linear1(self.norm2(x))))
        return y
