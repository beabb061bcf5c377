"""The criterion of EoMT and PMT against the published formulas."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from vispeft.models.plain_mask.criterion import Criterion
from vispeft.structures import LayerPredictions, Predictions, Targets


def halves() -> Targets:
    """Two targets, the upper and the lower half of an image."""
    masks = torch.zeros(2, 16, 16, dtype=torch.bool)
    masks[0, :8], masks[1, 8:] = True, True
    return Targets(torch.tensor([2, 0]), torch.rand(2, 4), masks)


def right(targets: Targets) -> LayerPredictions:
    """A layer whose queries 1 and 2 give the targets, and query 0 nothing."""
    class_logits = torch.full((1, 3, 4), -20.0)
    class_logits[0, [0, 1, 2], [3, *targets.labels.tolist()]] = 20
    embeddings = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    return LayerPredictions(class_logits, None, embeddings, 60 * targets.masks[None].float() - 30)


def test_criterion__is_small_for_right_predictions_and_large_for_wrong_ones() -> None:
    torch.manual_seed(0)
    targets = halves()
    layer = right(targets)
    assert layer.mask_features is not None
    # left and right halves, whose every second pixel is in the target
    wrong = LayerPredictions(-layer.class_logits, None, layer.mask_embeddings, layer.mask_features.mT.contiguous())
    small, large = (
        Criterion(num_points=256)(Predictions((x,), layer.mask_features), [targets]) for x in (layer, wrong)
    )
    assert small["class"] < 1e-6
    assert large["class"] > 2
    # the points of a mask are mostly at its border, where bilinear reading is uncertain
    assert all(small[name] < 0.5 * large[name] for name in ("mask", "dice"))


def test_criterion__adds_the_layers_each_with_its_own_features() -> None:
    torch.manual_seed(0)
    targets = halves()
    layer = right(targets)
    # undecided everywhere, so that the points do not matter
    undecided = LayerPredictions(layer.class_logits, None, layer.mask_embeddings, torch.zeros(1, 2, 16, 16))
    one = Criterion(num_points=64)(Predictions((undecided,), torch.zeros(1, 2, 16, 16)), [targets])
    two = Criterion(num_points=64)(Predictions((undecided, undecided), torch.zeros(1, 2, 16, 16)), [targets])
    torch.testing.assert_close(one["mask"], torch.tensor(5 * math.log(2)))
    torch.testing.assert_close(two["mask"], 2 * one["mask"])


def test_criterion__without_objects_is_the_no_object_loss() -> None:
    torch.manual_seed(0)
    logits, features = torch.randn(2, 3, 4), torch.randn(2, 5, 4, 4)
    empty = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), torch.zeros(0, 16, 16, dtype=torch.bool))
    predictions = Predictions((LayerPredictions(logits, None, torch.randn(2, 3, 5)),), features)
    losses = Criterion(num_points=16)(predictions, [empty, empty])
    expected = 2 * F.cross_entropy(logits.flatten(0, 1), torch.full((6,), 3))
    torch.testing.assert_close(losses["class"], expected)
    assert losses["mask"] == losses["dice"] == 0
