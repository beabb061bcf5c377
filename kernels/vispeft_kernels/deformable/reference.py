"""Multi-scale deformable attention in plain `grid_sample`: the reference for every other implementation."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def deformable_attention_reference(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Return the weighted sum of bilinear samples of all levels. It can be differentiated twice.

    value: [B, S, heads, dim]; sampling_locations: [B, Q, heads, levels, points, 2]; attention_weights: [B, Q, heads,
    levels, points]. Returns [B, Q, heads * dim] in the dtype of `value`; computes in float32, or float64 if given.
    """
    batch, _, heads, dim = value.shape
    num_queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    with torch.autocast(value.device.type, enabled=False):
        grids = 2 * sampling_locations.to(dtype) - 1  # grid_sample counts from -1 to 1
        weights = attention_weights.to(dtype)
        out = value.new_zeros(batch * heads, dim, num_queries, dtype=dtype)
        levels = torch.split(value.to(dtype), [height * width for height, width in spatial_shapes], dim=1)
        for idx, ((height, width), level) in enumerate(zip(spatial_shapes, levels, strict=True)):
            plane = level.permute(0, 2, 3, 1).reshape(batch * heads, dim, height, width)
            grid = grids[:, :, :, idx].transpose(1, 2).reshape(batch * heads, num_queries, points, 2)
            weight = weights[:, :, :, idx].transpose(1, 2).reshape(batch * heads, 1, num_queries, points)
            sampled = F.grid_sample(plane, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            out = out + (sampled * weight).sum(-1)
        out = out.view(batch, heads * dim, num_queries).transpose(1, 2)
    return out.to(value.dtype)
