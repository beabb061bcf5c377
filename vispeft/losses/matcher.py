"""Which query answers for which target: the assignment of least cost, per image and layer (DETR, arXiv 2005.12872)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from vispeft.losses.boxes import cxcywh_to_xyxy, generalized_iou
from vispeft.losses.points import sample_features, sample_masks
from vispeft.structures import LayerPredictions, Targets

# logits held at once by the mask costs: bounds memory for large models, keeps small ones in the cache
_LOGITS_AT_ONCE = 2**22
_WORST_COST = 1e6


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


def class_costs(class_logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss as a positive less that as a negative. class_logits: [N, K]; labels: [T]. Returns [N, T]."""
    logits = class_logits[:, labels]
    probs = logits.sigmoid()
    positive = alpha * (1 - probs) ** gamma * F.softplus(-logits)
    return positive - (1 - alpha) * probs**gamma * F.softplus(logits)


def mask_costs(mask_logits: Tensor, masks: Tensor, weights: CostWeights) -> Tensor:
    """Weighted binary cross-entropy and dice costs at points. mask_logits: [N, P]; masks: [T, P] in 0..1. Returns [N, T]."""
    probs = mask_logits.sigmoid()
    # BCE(x, t) = softplus(x) - x t
    cross_entropy = F.softplus(mask_logits).sum(1)[:, None] - mask_logits @ masks.T
    dice = 1 - (2 * (probs @ masks.T) + 1) / (probs.sum(1)[:, None] + masks.sum(1) + 1)
    return weights.mask / mask_logits.shape[1] * cross_entropy + weights.dice * dice


def box_costs(boxes: Tensor, target_boxes: Tensor, weights: CostWeights) -> Tensor:
    """Weighted L1 and generalised IoU costs. boxes: [N, 4], target_boxes: [T, 4], cxcywh, normalised. Returns [N, T]."""
    distance = torch.cdist(boxes, target_boxes, p=1)
    overlap = generalized_iou(cxcywh_to_xyxy(boxes)[:, None], cxcywh_to_xyxy(target_boxes))
    return weights.box * distance - weights.giou * overlap


def assign(costs: Tensor) -> tuple[Match, ...]:
    """The cheapest one-to-one assignment of each layer. costs: [L, Q, T] on the CPU; what is not finite is the worst."""
    costs = costs.nan_to_num(nan=_WORST_COST, posinf=_WORST_COST, neginf=_WORST_COST)
    pairs = (linear_sum_assignment(layer) for layer in costs.numpy())
    return tuple(Match(torch.from_numpy(query_idx), torch.from_numpy(target_idx)) for query_idx, target_idx in pairs)


class HungarianMatcher(nn.Module):
    """Matches every layer's queries to the targets by class, mask, dice, L1 and generalised IoU costs.

    The masks of all layers of all images are compared at the same random points, drawn anew at each call.
    """

    def __init__(self, weights: CostWeights | None = None, *, num_points: int = 12544) -> None:
        super().__init__()
        self.weights = weights or CostWeights()
        self.num_points = num_points

    @torch.no_grad()
    def forward(
        self, layers: Sequence[LayerPredictions], mask_features: Tensor, targets: Sequence[Targets]
    ) -> tuple[tuple[Match, ...], ...]:
        """The pairs of each image (outer) and layer (inner). mask_features: [B, D, h, w]."""
        with torch.autocast(mask_features.device.type, enabled=False):
            points = torch.rand(self.num_points, 2, device=mask_features.device)
            features = sample_features(mask_features.float(), points)  # [P, B, D]
            class_logits = torch.stack([layer.class_logits for layer in layers], dim=1).float()  # [B, L, Q, K]
            boxes = torch.stack([layer.boxes for layer in layers], dim=1).float()
            embeddings = torch.stack([layer.mask_embeddings for layer in layers], dim=1).float()
            costs = [
                self._costs(class_logits[b], boxes[b], embeddings[b], features[:, b], points, image_targets)
                for b, image_targets in enumerate(targets)
            ]
        # one transfer for the whole batch
        flat = torch.cat([image_costs.flatten() for image_costs in costs]).cpu()
        per_image = flat.split([image_costs.numel() for image_costs in costs])
        return tuple(assign(image.view(full.shape)) for image, full in zip(per_image, costs, strict=True))

    def _costs(
        self,
        class_logits: Tensor,
        boxes: Tensor,
        embeddings: Tensor,
        features: Tensor,
        points: Tensor,
        targets: Targets,
    ) -> Tensor:
        """Costs [L, Q, T] of one image: logits [L, Q, K], boxes [L, Q, 4], embeddings [L, Q, D], features [P, D]."""
        L, Q, _ = boxes.shape
        masks = sample_masks(targets.masks, points)
        rows = max(1, _LOGITS_AT_ONCE // self.num_points)
        mask = torch.cat(
            [mask_costs(e @ features.T, masks, self.weights) for e in embeddings.flatten(0, 1).split(rows)]
        )
        box = box_costs(boxes.flatten(0, 1), targets.boxes, self.weights)
        class_ = class_costs(class_logits.flatten(0, 1), targets.labels)
        return (mask + box + self.weights.class_ * class_).view(L, Q, len(targets))
