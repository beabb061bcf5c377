"""Masks and boxes of predictions in the pixels of the original image: what the families' postprocessing shares.

Mask logits are taken for the kept queries alone and in chunks, and resized once, straight to the original pixels,
within the rectangle of each mask: no bitmap of the whole image is made. Masks whose rectangles have about one size are
resized and encoded together, since a small mask costs less than the calls for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vispeft.coco.rle import boxes_of, encode_regions
from vispeft.errors import VispeftError
from vispeft.models.base import DetectionLimits
from vispeft.structures import ImageMeta, Instances, Predictions

# logit above which a pixel belongs to a mask
_MASK_THRESHOLD = 0.0
# bound for the mask logits [n, h, w] held at once
_CHUNK_BYTES = 64 * 2**20
# bound for the pixels of masks that are resized together
_PIXELS_TOGETHER = 2**18


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
        return slice(max(start, 0), min(stop, self.lower.shape[0]))


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
        row_ends, column_ends = _ends(logits.amax(dim=2)), _ends(logits.amax(dim=1))
        regions = [
            None if ends is None or other_ends is None else _Region.of(rows, ends, columns, other_ends)
            for ends, other_ends in zip(row_ends, column_ends, strict=True)
        ]
        found = [QueryMask(None, 0.0)] * len(chunk)
        for group in _groups(regions):
            for (place, _), mask in zip(group, _resized_masks(logits, rows, columns, group), strict=True):
                found[place] = mask
        masks += found
    return masks


@dataclass(frozen=True)
class _Region:
    """The pixels of the original image that a mask's cells affect: first row and column, and the numbers of them."""

    top: int
    left: int
    height: int
    width: int

    @classmethod
    def of(
        cls, rows: PixelAxis, row_ends: tuple[int, int], columns: PixelAxis, column_ends: tuple[int, int]
    ) -> _Region | None:
        """Return the region of the cells between ends; None outside of the image."""
        row, column = rows.near(*row_ends), columns.near(*column_ends)
        if row.start >= row.stop or column.start >= column.stop:
            return None
        return cls(row.start, column.start, row.stop - row.start, column.stop - column.start)


def _ends(highest: Tensor) -> list[tuple[int, int] | None]:
    """Return the first and last cell of each line that belongs to a mask, or None for none. highest: [n, cells]"""
    marks = (highest > _MASK_THRESHOLD).cpu().numpy()
    first, last = marks.argmax(axis=1), marks.shape[1] - 1 - marks[:, ::-1].argmax(axis=1)
    ends = zip(first.tolist(), last.tolist(), map(any, marks.tolist()), strict=True)
    return [(one, other) if has_any else None for one, other, has_any in ends]


def _groups(regions: Sequence[_Region | None]) -> list[list[tuple[int, _Region]]]:
    """Return the regions with their places, in groups of about one height and width each."""
    by_size: dict[tuple[int, int], list[tuple[int, _Region]]] = {}
    for place, region in enumerate(regions):
        if region is not None:
            by_size.setdefault((_rounded(region.height), _rounded(region.width)), []).append((place, region))
    groups = []
    for (height, width), members in by_size.items():
        most = max(1, _PIXELS_TOGETHER // (height * width))
        groups += [members[start : start + most] for start in range(0, len(members), most)]
    return groups


def _rounded(side: int) -> int:
    """Return a side rounded up: to 32 or 64 pixels, above that to one of four sizes per octave.

    Small masks cost less by their pixels than by the number of groups.
    """
    if side <= 64:
        return 32 if side <= 32 else 64
    step = 1 << (side - 1).bit_length() >> 3
    return -(-side // step) * step


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


def _resized_masks(
    logits: Tensor, rows: PixelAxis, columns: PixelAxis, group: Sequence[tuple[int, _Region]]
) -> list[QueryMask]:
    """Return masks at the original size, by bilinear interpolation within their regions.

    logits: [n, h, w], of the padded input
    group: index into the logits, and region of the original image, of each mask
    """
    device, (_, num_cell_rows, num_cell_columns) = logits.device, logits.shape
    height = max(region.height for _, region in group)
    width = max(region.width for _, region in group)
    numbers = torch.tensor([(place, one.top, one.left, one.height, one.width) for place, one in group])
    place, top, left, region_height, region_width = numbers.to(device).T[..., None]  # [n, 1] each
    in_region_rows, in_region_columns = (torch.arange(side, device=device)[None] for side in (height, width))
    row = (top + in_region_rows).clamp(max=len(rows.lower) - 1)  # [n, height]
    column = (left + in_region_columns).clamp(max=len(columns.lower) - 1)  # [n, width]

    lines_of_cells = logits.flatten(0, 1)
    lower, upper = (
        lines_of_cells.index_select(0, (place * num_cell_rows + cells[row]).flatten())
        for cells in (rows.lower, rows.upper)
    )
    lines = torch.lerp(lower, upper, rows.weight[row].view(-1, 1)).view(-1, height, num_cell_columns)
    # columns first, as COCO counts
    columns_of_lines = lines.transpose(1, 2).contiguous().flatten(0, 1)
    nth = torch.arange(len(group), device=device)[:, None] * num_cell_columns
    before, after = (
        columns_of_lines.index_select(0, (nth + cells[column]).flatten()) for cells in (columns.lower, columns.upper)
    )
    resized = torch.lerp(before, after, columns.weight[column].view(-1, 1)).view(-1, width, height)
    is_inside = resized > _MASK_THRESHOLD
    if len(group) > 1:
        is_inside &= (in_region_columns < region_width)[:, :, None] & (in_region_rows < region_height)[:, None, :]
    found = is_inside.cpu().numpy()
    areas = [int(np.count_nonzero(one)) for one in found]
    probs = resized.masked_select(is_inside).sigmoid()
    sums = torch.stack([part.sum() for part in torch.split(probs, areas)]).tolist()
    tops, lefts = numbers[:, 1].numpy(), numbers[:, 2].numpy()
    rles = encode_regions(found, tops, lefts, len(rows.lower), len(columns.lower))
    masks = zip(rles, sums, areas, strict=True)
    return [QueryMask(rle, total / (area + 1e-6)) if area else QueryMask(None, 0.0) for rle, total, area in masks]


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
