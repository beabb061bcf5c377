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
        """Start as `nn.MultiheadAttention` does, whose q, k and v are one matrix [3 * dim, dim] to Xavier's formula."""
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.xavier_uniform_(projection.weight, gain=math.sqrt(0.5))
        nn.init.xavier_uniform_(self.out_proj.weight)
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            nn.init.zeros_(projection.bias)

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
