"""Losses of Mask DINO and their gradients against the official formulas, written out in plain torch at the same points.

As in `criterion.py` and `matcher.py` of IDEA-Research/MaskDINO, for images with equally many targets. With different
numbers the official code also counts the denoising queries that are padding as negatives of the class loss; ours do
not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou

from vispeft.losses import HungarianMatcher
from vispeft.models.mask_dino.criterion import Criterion
from vispeft.structures import DenoisingPredictions, LayerPredictions, Predictions, Targets

CLASSES, QUERIES, WIDTH, COUNT, GROUPS = 4, 9, 6, 3, 2
WEIGHTS = {"class": 4.0, "mask": 5.0, "dice": 5.0, "box": 5.0, "giou": 2.0}

Indices = list[tuple[Tensor, Tensor]]


def layer(generator: torch.Generator, num_queries: int = QUERIES) -> LayerPredictions:
    class_logits = torch.randn(2, num_queries, CLASSES, generator=generator)
    boxes = torch.empty(2, num_queries, 4).uniform_(0.1, 0.9, generator=generator)
    embeddings = torch.randn(2, num_queries, WIDTH, generator=generator)
    return LayerPredictions(*(x.requires_grad_() for x in (class_logits, boxes, embeddings)))


def image_targets(generator: torch.Generator) -> Targets:
    labels = torch.randint(0, CLASSES, (COUNT,), generator=generator)
    coarse = torch.randint(0, 2, (COUNT, 1, 6, 8), generator=generator).float()
    masks = F.interpolate(coarse, scale_factor=8.0)[:, 0] > 0.5
    return Targets(labels, torch.empty(COUNT, 4).uniform_(0.1, 0.9, generator=generator), masks)


def sampled(masks: Tensor, points: Tensor) -> Tensor:
    """Return masks [N, H, W] at points [N, P, 2] in 0..1: [N, P]."""
    return F.grid_sample(masks[:, None], 2 * points[:, None] - 1, align_corners=False)[:, 0, 0]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")


def giou(boxes: Tensor, others: Tensor) -> Tensor:
    return generalized_box_iou(*(box_convert(x, "cxcywh", "xyxy") for x in (boxes, others)))


@torch.no_grad()
def matched(predicted: LayerPredictions, features: Tensor, targets: Sequence[Targets], num_points: int) -> Indices:
    indices = []
    for b, target in enumerate(targets):
        probs = predicted.class_logits[b].sigmoid()
        negative = 0.75 * probs**2 * -(1 - probs + 1e-8).log()
        positive = 0.25 * (1 - probs) ** 2 * -(probs + 1e-8).log()
        class_cost = positive[:, target.labels] - negative[:, target.labels]
        box_cost = torch.cdist(predicted.predicted_boxes[b], target.boxes, p=1)
        giou_cost = -giou(predicted.predicted_boxes[b], target.boxes)
        points = torch.rand(1, num_points, 2)
        logits = torch.einsum("qd,dhw->qhw", predicted.mask_embeddings[b], features[b])
        logits = sampled(logits, points.expand(len(logits), -1, -1))[:, None]
        labels = sampled(target.masks.float(), points.expand(len(target), -1, -1))[None]
        mask_cost = cross_entropy(*torch.broadcast_tensors(logits, labels)).mean(-1)
        overlap = 2 * (logits.sigmoid() * labels).sum(-1)
        dice_cost = 1 - (overlap + 1) / (logits.sigmoid().sum(-1) + labels.sum(-1) + 1)
        costs = {"class": class_cost, "mask": mask_cost, "dice": dice_cost, "box": box_cost, "giou": giou_cost}
        cost = torch.stack([WEIGHTS[name] * value for name, value in costs.items()]).sum(0)
        indices.append(tuple(torch.as_tensor(x) for x in linear_sum_assignment(cost)))
    return indices


def official(
    predicted: LayerPredictions, features: Tensor, targets: Sequence[Targets], indices: Indices, shared: Any, num: float
) -> dict[str, Tensor]:
    """Return the weighted losses of one layer. num: masks by which the sums are divided"""
    images = torch.cat([torch.full_like(rows, b) for b, (rows, _) in enumerate(indices)])
    queries = torch.cat([rows for rows, _ in indices])
    labels = torch.cat([t.labels[i] for t, (_, i) in zip(targets, indices, strict=True)])
    boxes = torch.cat([t.boxes[i] for t, (_, i) in zip(targets, indices, strict=True)])
    masks = torch.cat([t.masks[i] for t, (_, i) in zip(targets, indices, strict=True)]).float()
    one_hot = torch.zeros_like(predicted.class_logits)
    one_hot[images, queries, labels] = 1
    probs = predicted.class_logits.sigmoid()
    p_t = probs * one_hot + (1 - probs) * (1 - one_hot)
    alpha_t = 0.25 * one_hot + 0.75 * (1 - one_hot)
    focal = alpha_t * cross_entropy(predicted.class_logits, one_hot) * (1 - p_t) ** 2
    given = predicted.predicted_boxes[images, queries]
    logits = torch.einsum("bqd,bdhw->bqhw", predicted.mask_embeddings, features)[images, queries]
    with torch.no_grad():
        plan = shared.plan
        candidates = torch.rand(len(logits), plan.num_candidates, 2)
        least = sampled(logits, candidates).abs().topk(plan.num_uncertain, largest=False).indices
        chosen = candidates.gather(1, least[..., None].expand(-1, -1, 2))
        points = torch.cat((chosen, torch.rand(len(logits), plan.num_random, 2)), dim=1)
        truth = sampled(masks, points)
    logits = sampled(logits, points)
    overlap, sizes = 2 * (logits.sigmoid() * truth).sum(1), logits.sigmoid().sum(1) + truth.sum(1)
    sums = {
        "class": focal.mean(1).sum() * predicted.class_logits.shape[1],
        "mask": cross_entropy(logits, truth).mean(1).sum(),
        "dice": (1 - (overlap + 1) / (sizes + 1)).sum(),
        "box": (given - boxes).abs().sum(),
        "giou": (1 - giou(given, boxes).diag()).sum(),
    }
    return {name: WEIGHTS[name] * value / num for name, value in sums.items()}


def test_criterion__is_the_official_one_at_the_same_points(shared_points: Any) -> None:
    generator = torch.Generator().manual_seed(11)
    layers = tuple(layer(generator) for _ in range(3))
    proposals = layer(generator)
    noised = tuple(layer(generator, GROUPS * COUNT) for _ in range(3))
    features = torch.randn(2, WIDTH, 12, 16, generator=generator).requires_grad_()
    targets = [image_targets(generator) for _ in range(2)]

    expected = dict.fromkeys(WEIGHTS, torch.zeros(()))
    num_masks = float(2 * COUNT)
    # a group of denoising queries has one for each target, in order
    own_targets = [(torch.arange(GROUPS * COUNT), torch.arange(COUNT).repeat(GROUPS))] * 2
    for predicted in (*layers, proposals):
        indices = matched(predicted, features, targets, shared_points.num_points)
        losses = official(predicted, features, targets, indices, shared_points, num_masks)
        expected = {name: expected[name] + losses[name] for name in WEIGHTS}
    for predicted in noised:
        losses = official(predicted, features, targets, own_targets, shared_points, num_masks * GROUPS)
        expected = {name: expected[name] + losses[name] for name in WEIGHTS}

    criterion = Criterion(
        matcher=HungarianMatcher(num_points=shared_points.num_points), num_points=shared_points.num_points
    )
    found = criterion(Predictions(layers, features, proposals, DenoisingPredictions(noised, GROUPS, COUNT)), targets)
    leaves = [x for y in (*layers, proposals, *noised) for x in (y.class_logits, y.boxes, y.mask_embeddings)]
    leaves = [x for x in (*leaves, features) if x is not None]
    for name in WEIGHTS:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6, msg=name)
        ours, theirs = (
            torch.autograd.grad(losses[name], leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
            for losses in (found, expected)
        )
        for one, other in zip(ours, theirs, strict=True):
            assert float((one - other).abs().max()) <= 1e-4 * float(other.abs().max()), name
