"""Training loss of SAM 3: that of the authors' recipe for fine-tuning (facebookresearch/sam3, `sam3/train`).

Each pair of image and prompt is a sample of its own. Its queries are matched to the objects of the prompt's class by
class, L1 and generalised IoU costs. Box, class and presence losses are taken of every decoder layer, mask losses of
the last. The class loss is a binary cross-entropy whose positive label is the quality of the query (p^0.25 IoU^0.75)
and whose negatives count by p^2; a prompt without objects in the image has a presence loss alone. Left out are the
losses of parts that `Sam3Model` does not have or use: the queries with several matches, the semantic map, and the
factor by the number of samples, which AdamW undoes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vispeft.losses.boxes import cxcywh_to_xyxy, generalized_iou, iou
from vispeft.losses.focal import focal_loss
from vispeft.losses.matcher import CostWeights, assign, box_costs, focal_class_costs
from vispeft.losses.pairs import mean_num_targets
from vispeft.losses.points import PointPlan, corners, sample_masks
from vispeft.models.wrappers.sam3.answers import Answers
from vispeft.models.wrappers.sam3.predictions import PromptPredictions
from vispeft.structures import Predictions, Targets

_COSTS = CostWeights(class_=2.0, box=5.0, giou=2.0)
_POSITIVE_WEIGHT = 10.0
_QUALITY_EXPONENT = 0.25
_LEAST_QUALITY = 0.01
# the class loss is a mean over at least as many queries
_LEAST_QUERIES = 200
_PRESENCE_ALPHA = 0.5


@dataclass(frozen=True)
class LossWeights:
    """Factors of the losses. The defaults are the authors' for fine-tuning with masks."""

    class_: float = 20.0
    presence: float = 20.0
    box: float = 5.0
    giou: float = 2.0
    mask: float = 200.0
    dice: float = 10.0


PUBLISHED_WEIGHTS = LossWeights()


@dataclass(frozen=True)
class _Pairs:
    """Matched queries, by index into [L, B, K, Q] flattened, and their targets among those of all images: [M] each."""

    rows: Tensor
    targets: Tensor

    def from_row(self, first: int) -> _Pairs:
        """Return the pairs of rows from `first` on, counted from there."""
        is_kept = self.rows >= first
        return _Pairs(self.rows[is_kept] - first, self.targets[is_kept])


