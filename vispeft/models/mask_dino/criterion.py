"""Training loss of Mask DINO (https://arxiv.org/abs/2206.02777): class, mask, dice, box and generalised IoU losses.

All layers, the proposals and the denoising queries are laid out as one long table of rows, so that each loss is a few
large operations whatever the number of layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vispeft.losses.boxes import cxcywh_to_xyxy, generalized_iou
from vispeft.losses.mask_losses import paired_mask_losses
from vispeft.losses.matcher import HungarianMatcher
from vispeft.losses.pairs import Pairs, mean_num_targets, pairs_of
from vispeft.losses.points import PUBLISHED_POINTS, PointPlan
from vispeft.structures import LayerPredictions, Predictions, Targets


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
            torch.cat([layer.predicted_boxes.flatten(0, 1) for layer in layers]).float(),
            torch.cat([layer.mask_embeddings.flatten(0, 1) for layer in layers]).float(),
        )


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

    labelled_classes: the only classes in the class loss; None: all
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
        labelled_classes: Sequence[int] | None = None,
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
        self.labelled_classes = None if labelled_classes is None else list(labelled_classes)

    def forward(self, predictions: Predictions, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Return scalar losses keyed class, mask, dice, box and giou; the loss to minimise is their sum."""
        layers = (*predictions.layers, *(() if predictions.proposals is None else (predictions.proposals,)))
        denoising = predictions.denoising
        device = predictions.mask_features.device
        with torch.autocast(device.type, enabled=False):
            # points are read from rows of channels: brought into this order once for the matching and the losses
            features = predictions.mask_features.to(torch.float32, memory_format=torch.channels_last)
            matches = self.matcher(layers, features, targets)
            num_queries = layers[0].class_logits.shape[1]
            pairs = pairs_of(matches, num_queries, [len(t) for t in targets], device, denoising=denoising)
            rows = _Rows.of(layers if denoising is None else (*layers, *denoising.layers))
            num_matching_rows = len(layers) * len(targets) * num_queries
            mask, dice = paired_mask_losses(rows.mask_embeddings, features, pairs, targets, self.points)
            box, giou = self._box_losses(rows.boxes, pairs, targets)
            class_ = self._class_loss(rows.class_logits, pairs, targets, num_matching_rows)
            losses = {"class": class_, "mask": mask, "dice": dice, "box": box, "giou": giou}
            num_targets = mean_num_targets(targets, device)
            return {name: self.weights[name] / num_targets * loss for name, loss in losses.items()}

    def _class_loss(
        self, class_logits: Tensor, pairs: Pairs, targets: Sequence[Targets], num_matching_rows: int
    ) -> Tensor:
        """Return the focal loss over all queries and classes; the denoising queries that are padding do not count."""
        labels = torch.zeros_like(class_logits)
        labels[pairs.rows, torch.cat([t.labels for t in targets])[pairs.targets]] = 1
        row_weights = class_logits.new_zeros(len(class_logits))
        row_weights[pairs.rows] = pairs.weights
        row_weights[:num_matching_rows] = 1
        if self.labelled_classes is not None:
            class_logits, labels = class_logits[:, self.labelled_classes], labels[:, self.labelled_classes]
        return row_weights @ focal_loss(class_logits, labels, self.focal_alpha, self.focal_gamma).sum(1)

    def _box_losses(self, boxes: Tensor, pairs: Pairs, targets: Sequence[Targets]) -> tuple[Tensor, Tensor]:
        """Return the L1 and generalised IoU losses of the pairs."""
        boxes = boxes.index_select(0, pairs.rows)
        target_boxes = torch.cat([t.boxes for t in targets])[pairs.targets]
        distance = (boxes - target_boxes).abs().sum(1)
        overlap = generalized_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target_boxes))
        return pairs.weights @ distance, pairs.weights @ (1 - overlap)
