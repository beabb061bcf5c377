"""Masks and boxes of predictions in the pixels of the original image: what the families' postprocessing shares.

Mask logits are taken for the kept queries alone and in chunks, resized once, straight to the original pixels, and
encoded at once, so that validation stays within the memory of training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vispeft.coco.rle import encode_region
from vispeft.structures import ImageMeta, Predictions

# logit above which a pixel belongs to a mask
_MASK_THRESHOLD = 0.0
# bound for the mask logits [n, h, w] held at once
_CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class _Axis:
    """Positions of the pixels of one image axis on the grid of the mask logits.

    lower, upper: [pixels] int64, the two nearest cells
    weight: [pixels] float32, the share of the upper one
    scale: cells per pixel
    """

    lower: Tensor
    upper: Tensor
    weight: Tensor
    scale: float

    def near(self, cells: Tensor) -> slice:
        """Return the range of pixels that marked cells affect. cells: [cells] bool, on the CPU, not all false."""
        marked = cells.nonzero()
        first, last = int(marked[0]), int(marked[-1])
        start = math.floor((first - 0.5) / self.scale - 0.5)
        stop = math.ceil((last + 1.5) / self.scale - 0.5) + 1
        return slice(max(start, 0), min(stop, len(self.lower)))


@dataclass(frozen=True)
class QueryMask:
    """A mask and the mean probability of its pixels; no mask if not one pixel belongs to it."""

    rle: dict[str, Any] | None
    quality: float


def query_masks(
    predictions: Predictions,
    image_idx: int,
    query_idx: Tensor,
    meta: ImageMeta,
    *,
    padded_size: tuple[int, int],
) -> list[QueryMask]:
    """Return one mask for each given query of one image, at the image's own size.

    query_idx: [N] int64
    padded_size: H and W
    """
    features = predictions.mask_features[image_idx]
    rows = _axis(meta.height, features.shape[-2], meta.input_height / padded_size[0], features.device)
    columns = _axis(meta.width, features.shape[-1], meta.input_width / padded_size[1], features.device)
    chunk_size = max(1, _CHUNK_BYTES // (4 * features.shape[-2] * features.shape[-1]))
    masks: list[QueryMask] = []
    for chunk in torch.split(query_idx, chunk_size):
        logits = predictions.mask_logits(image_idx, chunk).float().nan_to_num(nan=-1e4, posinf=1e4, neginf=-1e4)
        is_above = logits > _MASK_THRESHOLD  # [n, h, w]
        marked_rows, marked_columns = is_above.any(dim=2).cpu(), is_above.any(dim=1).cpu()
        for query_logits, row_marks, column_marks in zip(logits, marked_rows, marked_columns, strict=True):
            if not row_marks.any():
                masks.append(QueryMask(None, 0.0))
                continue
            region = rows.near(row_marks), columns.near(column_marks)
            masks.append(_resized_mask(query_logits, rows, columns, region))
    return masks


def _axis(num_pixels: int, num_cells: int, filled: float, device: torch.device) -> _Axis:
    """Return the sampling of one axis. filled: the share of the padded input that the image fills."""
    scale = num_cells * filled / num_pixels
    centres = (torch.arange(num_pixels, dtype=torch.float64) + 0.5) * scale - 0.5
    centres = centres.clamp(0, num_cells - 1)
    lower = centres.floor()
    weight = (centres - lower).float()
    lower_idx = lower.long()
    upper_idx = (lower_idx + 1).clamp(max=num_cells - 1)
    return _Axis(lower_idx.to(device), upper_idx.to(device), weight.to(device), scale)


def _resized_mask(logits: Tensor, rows: _Axis, columns: _Axis, region: tuple[slice, slice]) -> QueryMask:
    """Return the mask of one query at the original size, by bilinear interpolation within `region`.

    logits: [h, w], of the padded input; region: rows and columns of the original image
    """
    row, column = region
    height, width = len(rows.lower), len(columns.lower)
    if row.start >= row.stop or column.start >= column.stop:
        return QueryMask(None, 0.0)
    lines = torch.lerp(logits[rows.lower[row]], logits[rows.upper[row]], rows.weight[row, None])
    left, right = lines.index_select(1, columns.lower[column]), lines.index_select(1, columns.upper[column])
    resized = torch.lerp(left, right, columns.weight[column])
    is_inside = resized > _MASK_THRESHOLD
    inside_probs = resized[is_inside].sigmoid()
    if not len(inside_probs):
        return QueryMask(None, 0.0)
    rle = encode_region(is_inside.cpu().numpy(), row.start, column.start, height, width)
    return QueryMask(rle, float(inside_probs.sum()) / (len(inside_probs) + 1e-6))


def boxes_in_pixels(boxes_cxcywh: Tensor, meta: ImageMeta, padded_size: tuple[int, int]) -> Tensor:
    """Return boxes in original pixels, clipped to the image: [N, 4] xyxy. boxes_cxcywh: [N, 4], normalised."""
    centre, size = boxes_cxcywh[:, :2], boxes_cxcywh[:, 2:]
    scale = boxes_cxcywh.new_tensor(
        [
            padded_size[1] * meta.width / meta.input_width,
            padded_size[0] * meta.height / meta.input_height,
        ]
    )
    limit = boxes_cxcywh.new_tensor([meta.width, meta.height]).repeat(2)
    boxes_xyxy = torch.cat([(centre - size / 2) * scale, (centre + size / 2) * scale], dim=-1)
    return boxes_xyxy.clamp(min=0).minimum(limit)
