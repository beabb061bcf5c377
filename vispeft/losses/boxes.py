"""Box arithmetic of the box losses and of the matching."""

from __future__ import annotations

import torch
from torch import Tensor

_MIN_AREA = 1e-7  # keeps empty boxes from dividing by zero


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Centre and size to corners. boxes: [..., 4]."""
    center, half_size = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((center - half_size, center + half_size), dim=-1)


def iou(boxes_xyxy: Tensor, others_xyxy: Tensor) -> Tensor:
    """Intersection over union, in 0..1, of boxes [..., 4] that broadcast against each other. Returns [...]."""
    intersection, union = _intersection_and_union(boxes_xyxy, others_xyxy)
    return intersection / union.clamp(min=_MIN_AREA)


def generalized_iou(boxes_xyxy: Tensor, others_xyxy: Tensor) -> Tensor:
    """Generalised IoU (https://arxiv.org/abs/1902.09630) of boxes [..., 4] that broadcast against each other.

    Returns [...], from -1 (far apart) to 1 (the same box).
    """
    top_left, bottom_right = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    other_top_left, other_bottom_right = others_xyxy[..., :2], others_xyxy[..., 2:]
    intersection, union = _intersection_and_union(boxes_xyxy, others_xyxy)
    hull = (torch.maximum(bottom_right, other_bottom_right) - torch.minimum(top_left, other_top_left)).prod(-1)
    return intersection / union.clamp(min=_MIN_AREA) - (hull - union) / hull.clamp(min=_MIN_AREA)


def _intersection_and_union(boxes_xyxy: Tensor, others_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """Return both areas, each [...]."""
    top_left, bottom_right = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    other_top_left, other_bottom_right = others_xyxy[..., :2], others_xyxy[..., 2:]
    overlap = torch.minimum(bottom_right, other_bottom_right) - torch.maximum(top_left, other_top_left)
    intersection = overlap.clamp(min=0).prod(-1)
    union = (bottom_right - top_left).prod(-1) + (other_bottom_right - other_top_left).prod(-1) - intersection
    return intersection, union
