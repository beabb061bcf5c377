"""Instances from Mask DINO's predictions: the best (query, class) pairs with their masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vispeft.errors import VispeftError
from vispeft.models.base import DetectionLimits
from vispeft.models.postprocess import boxes_in_pixels, query_masks
from vispeft.structures import ImageMeta, Instances, Predictions


@torch.no_grad()
def postprocess(
    predictions: Predictions,
    metas: Sequence[ImageMeta],
    *,
    padded_size: tuple[int, int],
    limits: DetectionLimits,
) -> list[Instances]:
    """Return the instances of every image of a batch, best first, in original pixels; empty masks are left out.

    A score is the class probability times the mean probability of the mask's own pixels, as in the official inference.
    `max_detections` (query, class) pairs are kept before masks are made.

    padded_size: H and W
    """
    if len(metas) != len(predictions.mask_features):
        raise VispeftError(f"`metas` must name {len(predictions.mask_features)} images, but names {len(metas)}.")
    return [_image_instances(predictions, i, meta, padded_size, limits) for i, meta in enumerate(metas)]


def _image_instances(
    predictions: Predictions, image_idx: int, meta: ImageMeta, padded_size: tuple[int, int], limits: DetectionLimits
) -> Instances:
    """Return the instances of one image of the batch."""
    layer = predictions.final
    boxes = layer.predicted_boxes[image_idx].float()  # [Q, 4]
    probs = layer.class_logits[image_idx].float().sigmoid().nan_to_num(0.0)  # [Q, K]
    probs = probs * boxes.isfinite().all(dim=-1, keepdim=True)
    class_scores, pair_idx = probs.flatten().topk(min(limits.max_detections, probs.numel()))
    is_kept = (class_scores >= limits.score_threshold) & (class_scores > 0)
    class_scores, pair_idx = class_scores[is_kept], pair_idx[is_kept]
    query_idx, labels = pair_idx // probs.shape[1], pair_idx % probs.shape[1]

    unique_query_idx, mask_idx = torch.unique(query_idx, return_inverse=True)
    masks = query_masks(predictions, image_idx, unique_query_idx, meta, padded_size=padded_size)
    quality = torch.tensor([mask.quality for mask in masks], device=boxes.device)
    has_mask = torch.tensor([mask.rle is not None for mask in masks], dtype=torch.bool, device=boxes.device)
    scores = class_scores * quality[mask_idx]
    order = scores.argsort(descending=True, stable=True)
    order = order[(has_mask[mask_idx] & (scores >= limits.score_threshold))[order]]
    rles = [masks[idx].rle for idx in mask_idx[order].tolist()]
    return Instances(
        scores=scores[order].cpu(),
        labels=labels[order].cpu(),
        boxes_xyxy=boxes_in_pixels(boxes[query_idx[order]], meta, padded_size).cpu(),
        rles=[dict(rle) for rle in rles if rle is not None],
    )
