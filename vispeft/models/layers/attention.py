"""Multi-head attention of queries, with its projections as called modules."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F


class SelfAttention(nn.Module):
    """Multi-head attention among the queries, with its four projections as called modules."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as `nn.MultiheadAttention` does."""
        _reset(self.q_proj, self.k_proj, self.v_proj, self.out_proj)

    def forward(self, x: Tensor, position: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Return [B, Q, C]. x, position: [B, Q, C]; attention_mask: [Q, Q] bool, True if a query may attend."""
        located = x + position
        q, k, v = (
            y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for y in (self.q_proj(located), self.k_proj(located), self.v_proj(x))
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)
        y: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return y


class MaskedCrossAttention(nn.Module):
    """Multi-head attention of queries to the cells of a map, each query to the cells of its mask.

    As in Mask2Former (https://arxiv.org/abs/2112.01527, section 3.2.1), with the four projections as called modules.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as `nn.MultiheadAttention` does."""
        _reset(self.q_proj, self.k_proj, self.v_proj, self.out_proj)

    def forward(self, x: Tensor, position: Tensor, memory: Tensor, keys: Tensor, attention_mask: Tensor) -> Tensor:
        """Return [B, Q, C].

        x, position: [B, Q, C]
        memory: [B, H W, C]
        keys: memory with the positions of its cells, [B, H W, C]
        attention_mask: [B, 1, Q, H W] bool, True if a query may attend to a cell
        """
        q, k, v = (
            y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for y in (self.q_proj(x + position), self.k_proj(keys), self.v_proj(memory))
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)
        y: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return y


def _reset(q_proj: nn.Linear, k_proj: nn.Linear, v_proj: nn.Linear, out_proj: nn.Linear) -> None:
    """Start as `nn.MultiheadAttention` does, whose q, k and v are one matrix [3 * dim, dim] to Xavier's formula."""
    for projection in (q_proj, k_proj, v_proj):
        nn.init.xavier_uniform_(projection.weight, gain=math.sqrt(0.5))
    nn.init.xavier_uniform_(out_proj.weight)
    for projection in (q_proj, k_proj, v_proj, out_proj):
        nn.init.zeros_(projection.bias)
