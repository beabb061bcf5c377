"""Training loss of a model of transformers: the network's own criterion, by the names of our families' losses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vispeft.models.wrappers.kinds import Kind, Labels
from vispeft.structures import Predictions, Targets

# name of a loss in the library, without the number of its layer -> ours
_NAMES = {"loss_cross_entropy": "class", "loss_mask": "mask", "loss_dice": "dice"}


class Criterion:
    """Weighted losses of a batch by the network's own criterion, weights and matching.

    num_points: points at which masks are compared; None for the number of the network's configuration
    """

    def __init__(self, network: Any, kind: Kind, *, num_points: int | None) -> None:
        self.network = network
        self.kind = kind
        if num_points is not None and kind.has_points:
            for part in (network.criterion, network.criterion.matcher):
                part.num_points = num_points

    def __call__(self, predictions: Predictions, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Return scalar losses keyed class, mask and dice, each summed over the layers."""
        labels = Labels([t.masks.float() for t in targets], [t.labels for t in targets])
        answers = [
            (layer.class_logits.float(), predictions.mask_features_of(layer).float()) for layer in predictions.layers
        ]
        losses: dict[str, Tensor] = {}
        with torch.autocast(predictions.mask_features.device.type, enabled=False):
            for name, loss in self.kind.loss_terms(self.network, answers, labels).items():
                ours = _NAMES[re.sub(r"_\d+$", "", name)]
                losses[ours] = losses[ours] + loss if ours in losses else loss
        # OneFormer's are tensors with one element
        return {name: loss.reshape(()) for name, loss in losses.items()}
