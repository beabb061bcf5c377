"""The loss of EoMT against Mask2Former's formulas, written out in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vispeft.losses.pairs import Pairs
from vispeft.models.eomt.criterion import Criterion, class_loss
from vispeft.structures import LayerPredictions, Predictions, Targets


def targets_of(*labels: int) -> Targets:
    """Squares in different corners of an image of 32 pixels."""
    masks = torch.zeros(len(labels), 32, 32, dtype=torch.bool)
    for i in range(len(labels)):
        masks[i, 16 * (i // 2) : 16 * (i // 2) + 16, 16 * (i % 2) : 16 * (i % 2) + 16] = True
    return Targets(torch.tensor(labels, dtype=torch.int64), torch.full((len(labels), 4), 0.5), masks)


def perfect(targets: Targets, num_queries: int, num_classes: int) -> LayerPredictions:
    """Predictions that are right and certain: query i is target i, the others are no object."""
    classes = torch.full((num_queries,), num_classes)
    classes[: len(targets)] = targets.labels
    features = 40 * F.avg_pool2d(targets.masks[None].float(), 4) - 20  # [1, T, 8, 8]
    embeddings = torch.eye(num_queries, len(targets))
    return LayerPredictions(
        30 * F.one_hot(classes, num_classes + 1).float()[None], None, embeddings[None], features.contiguous()
    )


def total(layers: tuple[LayerPredictions, ...], targets: list[Targets]) -> dict[str, Tensor]:
    features = layers[-1].mask_features
    assert features is not None
    return Criterion(num_points=512)(Predictions(layers, features), targets)


def test_class_loss__is_the_weighted_cross_entropy() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 4)  # 3 classes and "no object"
    pairs = Pairs(torch.tensor([1, 4]), torch.tensor([0, 1]), torch.ones(2), (2,))
    targets = [targets_of(2, 0)]
    log_probs = logits.log_softmax(-1)
    labels = [3, 2, 3, 3, 0, 3]
    weights = [0.1 if label == 3 else 1.0 for label in labels]
    expected = -sum(w * log_probs[i, label] for i, (w, label) in enumerate(zip(weights, labels, strict=True)))
    torch.testing.assert_close(class_loss(logits, pairs, targets), expected / sum(weights))


def test_criterion__is_small_for_certain_and_right_predictions() -> None:
    """Not zero: the points are sought where masks are uncertain, which is at their edges."""
    torch.manual_seed(0)
    targets = targets_of(1, 0, 2)
    right = perfect(targets, 5, 3)
    losses = total((right,), [targets])
    assert losses.keys() == {"class", "mask", "dice"}
    assert float(losses["class"]) == 0
    wrong = LayerPredictions(right.class_logits.roll(1, -1), None, -right.mask_embeddings, right.mask_features)
    for name, loss in total((wrong,), [targets]).items():
        assert float(loss) > 5 * float(losses[name]), name


def test_criterion__sums_over_layers_with_mask_features_of_their_own() -> None:
    torch.manual_seed(0)
    targets = targets_of(1, 0)
    right = perfect(targets, 4, 2)
    assert right.mask_features is not None
    wrong = LayerPredictions(right.class_logits, None, right.mask_embeddings, -right.mask_features)
    one, both = total((right,), [targets]), total((wrong, right), [targets])
    assert float(both["mask"]) > 3 * float(one["mask"])
    twice = total((right, right), [targets])
    torch.testing.assert_close(twice["class"], 2 * one["class"])


def test_criterion__of_images_without_objects_is_finite_and_depends_on_everything() -> None:
    torch.manual_seed(0)
    logits, embeddings = torch.randn(2, 4, 3).requires_grad_(), torch.randn(2, 4, 8).requires_grad_()
    features = torch.randn(2, 8, 8, 8).requires_grad_()
    layer = LayerPredictions(logits, None, embeddings, features)
    losses = total((layer,), [targets_of(), targets_of()])
    loss = torch.stack(list(losses.values())).sum()
    assert loss.isfinite()
    loss.backward()
    assert all(tensor.grad is not None for tensor in (logits, embeddings, features))
