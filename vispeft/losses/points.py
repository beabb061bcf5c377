"""Comparison of masks at points instead of all pixels (PointRend, https://arxiv.org/abs/1912.08193).

Points are (x, y) in 0..1 over the whole map. Reading a map at a point is bilinear and zero outside of it, as
`torch.nn.functional.grid_sample` does with `align_corners=False`. It is linear, so mask logits at points are the
product of the embeddings with the mask features at those points: features are read once for all queries and layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# points of the mask losses and matching costs in Mask2Former, and in the families after it
PUBLISHED_POINTS = 12544
# mask logits held at once: bounds memory for large models, keeps small ones in the cache
LOGITS_AT_ONCE = 2**22


@dataclass(frozen=True)
class Corners:
    """Four cells around each point and their weights, for maps of one size.

    idx: [P, 4] int64 into the flattened map
    weights: [P, 4] float32, zero for a cell outside of the map
    """

    idx: Tensor
    weights: Tensor
    num_cells: int

    @cached_property
    def by_cell(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the same sorted by cell: points [4 P], offset of each cell's first point [cells], and weights [4 P].

        Sums over these instead of atomic adds are fast and repeatable.
        """
        cells, order = self.idx.flatten().sort(stable=True)
        starts = torch.searchsorted(cells, torch.arange(self.num_cells, device=cells.device))
        return order // 4, starts, self.weights.flatten()[order]


def corners(points: Tensor, height: int, width: int) -> Corners:
    """Corners of `points` [P, 2] (x, y in 0..1) on a map of `height` x `width` cells."""
    size = points.new_tensor((width, height))
    position = points * size - 0.5  # in cells, 0 at the centre of the first one
    first = position.floor()
    second_share = position - first
    cell = torch.stack((first, first + 1), dim=1)  # [P, 2 (first, second), 2 (x, y)]
    share = torch.stack((1 - second_share, second_share), dim=1)
    share = share * ((cell >= 0) & (cell < size))
    x, y = torch.minimum(cell.clamp(min=0), size - 1).long().unbind(-1)  # [P, 2] each
    idx = y[:, :, None] * width + x[:, None, :]
    weights = share[:, :, None, 1] * share[:, None, :, 0]
    return Corners(idx.flatten(1), weights.flatten(1), height * width)


def cell_rows(features: Tensor) -> Tensor:
    """Feature maps [B, D, h, w] as one row per cell, [B, h w, D] float32: no copy if they are channels-last."""
    return features.float().permute(0, 2, 3, 1).flatten(1, 2).contiguous()


def read_rows(rows: Tensor, at: Corners) -> Tensor:
    """Return [P, D]: the rows of one image's cells [h w, D] at the points of `at`, without gradient."""
    return F.embedding_bag(at.idx, rows.detach(), mode="sum", per_sample_weights=at.weights)


def spread_rows(rows: Tensor, at: Corners) -> Tensor:
    """Transpose of `read_rows`: add rows [P, D] at the points to their cells by weight. Returns [h w, D]."""
    point_idx, starts, weights = at.by_cell
    return F.embedding_bag(point_idx, rows.detach(), starts, mode="sum", per_sample_weights=weights)


def sample_masks(masks: Tensor, at: Corners) -> Tensor:
    """Target masks [T, H, W] bool at the points of `at`. Returns [T, P] float32 in 0..1."""
    values = _columns(masks.flatten(1), at.idx.T.flatten()).view(-1, 4, len(at.idx))
    return (values * at.weights.T).sum(1)


def _columns(x: Tensor, idx: Tensor) -> Tensor:
    """Columns `idx` [N] of `x` [T, cells], without gradient."""
    if _is_read_by_numpy(x):
        # numpy gathers more than twice as fast as torch.index_select on a CPU
        return torch.from_numpy(x.numpy().take(idx.numpy(), axis=1))
    return x.index_select(1, idx)


def _is_read_by_numpy(x: Tensor) -> bool:
    """Return True for a plain tensor on the CPU; a tensor without data, as estimates use, is of another type."""
    return x.device.type == "cpu" and type(x) is Tensor


def smallest(values: Tensor, count: int) -> Tensor:
    """Indices of the `count` smallest of each row, in no order. values: [M, N]. Returns [M, count] int64."""
    if _is_read_by_numpy(values) and 0 < count < values.shape[1]:
        # numpy selects several times as fast as torch.topk on a CPU
        return torch.from_numpy(np.argpartition(values.detach().numpy(), count - 1, axis=1)[:, :count])
    return values.topk(count, dim=1, largest=False, sorted=False).indices


@dataclass(frozen=True)
class PointPlan:
    """Numbers of points that a mask loss reads: candidates, of which the most uncertain stay, and random ones.

    PointRend section 3.1; Mask DINO takes the settings of Mask2Former: 12544 points, oversampling 3, importance 0.75.
    """

    num_candidates: int
    num_uncertain: int
    num_random: int

    @classmethod
    def of(cls, num_points: int, oversample_ratio: float, importance_sample_ratio: float) -> PointPlan:
        """Return the plan for `num_points` in all."""
        num_uncertain = int(importance_sample_ratio * num_points)
        num_candidates = max(int(num_points * oversample_ratio), num_uncertain)
        return cls(num_candidates, num_uncertain, num_points - num_uncertain)

    @property
    def num_drawn(self) -> int:
        """Points to draw: the candidates, then the random ones."""
        return self.num_candidates + self.num_random

    @torch.no_grad()
    def select(self, logits: Tensor) -> Tensor:
        """Return the points at which each mask is compared: [M, num_points] int64. logits: [M, num_drawn]"""
        uncertain = smallest(logits[:, : self.num_candidates].abs(), self.num_uncertain)
        random = torch.arange(self.num_candidates, self.num_drawn, device=logits.device)
        return torch.cat((uncertain, random.expand(len(logits), -1)), dim=1)
