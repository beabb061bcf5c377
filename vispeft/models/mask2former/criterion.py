"""Training loss of Mask2Former: class, mask and dice losses of matched queries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vispeft.losses.class_losses import softmax_class_loss
from vispeft.losses.mask_losses import paired_mask_losses
from vispeft.losses.matcher import CostWeights, HungarianMatcher, softmax_class_costs
from vispeft.losses.pairs import mean_num_targets, pairs_of
from vispeft.losses.points import PUBLISHED_POINTS, PointPlan
from vispeft.structures import Predictions, Targets

# factors of the losses and of the matching costs (section 4.1)
_WEIGHTS = {"class": 2.0, "mask": 5.0, "dice": 5.0}


class Criterion(nn.Module):
    """Weighted losses of a batch, with deep supervision: the sum over the predictions before and after every layer.

    Everything is computed in float32, whatever the predictions' dtype. All layers are matched and compared at points
    drawn once for the batch; the published code draws anew for every layer and mask.

    labelled_classes: classes that the data annotate (see `partial_cross_entropy`); None: all
    """

    def __init__(self, *, num_points: int = PUBLISHED_POINTS, labelled_classes: Sequence[int] | None = None) -> None:
        super().__init__()
        self.labelled_classes = labelled_classes
        self.matcher = HungarianMatcher(
            CostWeights(class_=_WEIGHTS["class"], mask=_WEIGHTS["mask"], dice=_WEIGHTS["dice"]),
            num_points=num_points,
            class_costs=softmax_class_costs,
        )
        self.points = PointPlan.of(num_points, oversample_ratio=3.0, importance_sample_ratio=0.75)

    def forward(self, predictions: Predictions, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Return scalar losses keyed class, mask and dice; the loss to minimise is their sum."""
        layers, device = predictions.layers, predictions.mask_features.device
        with torch.autocast(device.type, enabled=False):
            # points are read from rows of channels: brought into this order once for the matching and the losses
            features = predictions.mask_features.to(torch.float32, memory_format=torch.channels_last)
            matches = self.matcher(layers, features, targets)
            pairs = pairs_of(matches, layers[0].class_logits.shape[1], [len(t) for t in targets], device)
            embeddings = torch.cat([layer.mask_embeddings.flatten(0, 1) for layer in layers]).float()
            mask, dice = paired_mask_losses(embeddings, features, pairs, targets, self.points)
            class_logits = torch.cat([layer.class_logits.flatten(0, 1) for layer in layers]).float()
            # a mean over each layer; all layers have as many matched queries
            class_ = len(layers) * softmax_class_loss(class_logits, pairs, targets, self.labelled_classes)
            num_targets = mean_num_targets(targets, device)
            losses = {"class": class_, "mask": mask / num_targets, "dice": dice / num_targets}
        return {name: weight * losses[name] for name, weight in _WEIGHTS.items()}
