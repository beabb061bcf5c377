"""Class losses of softmax heads, whose last entry is "no object"."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vispeft.losses.pairs import Pairs
from vispeft.losses.partial_labels import partial_cross_entropy
from vispeft.structures import Targets

# published with Mask2Former
_NO_OBJECT_WEIGHT = 0.1


def softmax_class_loss(
    class_logits: Tensor, pairs: Pairs, targets: Sequence[Targets], labelled_classes: Sequence[int] | None = None
) -> Tensor:
    """Return the cross-entropy of all queries, a mean in which those without a target count by the no-object weight.

    class_logits: [R, K + 1] float32, of the rows of `pairs`
    labelled_classes: classes that the data annotate; None: all
    """
    num_classes = class_logits.shape[1] - 1
    labels = torch.full((len(class_logits),), num_classes, device=class_logits.device)
    labels[pairs.rows] = torch.cat([t.labels for t in targets])[pairs.targets]
    weights = class_logits.new_ones(num_classes + 1)
    weights[-1] = _NO_OBJECT_WEIGHT
    if labelled_classes is not None:
        return partial_cross_entropy(class_logits, labels, weights, labelled_classes)
    return F.cross_entropy(class_logits, labels, weights)
