"""Boxes, positions and grids that the pixel decoder and the decoder share: pure functions on tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Return the logit of `x`, with `x` and `1 - x` kept at or above `eps`."""
    x = x.clamp(min=0, max=1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def sine_embedding(positions: Tensor, width: int, temperature: float = 10000.0) -> Tensor:
    """Sine and cosine interleaved, `width` channels per coordinate (Vaswani et al. 2017, section 3.5; DETR).

    positions: [..., P] in 0..1. Returns [..., P * width].
    """
    channel = torch.arange(width, dtype=torch.float32, device=positions.device)
    period = temperature ** (2 * torch.div(channel, 2, rounding_mode="floor") / width)
    angle = positions.float().unsqueeze(-1) * (2 * math.pi) / period  # [..., P, width]
    pairs = torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), dim=-1)
    return pairs.flatten(-3)


def map_position_embedding(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Normalised sine position embedding of a feature map, y first (DETR). Returns [H * W, channels]."""
    eps = 1e-6
    y = torch.arange(1, height + 1, dtype=torch.float32, device=device) / (height + eps)
    x = torch.arange(1, width + 1, dtype=torch.float32, device=device) / (width + eps)
    y_embedding = sine_embedding(y[:, None], channels // 2)[:, None].expand(-1, width, -1)
    x_embedding = sine_embedding(x[:, None], channels // 2)[None].expand(height, -1, -1)
    return torch.cat((y_embedding, x_embedding), dim=-1).flatten(0, 1)


def cell_centres(spatial_shapes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """Centre of every cell of every level, normalised (x, y). Returns [sum HW, 2]."""
    centres = []
    for height, width in spatial_shapes:
        y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
        x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        centres.append(torch.stack((grid_x, grid_y), dim=-1).flatten(0, 1))
    return torch.cat(centres)


def masks_to_boxes(masks: Tensor, *, inclusive_end: bool) -> Tensor:
    """Tight normalised boxes around masks.

    masks: [..., h, w] bool. Returns [..., 4] cxcywh, divided by w and h. The far edge is the last pixel's index, one
    more where `inclusive_end` is set. Boxes of empty masks are not defined: replace them.
    """
    height, width = masks.shape[-2:]
    y_min, y_max = _first_and_last(masks.any(-1))
    x_min, x_max = _first_and_last(masks.any(-2))
    extra = 1 if inclusive_end else 0
    x_min, x_max = x_min / width, (x_max + extra) / width
    y_min, y_max = y_min / height, (y_max + extra) / height
    return torch.stack(((x_min + x_max) / 2, (y_min + y_max) / 2, x_max - x_min, y_max - y_min), dim=-1)


def _first_and_last(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the first and last True along the last axis, as float32."""
    occupied = occupied.to(torch.uint8)
    first = occupied.argmax(-1)
    last = occupied.shape[-1] - 1 - occupied.flip(-1).argmax(-1)
    return first.float(), last.float()
