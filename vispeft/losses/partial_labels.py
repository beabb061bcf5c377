"""Softmax class loss for data that annotate only some of the model's classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def partial_cross_entropy(
    class_logits: Tensor, labels: Tensor, weights: Tensor, labelled_classes: Sequence[int]
) -> Tensor:
    """Return the weighted mean cross-entropy, where "no object" may also be an object of a class without labels.

    The target of a query without an annotation is one outcome: no object, or an object of any class that the data do
    not annotate. Its probability is the sum of theirs. An annotated object counts as usual, against all classes.

    class_logits: [R, K + 1], the last of "no object"
    labels: [R] int64 in 0..K
    weights: [K + 1]
    labelled_classes: indices in 0..K-1
    """
    no_object = class_logits.shape[1] - 1
    log_probs = class_logits.log_softmax(-1)
    is_open = torch.ones(no_object + 1, dtype=torch.bool, device=class_logits.device)
    is_open[list(labelled_classes)] = False
    nothing = log_probs[:, is_open].logsumexp(-1)
    chosen = log_probs.gather(1, labels[:, None])[:, 0]
    losses = -torch.where(labels == no_object, nothing, chosen)
    return weights[labels] @ losses / weights[labels].sum()
