"""Conversion of predictions to instances at the original image size, without a queries x height x width tensor.

The order keeps validation within the memory of training: the best (query, class) pairs first, mask logits for the kept
queries only and in chunks, one resize straight from the logits to the original pixels, RLE at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vispeft.coco.rle import encode_region
from vispeft.errors import VispeftError
from vispeft.structures import ImageMeta, Instances, Predictions

# mask features are a quarter of the padded input unless the caller says otherwise
_FEATURE_STRIDE = 4


def postprocess(
    predictions: Predictions,
    metas: Sequence[ImageMeta],
    *,
    padded_size: tuple[int, int] | None = None,
    max_detections: int = 300,
    score_threshold: float = 0.0,
    mask_threshold: float = 0.0,
    chunk_bytes: int = 64 * 2**20,
) -> list[Instances]:
    """Return the instances of every image of a batch, best first, in original pixels; empty masks are left out.

    A score is the class probability times the mean probability of the mask's own pixels, as in Mask DINO's
    official inference.

    padded_size: height and width of the network input in pixels; four times the mask features if None
    max_detections: (query, class) pairs kept per image
    score_threshold: instances with a lower score are left out
    mask_threshold: logit above which a pixel belongs to the mask
    chunk_bytes: bound for the mask logits [n, h, w] held at once
    """
    if len(metas) != len(predictions.mask_features):
        raise VispeftError(f"`metas` must name {len(predictions.mask_features)} images, but names {len(metas)}.")
    cells = predictions.mask_features.shape[-2:]
    height, width = padded_size or (cells[0] * _FEATURE_STRIDE, cells[1] * _FEATURE_STRIDE)
    options = _Options(height, width, max_detections, score_threshold, mask_threshold, chunk_bytes)
    with torch.no_grad():
        return [_image_instances(predictions, image_idx, meta, options) for image_idx, meta in enumerate(metas)]


@dataclass(frozen=True)
class _Options:
    padded_height: int
    padded_width: int
    max_detections: int
    score_threshold: float
    mask_threshold: float
    chunk_bytes: int


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
class _Mask:
    """A mask and the mean probability of its pixels; no mask if not one pixel belongs to it."""

    rle: dict[str, Any] | None
    quality: float


def _image_instances(predictions: Predictions, image_idx: int, meta: ImageMeta, options: _Options) -> Instances:
    """Return the instances of one image of the batch."""
    layer = predictions.final
    boxes = layer.boxes[image_idx].float()  # [Q, 4]
    probs = layer.class_logits[image_idx].float().sigmoid().nan_to_num(0.0)  # [Q, K]
    probs = probs * boxes.isfinite().all(dim=-1, keepdim=True)
    class_scores, pair_idx = probs.flatten().topk(min(options.max_detections, probs.numel()))
    is_kept = (class_scores >= options.score_threshold) & (class_scores > 0)
    class_scores, pair_idx = class_scores[is_kept], pair_idx[is_kept]
    query_idx, labels = pair_idx // probs.shape[1], pair_idx % probs.shape[1]

    unique_query_idx, mask_idx = torch.unique(query_idx, return_inverse=True)
    masks = _query_masks(predictions, image_idx, unique_query_idx, meta, options)
    quality = torch.tensor([mask.quality for mask in masks], device=boxes.device)
    has_mask = torch.tensor([mask.rle is not None for mask in masks], dtype=torch.bool, device=boxes.device)
    scores = class_scores * quality[mask_idx]
    order = scores.argsort(descending=True, stable=True)
    order = order[(has_mask[mask_idx] & (scores >= options.score_threshold))[order]]
    rles = [masks[idx].rle for idx in mask_idx[order].tolist()]
    return Instances(
        scores=scores[order].cpu(),
        labels=labels[order].cpu(),
        boxes_xyxy=_to_pixels(boxes[query_idx[order]], meta, options).cpu(),
        rles=[dict(rle) for rle in rles if rle is not None],
    )


def _query_masks(
    predictions: Predictions, image_idx: int, query_idx: Tensor, meta: ImageMeta, options: _Options
) -> list[_Mask]:
    """Return one mask for each given query of one image. query_idx: [N] int64."""
    features = predictions.mask_features[image_idx]
    rows = _axis(meta.height, features.shape[-2], meta.input_height / options.padded_height, features.device)
    columns = _axis(meta.width, features.shape[-1], meta.input_width / options.padded_width, features.device)
    chunk_size = max(1, options.chunk_bytes // (4 * features.shape[-2] * features.shape[-1]))
    masks: list[_Mask] = []
    for chunk in torch.split(query_idx, chunk_size):
        logits = predictions.mask_logits(image_idx, chunk).float().nan_to_num(nan=-1e4, posinf=1e4, neginf=-1e4)
        is_above = logits > options.mask_threshold  # [n, h, w]
        marked_rows, marked_columns = is_above.any(dim=2).cpu(), is_above.any(dim=1).cpu()
        for query_logits, row_marks, column_marks in zip(logits, marked_rows, marked_columns, strict=True):
            if not row_marks.any():
                masks.append(_Mask(None, 0.0))
                continue
            region = rows.near(row_marks), columns.near(column_marks)
            masks.append(_resized_mask(query_logits, rows, columns, region, options.mask_threshold))
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


def _resized_mask(
    logits: Tensor, rows: _Axis, columns: _Axis, region: tuple[slice, slice], mask_threshold: float
) -> _Mask:
    """Return the mask of one query at the original size, by bilinear interpolation within `region`.

    logits: [h, w], of the padded input; region: rows and columns of the original image
    """
    row, column = region
    height, width = len(rows.lower), len(columns.lower)
    if row.start >= row.stop or column.start >= column.stop:
        return _Mask(None, 0.0)
    lines = torch.lerp(logits[rows.lower[row]], logits[rows.upper[row]], rows.weight[row, None])
    left, right = lines.index_select(1, columns.lower[column]), lines.index_select(1, columns.upper[column])
    resized = torch.lerp(left, right, columns.weight[column])
    is_inside = resized > mask_threshold
    inside_probs = resized[is_inside].sigmoid()
    if not len(inside_probs):
        return _Mask(None, 0.0)
    rle = encode_region(is_inside.cpu().numpy(), row.start, column.start, height, width)
    return _Mask(rle, float(inside_probs.sum()) / (len(inside_probs) + 1e-6))


def _to_pixels(boxes_cxcywh: Tensor, meta: ImageMeta, options: _Options) -> Tensor:
    """Return boxes in original pixels, clipped to the image: [N, 4] xyxy. boxes_cxcywh: [N, 4], normalised."""
    centre, size = boxes_cxcywh[:, :2], boxes_cxcywh[:, 2:]
    scale = boxes_cxcywh.new_tensor(
        [
            options.padded_width * meta.width / meta.input_width,
            options.padded_height * meta.height / meta.input_height,
        ]
    )
    limit = boxes_cxcywh.new_tensor([meta.width, meta.height]).repeat(2)
    boxes_xyxy = torch.cat([(centre - size / 2) * scale, (centre + size / 2) * scale], dim=-1)
    return boxes_xyxy.clamp(min=0).minimum(limit)
