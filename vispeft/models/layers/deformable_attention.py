"""Multi-scale deformable attention as a module of four called projections."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from vispeft_kernels.deformable import deformable_attention_around


class DeformableAttention(nn.Module):
    """Each query reads a few sampled points per head and level (Zhu et al. 2021, equation 3;
    https://arxiv.org/abs/2010.04159)."""

    def __init__(self, dim: int, *, num_levels: int, num_heads: int = 8, num_points: int = 4) -> None:
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.sampling_offsets = nn.Linear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Spread sampling offsets evenly by head, one step further by point (Deformable DETR, appendix A.2)."""
        angle = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        direction = torch.stack((angle.cos(), angle.sin()), dim=-1)
        direction = direction / direction.abs().amax(-1, keepdim=True)  # [heads, 2]
        steps = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        bias = direction[:, None, None] * steps[None, None, :, None]  # [heads, 1, points, 2]
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.expand(-1, self.num_levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self, query: Tensor, reference: Tensor, memory: Tensor, spatial_shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Read `memory` around `reference`.

        query: [B, Q, C]; memory: [B, sum HW, C]; reference: [B or 1, Q, 2] points or [B, Q, 4] cxcywh boxes,
        normalised. Returns [B, Q, C].
        """
        samples = (self.num_heads, self.num_levels, self.num_points)
        value = self.value_proj(memory).unflatten(-1, (self.num_heads, -1))  # [B, sum HW, heads, D]
        offsets = self.sampling_offsets(query).unflatten(-1, (*samples, 2))
        logits = self.attention_weights(query).unflatten(-1, samples)
        sampled = deformable_attention_around(value, list(spatial_shapes), reference, offsets, logits)
        output: Tensor = self.output_proj(sampled)
        return output
