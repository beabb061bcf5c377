"""Training loss of EoMT and PMT: that of Mask2Former (https://arxiv.org/abs/2112.01527), class, mask and dice."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vispeft.losses.class_losses import softmax_class_loss
from vispeft.losses.mask_losses import paired_mask_losses
from vispeft.losses.matcher import CostWeights, HungarianMatcher, softmax_class_costs
from vispeft.losses.pairs import mean_num_targets, pairs_of
from vispeft.losses.points import PUBLISHED_POINTS, PointPlan
from vispeft.structures import LayerPredictions, Predictions, Targets

# factors of the losses and of the matching costs; published with the code, as Mask2Former's
_WEIGHTS = {"class": 2.0, "mask": 5.0, "dice": 5.0}


class Criterion(nn.Module):
    """Weighted losses of a batch, with deep supervision: the sum over the predictions of all layers.

    Layers are matched and compared one after another, since each has its own mask features. Everything is computed in
    float32, whatever the predictions' dtype.

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
        device = predictions.mask_features.device
        with torch.autocast(device.type, enabled=False):
            num_targets = mean_num_targets(targets, device)
            sums = torch.stack(
                [
                    self._layer_losses(layer, predictions.mask_features_of(layer), targets, num_targets)
                    for layer in predictions.layers
                ]
            ).sum(0)
        return {name: weight * loss for (name, weight), loss in zip(_WEIGHTS.items(), sums, strict=True)}

    def _layer_losses(
        self, layer: LayerPredictions, mask_features: Tensor, targets: Sequence[Targets], num_targets: Tensor
    ) -> Tensor:
        """Return class, mask and dice loss [3] of one layer."""
        # points are read from rows of channels: brought into this order once for the matching and the losses
        features = mask_features.to(torch.float32, memory_format=torch.channels_last)
        matches = self.matcher([layer], features, targets)
        pairs = pairs_of(matches, layer.class_logits.shape[1], [len(t) for t in targets], features.device)
        embeddings = layer.mask_embeddings.flatten(0, 1).float()
        mask, dice = paired_mask_losses(embeddings, features, pairs, targets, self.points)
        class_logits = layer.class_logits.flatten(0, 1).float()
        class_ = softmax_class_loss(class_logits, pairs, targets, self.labelled_classes)
        return torch.stack((class_, mask / num_targets, dice / num_targets))
