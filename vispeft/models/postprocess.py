"""Masks and boxes of predictions in the pixels of the original image: what the families' postprocessing shares.

Mask logits are taken for the kept queries alone and in chunks, resized once, straight to the original pixels, and
encoded at once, so that validation stays within the memory of training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vispeft.coco.rle import boxes_of, encode_region
from vispeft.errors import VispeftError
from vispeft.models.base import DetectionLimits
from vispeft.structures import ImageMeta, Instances, Predictions

# logit above which a pixel belongs to a mask
_MASK_THRESHOLD = 0.0
# bound for the mask logits [n, h, w] held at once
_CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class PixelAxis:
    """Positions of the pixels of one image axis on the grid of the mask logits.

    lower, upper: [pixels] int64, the two nearest cells
    weight: [pixels] float32, the share of the upper one
    scale: cells per pixel
    """

    lower: Tensor
    upper: Tensor
    weight: Tensor
    scale: float

    def near(self, first: int, last: int) -> slice:
        """Return the range of pixels that the cells from `first` to `last` affect."""
        start = math.floor((first - 0.5) / self.scale - 0.5)
        stop = math.ceil((last + 1.5) / self.scale - 0.5) + 1
        return slice(max(start, 0), min(stop, len(self.lower)))


@dataclass(frozen=True)
class QueryMask:
    """A mask and the mean probability of its pixels; no mask if not one pixel belongs to it."""

    rle: dict[str, Any] | None
    quality: float


def check_metas(predictions: Predictions, metas: Sequence[ImageMeta]) -> None:
    """Raise VispeftError where the sizes are not those of as many images as the predictions are for."""
    if len(metas) != len(predictions.mask_features):
        raise VispeftError(f"`metas` must name {len(predictions.mask_features)} images, but names {len(metas)}.")


def best_instances(
    predictions: Predictions,
    image_idx: int,
    class_probs: Tensor,
    meta: ImageMeta,
    *,
    padded_size: tuple[int, int],
    limits: DetectionLimits,
    boxes_xyxy: Tensor | None = None,
    weighs_masks: bool = True,
) -> Instances:
    """Return the instances of one image of a batch, best first, in original pixels; empty masks are left out.

    A score is the class probability times the mean probability of the mask's own pixels, as in the official inference
    of Mask2Former and Mask DINO. `max_detections` (query, class) pairs are kept before masks are made.

    class_probs: [Q, K], of the classes without "no object", finite
    padded_size: H and W
    boxes_xyxy: [Q, 4] in original pixels; None: the boxes that enclose the masks
    weighs_masks: False for scores that are the class probability alone
    """
    class_scores, pair_idx = class_probs.flatten().topk(min(limits.max_detections, class_probs.numel()))
    is_kept = (class_scores >= limits.score_threshold) & (class_scores > 0)
    class_scores, pair_idx = class_scores[is_kept], pair_idx[is_kept]
    query_idx, labels = pair_idx // class_probs.shape[1], pair_idx % class_probs.shape[1]

    unique_query_idx, mask_idx = torch.unique(query_idx, return_inverse=True)
    masks = query_masks(predictions, image_idx, unique_query_idx, meta, padded_size=padded_size)
    quality = torch.tensor([mask.quality for mask in masks], device=class_probs.device)
    has_mask = torch.tensor([mask.rle is not None for mask in masks], dtype=torch.bool, device=class_probs.device)
    scores = class_scores * quality[mask_idx] if weighs_masks else class_scores
    order = scores.argsort(descending=True, stable=True)
    order = order[(has_mask[mask_idx] & (scores >= limits.score_threshold))[order]]
    rles = [dict(rle) for idx in mask_idx[order].tolist() if (rle := masks[idx].rle) is not None]
    boxes = torch.from_numpy(boxes_of(rles)) if boxes_xyxy is None else boxes_xyxy[query_idx[order]].cpu()
    return Instances(scores[order].cpu(), labels[order].cpu(), boxes, rles)


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
    rows = pixel_axis(meta.height, features.shape[-2], meta.input_height / padded_size[0], features.device)
    columns = pixel_axis(meta.width, features.shape[-1], meta.input_width / padded_size[1], features.device)
    chunk_size = max(1, _CHUNK_BYTES // (4 * features.shape[-2] * features.shape[-1]))
    masks: list[QueryMask] = []
    for chunk in torch.split(query_idx, chunk_size):
        logits = predictions.mask_logits(image_idx, chunk).float().nan_to_num(nan=-1e4, posinf=1e4, neginf=-1e4)
        is_above = logits > _MASK_THRESHOLD  # [n, h, w]
        marked_rows, marked_columns = _ends(is_above.any(dim=2)), _ends(is_above.any(dim=1))
        for query_logits, row_ends, column_ends in zip(logits, marked_rows, marked_columns, strict=True):
            if row_ends is None or column_ends is None:
                masks.append(QueryMask(None, 0.0))
                continue
            region = rows.near(*row_ends), columns.near(*column_ends)
            masks.append(_resized_mask(query_logits, rows, columns, region))
    return masks


def _ends(is_marked: Tensor) -> list[tuple[int, int] | None]:
    """Return the first and last marked cell of each line, or None where none is marked. is_marked: [n, cells] bool"""
    marks = is_marked.cpu().numpy()
    first, last = marks.argmax(axis=1), marks.shape[1] - 1 - marks[:, ::-1].argmax(axis=1)
    ends = zip(first.tolist(), last.tolist(), map(any, marks.tolist()), strict=True)
    return [(one, other) if has_any else None for one, other, has_any in ends]


def pixel_axis(num_pixels: int, num_cells: int, filled: float, device: torch.device) -> PixelAxis:
    """Return the sampling of one axis. filled: the share of the padded input that the image fills."""
    scale = num_cells * filled / num_pixels
    centres = (torch.arange(num_pixels, dtype=torch.float64) + 0.5) * scale - 0.5
    centres = centres.clamp(0, num_cells - 1)
    lower = centres.floor()
    weight = (centres - lower).float()
    lower_idx = lower.long()
    upper_idx = (lower_idx + 1).clamp(max=num_cells - 1)
    return PixelAxis(lower_idx.to(device), upper_idx.to(device), weight.to(device), scale)


def _resized_mask(logits: Tensor, rows: PixelAxis, columns: PixelAxis, region: tuple[slice, slice]) -> QueryMask:
    """Return the mask of one query at the original size, by bilinear interpolation within `region`.

    logits: [h, w], of the padded input; region: rows and columns of the original image
    """
    row, column = region
    height, width = len(rows.lower), len(columns.lower)
    if row.start >= row.stop or column.start >= column.stop:
        return QueryMask(None, 0.0)
    lower, upper = logits.index_select(0, rows.lower[row]), logits.index_select(0, rows.upper[row])
    lines = torch.lerp(lower, upper, rows.weight[row, None])
    left, right = lines.index_select(1, columns.lower[column]), lines.index_select(1, columns.upper[column])
    resized = torch.lerp(left, right, columns.weight[column])
    is_inside = resized > _MASK_THRESHOLD
    inside_probs = resized.masked_select(is_inside).sigmoid()
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
