"""Matching of queries and targets: the assignment of least cost per image and layer (DETR, arXiv 2005.12872)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from vispeft.losses.boxes import cxcywh_to_xyxy, generalized_iou
from vispeft.losses.points import LOGITS_AT_ONCE, PUBLISHED_POINTS, Corners, cell_rows, corners, read_rows, sample_masks
from vispeft.structures import LayerPredictions, Targets

_WORST_COST = 1e6
# from so many points for each cell on, logits of all cells are computed and read at the points, in place of features
# that are read at the points and multiplied there: fewer products; so many logits at once stay in the cache
POINTS_PER_CELL = 3
CELL_LOGITS_AT_ONCE = 2**20


@dataclass(frozen=True)
class Match:
    """Pairs of one image and layer, on the CPU. query_idx, target_idx: [min(Q, T)] int64."""

    query_idx: Tensor
    target_idx: Tensor


@dataclass(frozen=True)
class CostWeights:
    """Weights of the matching costs (Mask DINO's published settings)."""

    class_: float = 4.0
    mask: float = 5.0
    dice: float = 5.0
    box: float = 5.0
    giou: float = 2.0


def focal_class_costs(class_logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss as a positive less that as a negative. class_logits: [N, K]; labels: [T]. Returns [N, T]."""
    logits = class_logits[:, labels]
    probs = logits.sigmoid()
    positive = alpha * (1 - probs) ** gamma * F.softplus(-logits)
    return positive - (1 - alpha) * probs**gamma * F.softplus(logits)


def softmax_class_costs(class_logits: Tensor, labels: Tensor) -> Tensor:
    """Negated probability of the target's class. class_logits: [N, K + 1]; labels: [T]. Returns [N, T]."""
    return -class_logits.softmax(-1)[:, labels]


def mask_costs(negated_logits: Tensor, masks: Tensor, weights: CostWeights) -> Tensor:
    """Weighted cross-entropy and dice costs at points. Returns [N, T].

    negated_logits: mask logits times -1, [N, P]; overwritten
    masks: [T, P] in 0..1
    """
    P = masks.shape[1]
    sizes = masks.sum(1)
    # one sigmoid serves both: BCE(x, t) = -log(sigmoid(-x)) - x t, and sigmoid(x) = 1 - sigmoid(-x)
    agreement = negated_logits @ masks.T
    absent_probs = negated_logits.sigmoid_().clamp_(min=torch.finfo(negated_logits.dtype).tiny)
    overlap = sizes - absent_probs @ masks.T
    dice = 1 - (2 * overlap + 1) / (P - absent_probs.sum(1)[:, None] + sizes + 1)
    cross_entropy = agreement - absent_probs.log_().sum(1)[:, None]
    return weights.mask / P * cross_entropy + weights.dice * dice


def mask_costs_at(embeddings: Tensor, cells: Tensor, at: Corners, masks: Tensor, weights: CostWeights) -> Tensor:
    """Return the mask costs [N, T] of embeddings [N, D], piece by piece. cells: [h w, D]; masks: [T, P] at `at`."""
    num_points = len(at.idx)
    if POINTS_PER_CELL * at.num_cells <= num_points:
        pieces = torch.split(embeddings, max(1, CELL_LOGITS_AT_ONCE // num_points))
        negated = (read_rows(cells @ -piece.T, at).T.contiguous() for piece in pieces)
    else:
        pieces = torch.split(embeddings, max(1, LOGITS_AT_ONCE // num_points))
        features = read_rows(cells, at)
        negated = (-piece @ features.T for piece in pieces)
    return torch.cat([mask_costs(logits, masks, weights) for logits in negated])


def box_costs(boxes: Tensor, target_boxes: Tensor, weights: CostWeights) -> Tensor:
    """Weighted L1 and generalised IoU costs of normalised cxcywh boxes [N, 4] and [T, 4]. Returns [N, T]."""
    distance = torch.cdist(boxes, target_boxes, p=1)
    overlap = generalized_iou(cxcywh_to_xyxy(boxes)[:, None], cxcywh_to_xyxy(target_boxes))
    return weights.box * distance - weights.giou * overlap


def assign(costs: Tensor) -> tuple[Match, ...]:
    """Cheapest one-to-one pairs of each layer. costs: [L, Q, T] on the CPU; non-finite costs count as the worst."""
    costs = costs.nan_to_num(nan=_WORST_COST, posinf=_WORST_COST, neginf=_WORST_COST)
    pairs = (linear_sum_assignment(layer) for layer in costs.numpy())
    return tuple(Match(torch.from_numpy(query_idx), torch.from_numpy(target_idx)) for query_idx, target_idx in pairs)


class HungarianMatcher(nn.Module):
    """Matches every layer's queries to the targets by class, mask, dice, L1 and generalised IoU costs.

    Layers without boxes have no L1 and generalised IoU costs, those without masks (D = 0) no mask and dice costs. The
    masks of all layers of all images are compared at the same random points, drawn anew at each call.

    class_costs: costs [N, T] of class logits [N, K] and labels [T]
    assign: pairs of the costs of one image; estimates replace it, because their costs have no values
    """

    def __init__(
        self,
        weights: CostWeights | None = None,
        *,
        num_points: int = PUBLISHED_POINTS,
        class_costs: Callable[[Tensor, Tensor], Tensor] = focal_class_costs,
    ) -> None:
        super().__init__()
        self.assign = assign
        self.weights = weights or CostWeights()
        self.num_points = num_points
        self.class_costs = class_costs

    @torch.no_grad()
    def forward(
        self, layers: Sequence[LayerPredictions], mask_features: Tensor, targets: Sequence[Targets]
    ) -> tuple[tuple[Match, ...], ...]:
        """Return the pairs of each image (outer) and layer (inner). mask_features: [B, D, h, w]."""
        L, Q = len(layers), layers[0].class_logits.shape[1]
        with torch.autocast(mask_features.device.type, enabled=False):
            mask_costs_of = self._mask_costs_of(mask_features, targets)
            class_logits = torch.cat([layer.class_logits for layer in layers], dim=1).float()  # [B, L Q, K]
            boxes = _boxes_of(layers)
            embeddings = torch.cat([layer.mask_embeddings for layer in layers], dim=1).float()
            costs = []
            for b, image_targets in enumerate(targets):
                if not len(image_targets):
                    costs.append(class_logits.new_zeros(L * Q, 0))
                    continue
                cost = mask_costs_of(b, embeddings[b])
                if boxes is not None:
                    cost += box_costs(boxes[b], image_targets.boxes, self.weights)
                costs.append(cost + self.weights.class_ * self.class_costs(class_logits[b], image_targets.labels))
        # one transfer for the whole batch
        flat = torch.cat([cost.flatten() for cost in costs]).cpu()
        per_image = flat.split_with_sizes([cost.numel() for cost in costs])
        return tuple(self.assign(cost.view(L, Q, len(t))) for cost, t in zip(per_image, targets, strict=True))

    def _mask_costs_of(self, mask_features: Tensor, targets: Sequence[Targets]) -> Callable[[int, Tensor], Tensor]:
        """Return a function of an image's number and its embeddings [N, D] that gives mask costs [N, T]."""
        if not mask_features.shape[1]:
            return lambda b, embeddings: embeddings.new_zeros(len(embeddings), len(targets[b]))
        points = torch.rand(self.num_points, 2, device=mask_features.device)
        at, at_pixels = (corners(points, *x.shape[-2:]) for x in (mask_features, targets[0].masks))
        cells = cell_rows(mask_features)
        return lambda b, embeddings: mask_costs_at(
            embeddings, cells[b], at, sample_masks(targets[b].masks, at_pixels), self.weights
        )


def _boxes_of(layers: Sequence[LayerPredictions]) -> Tensor | None:
    """Return the boxes of all layers, [B, L Q, 4] float32; None in families without a box head."""
    if any(layer.boxes is None for layer in layers):
        return None
    return torch.cat([layer.predicted_boxes for layer in layers], dim=1).float()
