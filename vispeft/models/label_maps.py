"""Semantic and panoptic label maps from the masks and classes of queries, as published with MaskFormer.

Maps are made a few rows at a time, straight at the size of the original image, so that the masks of all queries are
never held at that size at once. A map is returned as `Instances` that do not overlap: one for each class, or segment.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vispeft.coco.label_maps import rles_of_map
from vispeft.coco.rle import boxes_of
from vispeft.models.base import QueryScores
from vispeft.models.postprocess import check_metas, pixel_axis
from vispeft.structures import ImageMeta, Instances, Predictions

# bound for the mask probabilities [n, rows, width] held at once
_BAND_BYTES = 64 * 2**20
_INSIDE = 0.5


@dataclass(frozen=True)
class PanopticLimits:
    """Limits of the segments of a panoptic map.

    object_mask_threshold: least score of a query that becomes a segment, exclusive
    overlap_threshold: least part of a query's own mask that is left after better queries have taken their pixels
    """

    object_mask_threshold: float = 0.8
    overlap_threshold: float = 0.8


@torch.no_grad()
def semantic_maps(
    predictions: Predictions, scores: QueryScores, metas: Sequence[ImageMeta], *, padded_size: tuple[int, int]
) -> list[Instances]:
    """Return the classes of each image's pixels: at every pixel the class with the largest sum, over queries, of class
    probability times mask probability (MaskFormer, section 3.4).

    An instance is one class, whose score is its mean part of the sums of all classes over its pixels.

    predictions: in float32
    padded_size: H and W
    """
    check_metas(predictions, metas)
    found = []
    for image_idx, meta in enumerate(metas):
        class_probs = scores.class_probs[image_idx]  # [Q, K]
        labels, parts = [], []
        for band in _bands(predictions, image_idx, None, meta, padded_size):
            sums = torch.einsum("qk,qhw->khw", class_probs, band)
            best, label = sums.max(0)
            labels.append(label.cpu())
            parts.append((best / sums.sum(0).clamp(min=1e-12)).cpu())
        label_map, part = torch.cat(labels), torch.cat(parts)
        areas = torch.bincount(label_map.flatten())
        means = torch.bincount(label_map.flatten(), part.flatten()) / areas.clamp(min=1)
        segments = {label + 1: (label, float(means[label])) for label in areas.nonzero()[:, 0].tolist()}
        # 0 is no segment in a map of run lengths
        found.append(_instances(label_map + 1, segments))
    return found


@torch.no_grad()
def panoptic_maps(
    predictions: Predictions,
    scores: QueryScores,
    metas: Sequence[ImageMeta],
    *,
    padded_size: tuple[int, int],
    stuff: Collection[int],
    limits: PanopticLimits,
) -> list[Instances]:
    """Return the segments of each image (MaskFormer, section 3.4): every pixel goes to the query with the largest
    product of weight and mask probability, queries that lose most of their own mask are left out, and the segments of
    one stuff class are united.

    predictions: in float32
    padded_size: H and W
    stuff: indices of the classes without instances
    """
    check_metas(predictions, metas)
    return [
        _panoptic_map(predictions, scores, image_idx, meta, padded_size, stuff, limits)
        for image_idx, meta in enumerate(metas)
    ]


def _panoptic_map(
    predictions: Predictions,
    scores: QueryScores,
    image_idx: int,
    meta: ImageMeta,
    padded_size: tuple[int, int],
    stuff: Collection[int],
    limits: PanopticLimits,
) -> Instances:
    """Return the segments of one image of the batch."""
    query_labels = scores.labels[image_idx]
    is_object = (query_labels >= 0) & (scores.scores[image_idx] > limits.object_mask_threshold)
    query_idx = is_object.nonzero()[:, 0]
    kept = scores.weights[image_idx, query_idx]
    if not len(kept):
        return _instances(torch.zeros(meta.height, meta.width, dtype=torch.int64), {})
    own_areas = torch.zeros(len(kept), dtype=torch.int64)
    winners, inside = [], []
    for band in _bands(predictions, image_idx, query_idx, meta, padded_size):
        winner = (kept[:, None, None] * band).argmax(0)
        is_own = band >= _INSIDE
        own_areas += is_own.sum((1, 2)).cpu()
        winners.append(winner.cpu())
        inside.append(is_own.gather(0, winner[None])[0].cpu())
    winner_map, is_inside = torch.cat(winners), torch.cat(inside)
    areas = torch.bincount(winner_map.flatten(), minlength=len(kept))
    visible = torch.bincount(winner_map[is_inside], minlength=len(kept))
    is_kept = (visible > 0) & (areas.double() / own_areas.clamp(min=1) >= limits.overlap_threshold)
    segment_of = torch.zeros(len(kept), dtype=torch.int64)
    segments: dict[int, tuple[int, float]] = {}
    stuff_segments: dict[int, int] = {}
    for number in is_kept.nonzero()[:, 0].tolist():
        query = query_idx[number]
        label, score = int(query_labels[query]), float(scores.scores[image_idx, query])
        segment = stuff_segments.get(label, len(segments) + 1)
        if label in stuff:
            stuff_segments[label] = segment
        segment_of[number] = segment
        segments[segment] = (label, max(score, segments.get(segment, (label, 0.0))[1]))
    return _instances(segment_of[winner_map] * is_inside, segments)


def _bands(
    predictions: Predictions,
    image_idx: int,
    query_idx: Tensor | None,
    meta: ImageMeta,
    padded_size: tuple[int, int],
) -> Iterator[Tensor]:
    """Yield mask probabilities [n, rows, width] at the size of the original image, from the top down.

    query_idx: [n] int64; None: all queries
    """
    # a product with a unit vector would spread what is not finite in one mask to all
    features = predictions.mask_features[image_idx].nan_to_num(nan=-1e4, posinf=1e4, neginf=-1e4)
    embeddings = predictions.final.mask_embeddings[image_idx]
    if query_idx is not None:
        embeddings = embeddings[query_idx]
    logits = torch.einsum("nd,dhw->nhw", embeddings, features).float()
    logits = logits.nan_to_num(nan=-1e4, posinf=1e4, neginf=-1e4)
    rows = pixel_axis(meta.height, logits.shape[-2], meta.input_height / padded_size[0], logits.device)
    columns = pixel_axis(meta.width, logits.shape[-1], meta.input_width / padded_size[1], logits.device)
    step = max(1, _BAND_BYTES // (4 * len(logits) * meta.width))
    for start in range(0, meta.height, step):
        part = slice(start, min(start + step, meta.height))
        lines = torch.lerp(logits[:, rows.lower[part]], logits[:, rows.upper[part]], rows.weight[part, None])
        left, right = lines.index_select(2, columns.lower), lines.index_select(2, columns.upper)
        yield torch.lerp(left, right, columns.weight).sigmoid_()


def _instances(values: Tensor, segments: Mapping[int, tuple[int, float]]) -> Instances:
    """Return the segments of a map as instances, best first.

    values: [height, width] int64, 0 where no segment is; segments: class index and score by value
    """
    rles = rles_of_map(values.numpy())
    order = sorted(rles, key=lambda value: -segments[value][1])
    chosen = [rles[value] for value in order]
    scores = torch.tensor([segments[value][1] for value in order], dtype=torch.float32)
    labels = torch.tensor([segments[value][0] for value in order], dtype=torch.int64)
    return Instances(scores, labels, torch.from_numpy(boxes_of(chosen)), chosen)
