"""Label maps equal the published inference, written here on whole maps of all queries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import vispeft.models.label_maps as module
from vispeft.coco.label_maps import mask_of
from vispeft.models.base import QueryScores
from vispeft.models.label_maps import PanopticLimits, panoptic_maps, semantic_maps
from vispeft.models.mask_dino.label_maps import query_scores as mask_dino_scores
from vispeft.models.softmax_scores import SoftmaxLabelMaps
from vispeft.structures import ImageMeta, Instances, LayerPredictions, Predictions

Q, K, D = 20, 5, 8
STUFF = (3, 4)
# the image fills a part of the padded input of 64 x 80 pixels
META = ImageMeta(1, "a.png", 90, 120, 48, 64)
PADDED = (64, 80)


class Softmax(SoftmaxLabelMaps):
    """The scores alone."""


def _predictions(num_logits: int, seed: int = 0) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    # smooth masks, sure of their classes
    features = F.interpolate(torch.randn(1, D, 4, 5, generator=generator), size=(16, 20), mode="bilinear")
    embeddings = 2 * torch.randn(1, Q, D, generator=generator)
    logits = 4 * torch.randn(1, Q, num_logits, generator=generator)
    return Predictions((LayerPredictions(logits, None, embeddings),), features)


def _mask_probs(predictions: Predictions) -> Tensor:
    """Return the masks of all queries at the image's own size, by resizing the input's part that it fills."""
    logits = torch.einsum("qd,dhw->qhw", predictions.final.mask_embeddings[0], predictions.mask_features[0])
    grid_y = (torch.arange(META.height) + 0.5) / META.height * META.input_height / PADDED[0] * 2 - 1
    grid_x = (torch.arange(META.width) + 0.5) / META.width * META.input_width / PADDED[1] * 2 - 1
    grid = torch.stack(torch.meshgrid(grid_x, grid_y, indexing="xy"), -1)[None]
    return F.grid_sample(logits[None], grid, padding_mode="border", align_corners=False)[0].sigmoid()


def _map(found: Instances, values: Sequence[int]) -> np.ndarray:
    whole = np.zeros((META.height, META.width), np.int64)
    for rle, value in zip(found.rles, values, strict=True):
        mask = mask_of(rle)
        assert not (whole[mask] != 0).any()
        whole[mask] = value
    return whole


def _published_segments(
    probs: Tensor, keep: Tensor, weights: Tensor, labels: Tensor, overlap_threshold: float
) -> list[tuple[int, Tensor]]:
    """Return class and mask of each segment, as `panoptic_inference` of Mask2Former makes them."""
    masks, kept_weights, kept_labels = probs[keep], weights[keep], labels[keep]
    segments: list[tuple[int, Tensor]] = []
    stuff: dict[int, int] = {}
    winners = (kept_weights[:, None, None] * masks).argmax(0)
    for k in range(len(masks)):
        label = int(kept_labels[k])
        area, original = int((winners == k).sum()), int((masks[k] >= 0.5).sum())
        mask = (winners == k) & (masks[k] >= 0.5)
        if not (area and original and mask.any()) or area / original < overlap_threshold:
            continue
        if label in STUFF and label in stuff:
            place = stuff[label]
            segments[place] = (label, segments[place][1] | mask)
            continue
        if label in STUFF:
            stuff[label] = len(segments)
        segments.append((label, mask))
    return segments


@pytest.mark.parametrize("family", ["softmax", "mask_dino"])
def test_panoptic_maps__equals_the_published_inference(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # several bands, the last of them smaller
    monkeypatch.setattr(module, "_BAND_BYTES", 4 * Q * META.width * 7)
    counts = []
    for seed in range(4):
        predictions = _predictions(K + 1 if family == "softmax" else K, seed)
        logits = predictions.final.class_logits[0]
        if family == "softmax":
            scores = Softmax().query_scores(predictions)
            weights, labels = logits.softmax(-1).max(-1)
            keep = (labels != K) & (weights > 0.6)
        else:
            scores = mask_dino_scores(predictions)
            keep = logits.sigmoid().amax(-1) > 0.6
            weights, labels = (logits.sigmoid() / 0.06).softmax(-1).max(-1)
        limits = PanopticLimits(0.6, 0.4)
        (found,) = panoptic_maps(predictions, scores, [META], padded_size=PADDED, stuff=STUFF, limits=limits)
        expected = _published_segments(_mask_probs(predictions), keep, weights, labels, 0.4)
        counts.append(len(expected))
        assert sorted(found.labels.tolist()) == sorted(label for label, _ in expected)
        classes = np.zeros((META.height, META.width), np.int64)
        for label, mask in expected:
            classes[mask.numpy()] = label + 1
        # two ways to resize may differ where two masks are equal
        assert (_map(found, [label + 1 for label in found.labels.tolist()]) != classes).mean() < 1e-3
        areas = sorted(int(mask.sum()) for _, mask in expected)
        assert sorted(int(mask_of(rle).sum()) for rle in found.rles) == pytest.approx(areas, abs=10)
        assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert sum(counts) >= 8


@pytest.mark.parametrize("family", ["softmax", "mask_dino"])
def test_semantic_maps__equals_the_published_inference(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BAND_BYTES", 4 * Q * META.width * 7)
    predictions = _predictions(K + 1 if family == "softmax" else K)
    logits = predictions.final.class_logits[0]
    if family == "softmax":
        scores, class_probs = Softmax().query_scores(predictions), logits.softmax(-1)[:, :-1]
    else:
        scores, class_probs = mask_dino_scores(predictions), (logits.sigmoid() / 0.06).softmax(-1)
    (found,) = semantic_maps(predictions, scores, [META], padded_size=PADDED)
    sums = torch.einsum("qk,qhw->khw", class_probs, _mask_probs(predictions))
    difference = _map(found, [label + 1 for label in found.labels.tolist()]) != sums.argmax(0).numpy() + 1
    # two ways to resize may differ where two classes are equal
    assert difference.mean() < 1e-3
    assert len(found) > 2
    assert ((found.scores > 1 / K) & (found.scores <= 1)).all()


def test_panoptic_maps__gives_no_segment_where_no_query_is_sure() -> None:
    predictions = _predictions(K + 1)
    scores = Softmax().query_scores(predictions)
    (found,) = panoptic_maps(
        predictions, scores, [META], padded_size=PADDED, stuff=STUFF, limits=PanopticLimits(object_mask_threshold=1.0)
    )
    assert len(found) == 0
    assert found.boxes_xyxy.shape == (0, 4)


def test_semantic_maps__keeps_what_is_not_finite_to_its_query() -> None:
    features = torch.zeros(1, 2, 16, 20)
    features[0, 0] = torch.nan
    features[0, 1] = 9.0
    layer = LayerPredictions(torch.zeros(1, 2, 3), None, torch.eye(2)[None])
    scores = QueryScores(torch.eye(2)[None], torch.ones(1, 2), torch.tensor([[0, 1]]), torch.ones(1, 2))
    (found,) = semantic_maps(Predictions((layer,), features), scores, [META], padded_size=PADDED)
    assert found.labels.tolist() == [1]
