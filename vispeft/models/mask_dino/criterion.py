"""Training loss of Mask DINO (https://arxiv.org/abs/2206.02777): class, mask, dice, box and generalised IoU losses.

All layers, the proposals and the denoising queries are laid out as one long table of rows, so that each loss is a few
large operations whatever the number of layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from vispeft.losses.boxes import cxcywh_to_xyxy, generalized_iou
from vispeft.losses.mask_losses import mask_losses
from vispeft.losses.matcher import HungarianMatcher, Match
from vispeft.losses.points import PointPlan, cell_rows, corners, sample_masks
from vispeft.structures import DenoisingPredictions, LayerPredictions, Predictions, Targets

PUBLISHED_POINTS = 12544


def focal_loss(logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of each element (https://arxiv.org/abs/1708.02002). labels: 0 or 1, of the shape of `logits`."""
    probs = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    missed = probs + labels - 2 * probs * labels  # 1 - p for a positive, p for a negative
    return (1 - alpha + (2 * alpha - 1) * labels) * missed**gamma * cross_entropy


@dataclass(frozen=True)
class _Rows:
    """Predictions of R queries: of every layer, the proposals and the denoising groups. [R, K], [R, 4], [R, D]."""

    class_logits: Tensor
    boxes: Tensor
    mask_embeddings: Tensor

    @classmethod
    def of(cls, layers: Sequence[LayerPredictions]) -> _Rows:
        return cls(
            torch.cat([layer.class_logits.flatten(0, 1) for layer in layers]).float(),
            torch.cat([layer.boxes.flatten(0, 1) for layer in layers]).float(),
            torch.cat([layer.mask_embeddings.flatten(0, 1) for layer in layers]).float(),
        )


@dataclass(frozen=True)
class _Pairs:
    """Rows matched to a target, image after image.

    rows: [M] int64 into `_Rows`
    targets: [M] int64 into the targets of all images, one after another
    weights: [M] 1, or one over the number of groups for denoising queries
    counts: pairs of each image
    """

    rows: Tensor
    targets: Tensor
    weights: Tensor
    counts: tuple[int, ...]


def _matched_pairs(
    matches: Sequence[Match], image_idx: int, num_images: int, num_queries: int
) -> tuple[Tensor, Tensor]:
    """Return rows and target indices of one image's matches, layer after layer."""
    rows = [m.query_idx + (n * num_images + image_idx) * num_queries for n, m in enumerate(matches)]
    return torch.cat(rows), torch.cat([m.target_idx for m in matches])


def _denoising_pairs(
    denoising: DenoisingPredictions, image_idx: int, num_images: int, num_targets: int
) -> tuple[Tensor, Tensor]:
    """Rows, counted from the first denoising row, and target indices of one image's denoising queries; no padding."""
    num_queries = denoising.num_groups * denoising.group_size
    layer = (torch.arange(len(denoising.layers)) * num_images + image_idx) * num_queries
    group = torch.arange(denoising.num_groups) * denoising.group_size
    target = torch.arange(num_targets)
    rows = layer[:, None, None] + group[:, None] + target  # [L, groups, T]
    return rows.flatten(), target.expand(rows.shape).flatten()


def _pair(
    matches: Sequence[Sequence[Match]],
    num_queries: int,
    denoising: DenoisingPredictions | None,
    num_targets: Sequence[int],
    device: torch.device,
) -> _Pairs:
    """Return all pairs of a batch, put together on the CPU and sent to `device` at once."""
    num_images, num_matching_rows = len(matches), len(matches[0]) * len(matches) * num_queries
    rows, targets, weights, counts = [], [], [], []
    first_target = 0
    for b, image_matches in enumerate(matches):
        row, target = _matched_pairs(image_matches, b, num_images, num_queries)
        weight = torch.ones(len(row))
        if denoising is not None:
            noised_row, noised_target = _denoising_pairs(denoising, b, num_images, num_targets[b])
            row, target = torch.cat((row, noised_row + num_matching_rows)), torch.cat((target, noised_target))
            weight = torch.cat((weight, torch.full((len(noised_row),), 1 / denoising.num_groups)))
        rows.append(row)
        targets.append(target + first_target)
        weights.append(weight)
        counts.append(len(row))
        first_target += num_targets[b]
    row, target, weight = (torch.cat(parts).to(device, non_blocking=True) for parts in (rows, targets, weights))
    return _Pairs(row, target, weight, tuple(counts))


def _mean_num_targets(targets: Sequence[Targets], device: torch.device) -> Tensor:
    """Return the targets per process, at least 1: the divisor of every loss."""
    total = torch.tensor(float(sum(len(t) for t in targets)), device=device)
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(total)
        total = total / distributed.get_world_size()
    return total.clamp(min=1)


