"""The class loss of partly labelled data: no pressure on classes without labels where nothing is annotated."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from vispeft.losses.partial_labels import partial_cross_entropy

LABELS = torch.tensor([1, 3, 3, 2])
WEIGHTS = torch.tensor([1.0, 1.0, 1.0, 0.1], dtype=torch.float64)


def test_partial_cross_entropy__is_the_usual_one_where_all_classes_have_labels() -> None:
    logits = torch.randn(4, 4, dtype=torch.float64)
    found = partial_cross_entropy(logits, LABELS, WEIGHTS, [0, 1, 2])
    torch.testing.assert_close(found, F.cross_entropy(logits, LABELS, WEIGHTS))


def test_partial_cross_entropy__joins_no_object_with_classes_without_labels() -> None:
    logits = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    loss = partial_cross_entropy(logits, LABELS, WEIGHTS, [1, 2])
    probs = logits.softmax(-1)
    terms = torch.stack([-probs[0, 1].log(), *(-0.1 * probs[1:3, [0, 3]].sum(-1).log()), -probs[3, 2].log()])
    torch.testing.assert_close(loss, terms.sum() / 2.2)
    (gradient,) = torch.autograd.grad(loss, logits)
    # without an annotation, the class without labels is never pushed down
    assert (gradient[1:3, 0] < 0).all()
