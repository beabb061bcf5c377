"""Instances from Mask DINO's predictions: the best (query, class) pairs with their masks, or boxes alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vispeft.models.base import DetectionLimits
from vispeft.models.postprocess import best_instances, boxes_in_pixels, check_metas
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

    Scores and limits are those of `best_instances`.

    padded_size: H and W
    """
    check_metas(predictions, metas)
    return [_image_instances(predictions, i, meta, padded_size, limits) for i, meta in enumerate(metas)]


@torch.no_grad()
def detected_boxes(
    predictions: Predictions,
    metas: Sequence[ImageMeta],
    *,
    padded_size: tuple[int, int],
    limits: DetectionLimits,
) -> list[Instances]:
    """Return the boxes of every image of a batch, best first, in original pixels, from predictions without masks.

    A score is the class probability (Deformable DETR).

    padded_size: H and W
    """
    check_metas(predictions, metas)
    found = []
    for image_idx, meta in enumerate(metas):
        boxes_xyxy, probs = _boxes_and_probs(predictions, image_idx, meta, padded_size)
        scores, pair_idx = probs.flatten().topk(min(limits.max_detections, probs.numel()))
        is_kept = (scores >= limits.score_threshold) & (scores > 0)
        query_idx, labels = pair_idx[is_kept] // probs.shape[1], pair_idx[is_kept] % probs.shape[1]
        found.append(Instances(scores[is_kept].cpu(), labels.cpu(), boxes_xyxy[query_idx].cpu(), ()))
    return found


def _image_instances(
    predictions: Predictions, image_idx: int, meta: ImageMeta, padded_size: tuple[int, int], limits: DetectionLimits
) -> Instances:
    """Return the instances of one image of the batch."""
    boxes_xyxy, probs = _boxes_and_probs(predictions, image_idx, meta, padded_size)
    return best_instances(
        predictions, image_idx, probs, meta, padded_size=padded_size, limits=limits, boxes_xyxy=boxes_xyxy
    )


def _boxes_and_probs(
    predictions: Predictions, image_idx: int, meta: ImageMeta, padded_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return boxes [Q, 4] xyxy in original pixels and class probabilities [Q, K] of one image of the batch."""
    layer = predictions.final
    boxes = layer.predicted_boxes[image_idx].float()  # [Q, 4]
    probs = layer.class_logits[image_idx].float().sigmoid().nan_to_num(0.0)  # [Q, K]
    probs = probs * boxes.isfinite().all(dim=-1, keepdim=True)
    return boxes_in_pixels(boxes, meta, padded_size), probs