class Criterion(nn.Module):
    """Weighted losses of a batch: class, presence, box, giou, mask and dice.

    num_points: points at which masks are compared, three quarters of them where the logits are least certain; None: all
        pixels of the input, as in the authors' recipe
    """

    def __init__(self, *, num_points: int | None = None, weights: LossWeights = PUBLISHED_WEIGHTS) -> None:
        super().__init__()
        self.points = None if num_points is None else PointPlan.of(num_points, 3.0, 0.75)
        self.weights = {
            "class": weights.class_,
            "presence": weights.presence,
            "box": weights.box,
            "giou": weights.giou,
            "mask": weights.mask,
            "dice": weights.dice,
        }

    def forward(self, predictions: Predictions, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Return scalar losses by name; the loss to minimise is their sum."""
        assert isinstance(predictions, PromptPredictions)
        with torch.autocast(predictions.mask_features.device.type, enabled=False):
            answers = _in_float32(predictions.answers)
            pairs = _matched(answers, targets)
            num_targets = mean_num_targets(targets, pairs.rows.device)
            boxes = answers.boxes.flatten(0, 3).index_select(0, pairs.rows)
            target_boxes = torch.cat([t.boxes for t in targets]).index_select(0, pairs.targets)
            corners_of = cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target_boxes)
            class_, presence = _class_losses(answers, pairs, iou(*corners_of).detach(), targets)
            mask, dice = self._mask_losses(answers, pairs, targets)
            losses = {
                "class": class_,
                "presence": presence,
                "box": (boxes - target_boxes).abs().sum() / num_targets,
                "giou": (1 - generalized_iou(*corners_of)).sum() / num_targets,
                "mask": mask / num_targets,
                "dice": dice / num_targets,
            }
            return {name: self.weights[name] * loss for name, loss in losses.items()}

    def _mask_losses(self, answers: Answers, pairs: _Pairs, targets: Sequence[Targets]) -> tuple[Tensor, Tensor]:
        """Return focal and dice losses of the last layer, summed over pairs."""
        last = pairs.from_row(answers.query_logits[:-1].numel())
        logits = answers.mask_logits.flatten(0, 2).index_select(0, last.rows)  # [M, h, w]
        masks = torch.cat([t.masks for t in targets]).index_select(0, last.targets)  # [M, H, W]
        if self.points is None:
            size = masks.shape[-2:]
            read = F.interpolate(logits[:, None], size, mode="bilinear", align_corners=False).flatten(1)
            labels = masks.flatten(1).to(read.dtype)
        else:
            read, labels = _at_points(logits, masks, self.points)
        probs = read.sigmoid()
        dice = 1 - (2 * (probs * labels).sum(1) + 1) / (probs.sum(1) + labels.sum(1) + 1)
        return focal_loss(read, labels).mean(1).sum(), dice.sum()


def _in_float32(answers: Answers) -> Answers:
    return Answers(*(x.float() for x in vars(answers).values()))


@torch.no_grad()
def _matched(answers: Answers, targets: Sequence[Targets]) -> _Pairs:
    """Return the cheapest pairs of each layer, image and prompt."""
    L, B, K, Q = answers.query_logits.shape
    samples: list[tuple[int, int, Tensor]] = []
    costs: list[Tensor] = []
    first_target = 0
    for b, image_targets in enumerate(targets):
        labels = image_targets.labels.cpu()
        for k in sorted(set(labels.tolist())):
            of_class = (labels == k).nonzero()[:, 0]
            samples.append((b, k, of_class + first_target))
            boxes = image_targets.boxes[of_class.to(image_targets.boxes.device)]
            logits = answers.query_logits[:, b, k].reshape(-1, 1)
            cost = box_costs(answers.boxes[:, b, k].reshape(-1, 4), boxes, _COSTS)
            costs.append(cost + _COSTS.class_ * focal_class_costs(logits, torch.zeros_like(of_class[:1])))
        first_target += len(labels)
    # one transfer for the whole batch
    flat = torch.cat([cost.flatten() for cost in costs] or [answers.boxes.new_zeros(0)]).cpu()
    rows, matched = [torch.zeros(0, dtype=torch.long)], [torch.zeros(0, dtype=torch.long)]
    for (b, k, of_class), cost in zip(samples, torch.split(flat, [cost.numel() for cost in costs]), strict=True):
        for layer, match in enumerate(assign(cost.view(L, Q, len(of_class)))):
            rows.append(match.query_idx + ((layer * B + b) * K + k) * Q)
            matched.append(of_class[match.target_idx])
    device = answers.boxes.device
    return _Pairs(torch.cat(rows).to(device), torch.cat(matched).to(device))


def _class_losses(
    answers: Answers, pairs: _Pairs, overlaps: Tensor, targets: Sequence[Targets]
) -> tuple[Tensor, Tensor]:
    """Return the losses of queries and of presence, summed over layers. overlaps: IoU of each pair's boxes, [M]"""
    _, B, K, Q = answers.query_logits.shape
    is_present = torch.zeros(B, K, device=overlaps.device)
    for b, image_targets in enumerate(targets):
        is_present[b, image_targets.labels] = 1
    logits = answers.query_logits.flatten()
    matched_logits = logits.index_select(0, pairs.rows)
    quality = matched_logits.detach().sigmoid() ** _QUALITY_EXPONENT * overlaps ** (1 - _QUALITY_EXPONENT)
    positive = F.binary_cross_entropy_with_logits(matched_logits, quality.clamp(min=_LEAST_QUALITY), reduction="sum")
    counts = is_present[:, :, None].expand(answers.query_logits.shape).flatten().index_fill(0, pairs.rows, 0.0)
    negative = counts @ (F.softplus(logits) * logits.sigmoid() ** 2)
    queries = (_POSITIVE_WEIGHT * positive + negative) / (B * K * max(Q, _LEAST_QUERIES))
    presence = focal_loss(answers.presence_logits, is_present.expand_as(answers.presence_logits), _PRESENCE_ALPHA, 0.0)
    return queries, presence.sum() / (B * K)


def _at_points(logits: Tensor, masks: Tensor, plan: PointPlan) -> tuple[Tensor, Tensor]:
    """Return logits and labels [M, P] of masks at points. The candidates are the same for all masks."""
    points = torch.rand(plan.num_drawn, 2, device=logits.device)
    grid = (2 * points - 1).expand(len(logits), 1, -1, -1)
    drawn = F.grid_sample(logits[:, None], grid, align_corners=False)[:, 0, 0]  # [M, drawn]
    labels = sample_masks(masks, corners(points, *masks.shape[-2:]))
    chosen = plan.select(drawn)
    return drawn.gather(1, chosen), labels.gather(1, chosen)