@dataclass(frozen=True)
class LossWeights:
    """Factors of the losses. The defaults are the published ones."""

    class_: float = 4.0
    mask: float = 5.0
    dice: float = 5.0
    box: float = 5.0
    giou: float = 2.0


PUBLISHED_WEIGHTS = LossWeights()


class Criterion(nn.Module):
    """Weighted losses of a batch, with deep supervision: the initial prediction, every layer, proposals and denoising.

    Defaults are Mask DINO's published ones. Everything is computed in float32, whatever the predictions' dtype.
    """

    def __init__(
        self,
        *,
        matcher: HungarianMatcher,
        weights: LossWeights = PUBLISHED_WEIGHTS,
        num_points: int = PUBLISHED_POINTS,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
    ) -> None:
        super().__init__()
        self.matcher = matcher
        self.weights = {
            "class": weights.class_,
            "mask": weights.mask,
            "dice": weights.dice,
            "box": weights.box,
            "giou": weights.giou,
        }
        self.points = PointPlan.of(num_points, oversample_ratio, importance_sample_ratio)
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma

    def forward(self, predictions: Predictions, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Return scalar losses keyed class, mask, dice, box and giou; the loss to minimise is their sum."""
        layers = (*predictions.layers, *(() if predictions.proposals is None else (predictions.proposals,)))
        denoising = predictions.denoising
        device = predictions.mask_features.device
        with torch.autocast(device.type, enabled=False):
            # points are read from rows of channels: brought into this order once for the matching and the losses
            features = predictions.mask_features.to(torch.float32, memory_format=torch.channels_last)
            matches = self.matcher(layers, features, targets)
            num_queries = layers[0].boxes.shape[1]
            pairs = _pair(matches, num_queries, denoising, [len(t) for t in targets], device)
            rows = _Rows.of(layers if denoising is None else (*layers, *denoising.layers))
            num_matching_rows = len(layers) * len(targets) * num_queries
            mask, dice = self._mask_losses(rows.mask_embeddings, features, pairs, targets)
            box, giou = self._box_losses(rows.boxes, pairs, targets)
            class_ = self._class_loss(rows.class_logits, pairs, targets, num_matching_rows)
            losses = {"class": class_, "mask": mask, "dice": dice, "box": box, "giou": giou}
            num_targets = _mean_num_targets(targets, device)
            return {name: self.weights[name] / num_targets * loss for name, loss in losses.items()}

    def _class_loss(
        self, class_logits: Tensor, pairs: _Pairs, targets: Sequence[Targets], num_matching_rows: int
    ) -> Tensor:
        """Return the focal loss over all queries and classes; the denoising queries that are padding do not count."""
        labels = torch.zeros_like(class_logits)
        labels[pairs.rows, torch.cat([t.labels for t in targets])[pairs.targets]] = 1
        row_weights = class_logits.new_zeros(len(class_logits))
        row_weights[pairs.rows] = pairs.weights
        row_weights[:num_matching_rows] = 1
        return row_weights @ focal_loss(class_logits, labels, self.focal_alpha, self.focal_gamma).sum(1)

    def _box_losses(self, boxes: Tensor, pairs: _Pairs, targets: Sequence[Targets]) -> tuple[Tensor, Tensor]:
        """Return the L1 and generalised IoU losses of the pairs."""
        boxes = boxes.index_select(0, pairs.rows)
        target_boxes = torch.cat([t.boxes for t in targets])[pairs.targets]
        distance = (boxes - target_boxes).abs().sum(1)
        overlap = generalized_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target_boxes))
        return pairs.weights @ distance, pairs.weights @ (1 - overlap)

    def _mask_losses(
        self, embeddings: Tensor, mask_features: Tensor, pairs: _Pairs, targets: Sequence[Targets]
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy and dice losses of the pairs at the points where each mask is least certain and at random ones.

        The candidates are drawn once for the batch: the points of one mask are distributed as in PointRend.
        """
        points = torch.rand(self.points.num_drawn, 2, device=mask_features.device)
        at, at_pixels = (corners(points, *x.shape[-2:]) for x in (mask_features, targets[0].masks))
        masks = torch.cat([sample_masks(t.masks, at_pixels) for t in targets])  # [sum T, P]
        cells = cell_rows(mask_features)
        cross_entropy, dice = mask_losses(
            embeddings.index_select(0, pairs.rows),
            cells,
            masks,
            pairs.targets,
            at=at,
            counts=pairs.counts,
            plan=self.points,
        )
        return pairs.weights @ cross_entropy, pairs.weights @ dice
