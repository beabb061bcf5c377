"""The criterion: what it is worth on known cases, what must not change it, and which gradients it gives."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vispeft.losses import HungarianMatcher
from vispeft.models.mask_dino.criterion import Criterion
from vispeft.structures import DenoisingPredictions, LayerPredictions, Predictions, Targets

NUM_QUERIES, NUM_CLASSES, WIDTH = 8, 3, 6
NAMES = ("class", "mask", "dice", "box", "giou")


def make_layer(batch_size: int, num_queries: int = NUM_QUERIES) -> LayerPredictions:
    return LayerPredictions(
        torch.randn(batch_size, num_queries, NUM_CLASSES),
        torch.rand(batch_size, num_queries, 4),
        torch.randn(batch_size, num_queries, WIDTH),
    )


def make_targets(count: int) -> Targets:
    return Targets(torch.randint(0, NUM_CLASSES, (count,)), torch.rand(count, 4), torch.rand(count, 16, 16) > 0.5)


def make_predictions(batch_size: int, group_size: int = 0, num_groups: int = 2) -> Predictions:
    noised = tuple(make_layer(batch_size, num_groups * group_size) for _ in range(2))
    return Predictions(
        (make_layer(batch_size), make_layer(batch_size)),
        torch.randn(batch_size, WIDTH, 4, 4),
        make_layer(batch_size),
        DenoisingPredictions(noised, num_groups, group_size) if group_size else None,
    )


def make_criterion(num_points: int = 64, **options: float) -> Criterion:
    return Criterion(matcher=HungarianMatcher(num_points=num_points), num_points=num_points, **options)


def losses_of(predictions: Predictions, targets: list[Targets], seed: int = 1) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return make_criterion()(predictions, targets)


def leaves_of(predictions: Predictions) -> list[Tensor]:
    layers = [*predictions.layers, *(predictions.denoising.layers if predictions.denoising else ())]
    if predictions.proposals is not None:
        layers.append(predictions.proposals)
    return [predictions.mask_features, *(x for y in layers for x in (y.class_logits, y.boxes, y.mask_embeddings))]


def right_predictions(targets: Targets) -> Predictions:
    """One layer whose first queries answer for the targets as well as can be; the others keep silent."""
    count = len(targets)
    class_logits = torch.full((1, count + 2, NUM_CLASSES), -20.0)
    class_logits[0, torch.arange(count), targets.labels] = 20
    boxes = torch.cat((targets.boxes, torch.rand(2, 4)))[None]
    features = 60 * targets.masks[None].float() - 30
    return Predictions((LayerPredictions(class_logits, boxes, torch.eye(count + 2, count)[None]),), features)


def test_criterion__is_near_zero_for_right_predictions() -> None:
    torch.manual_seed(0)
    targets = make_targets(4)
    masks = torch.zeros(4, 16, 16, dtype=torch.bool)
    for t in range(4):
        masks[t, 4 * t : 4 * t + 4] = True
    # far from every border the bilinear reading of both sides is exact
    losses = make_criterion(256, importance_sample_ratio=0.0)(
        right_predictions(replace(targets, masks=masks)), [replace(targets, masks=masks)]
    )
    assert losses["class"] < 1e-6
    assert losses["box"] < 1e-5
    assert losses["giou"] < 1e-4
    wrong = make_criterion(256, importance_sample_ratio=0.0)(
        right_predictions(replace(targets, masks=masks)), [replace(targets, masks=masks.flip(0))]
    )
    assert losses["mask"] < 0.1 * wrong["mask"]
    assert losses["dice"] < 0.2 * wrong["dice"]


def test_criterion__has_the_published_weights_and_normalisation() -> None:
    torch.manual_seed(0)
    targets = [Targets(torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.ones(1, 8, 8, dtype=torch.bool))]
    boxes = torch.tensor([[[0.6, 0.5, 0.2, 0.2]]])
    layer = LayerPredictions(torch.zeros(1, 1, 2), boxes, torch.zeros(1, 1, WIDTH))
    losses = make_criterion()(Predictions((layer, layer, layer), torch.randn(1, WIDTH, 4, 4)), targets)
    half_focal = 0.25 * math.log(2)
    assert losses["class"].item() == pytest.approx(3 * 4 * half_focal * (0.25 + 0.75))
    assert losses["mask"].item() == pytest.approx(3 * 5 * math.log(2), rel=1e-4)
    assert losses["box"].item() == pytest.approx(3 * 5 * 0.1, rel=1e-4)
    assert losses["giou"].item() == pytest.approx(3 * 2 * (1 - 1 / 3), rel=1e-4)


def test_criterion__divides_by_the_targets_of_all_images() -> None:
    torch.manual_seed(0)
    one = right_predictions(targets := make_targets(3))
    shifted = replace(one.layers[0], boxes=one.layers[0].boxes + 0.01)
    double = LayerPredictions(
        *(x.repeat(2, 1, 1) for x in (shifted.class_logits, shifted.boxes, shifted.mask_embeddings))
    )
    alone = losses_of(Predictions((shifted,), one.mask_features), [targets])
    twice = losses_of(Predictions((double,), one.mask_features.repeat(2, 1, 1, 1)), [targets, targets])
    for name in NAMES:
        torch.testing.assert_close(twice[name], alone[name], atol=1e-5, rtol=1e-4)


def test_criterion__is_invariant_to_the_order_of_queries() -> None:
    torch.manual_seed(0)
    predictions, targets = make_predictions(2), [make_targets(3), make_targets(5)]
    order = torch.randperm(NUM_QUERIES)
    shuffled = tuple(
        LayerPredictions(x.class_logits[:, order], x.boxes[:, order], x.mask_embeddings[:, order])
        for x in (*predictions.layers, predictions.proposals)
        if x is not None
    )
    losses = losses_of(predictions, targets)
    others = losses_of(Predictions(shuffled[:2], predictions.mask_features, shuffled[2]), targets)
    for name in NAMES:
        torch.testing.assert_close(others[name], losses[name], atol=1e-4, rtol=1e-4)


def test_criterion__repeats_with_the_seed() -> None:
    torch.manual_seed(0)
    predictions, targets = make_predictions(2, group_size=5), [make_targets(3), make_targets(5)]
    first, second, other = (losses_of(predictions, targets, seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in NAMES)
    assert not torch.equal(first["mask"], other["mask"])


def test_criterion__is_a_sum_over_layers_and_proposals() -> None:
    torch.manual_seed(0)
    predictions, targets = make_predictions(1), [make_targets(3)]
    layers = [*predictions.layers, predictions.proposals]
    whole = losses_of(predictions, targets)
    parts = [losses_of(Predictions((x,), predictions.mask_features), targets) for x in layers if x is not None]
    for name in NAMES:
        torch.testing.assert_close(whole[name], torch.stack([part[name] for part in parts]).sum(), atol=1e-4, rtol=1e-4)


def test_criterion__weighs_denoising_by_groups_and_ignores_its_padding() -> None:
    torch.manual_seed(0)
    targets = [make_targets(2), make_targets(3)]
    plain = make_predictions(2)
    noised = make_layer(2, 3)
    # the same group twice counts as one
    grouped = LayerPredictions(
        *(x.repeat(1, 2, 1) for x in (noised.class_logits, noised.boxes, noised.mask_embeddings))
    )
    grouped.class_logits[0, [2, 5]] = 50  # padding of the first image
    grouped.boxes[0, [2, 5]] = 0.9
    once = losses_of(replace(plain, denoising=DenoisingPredictions((noised,), 1, 3)), targets)
    twice = losses_of(replace(plain, denoising=DenoisingPredictions((grouped,), 2, 3)), targets)
    for name in NAMES:
        torch.testing.assert_close(twice[name], once[name], atol=1e-4, rtol=1e-4)


def test_criterion__pairs_denoising_queries_with_their_targets() -> None:
    torch.manual_seed(0)
    targets = [make_targets(2), make_targets(3)]
    boxes = torch.rand(2, 6, 4)
    for b, t in enumerate(targets):
        for group in range(2):
            boxes[b, 3 * group : 3 * group + len(t)] = t.boxes
    plain = make_predictions(2)
    right = replace(make_layer(2, 6), boxes=boxes)
    with_right = losses_of(replace(plain, denoising=DenoisingPredictions((right,), 2, 3)), targets)
    without = losses_of(plain, targets)
    torch.testing.assert_close(with_right["box"], without["box"])
    assert with_right["class"] > without["class"]


@pytest.mark.parametrize("counts", [(3, 5), (0, 4), (NUM_QUERIES + 6, 1)], ids=str)
def test_criterion__gives_finite_gradients_everywhere(counts: tuple[int, int]) -> None:
    torch.manual_seed(0)
    predictions, targets = make_predictions(2, group_size=max(counts)), [make_targets(count) for count in counts]
    leaves = leaves_of(predictions)
    for leaf in leaves:
        leaf.requires_grad_()
    torch.stack(list(losses_of(predictions, targets).values())).sum().backward()
    for leaf in leaves:
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert leaf.grad.any()


def test_criterion__learns_that_nothing_is_there_without_targets() -> None:
    torch.manual_seed(0)
    predictions = make_predictions(2)
    leaves = leaves_of(predictions)
    for leaf in leaves:
        leaf.requires_grad_()
    losses = losses_of(predictions, [make_targets(0), make_targets(0)])
    torch.stack(list(losses.values())).sum().backward()
    assert losses["class"] > 0
    assert all(losses[name] == 0 for name in NAMES[1:])
    # every tensor is in the graph, so that no parameter is without a gradient
    assert all(leaf.grad is not None for leaf in leaves)
    for layer in predictions.layers:
        assert layer.class_logits.grad is not None
        assert layer.class_logits.grad.gt(0).all()


def test_criterion__mask_gradient_is_that_of_dense_logits() -> None:
    torch.manual_seed(0)
    targets = make_targets(3)
    predictions = Predictions((make_layer(1, 3),), torch.randn(1, WIDTH, 4, 4))
    embeddings, features = (
        predictions.final.mask_embeddings.requires_grad_(),
        predictions.mask_features.requires_grad_(),
    )
    criterion = make_criterion(importance_sample_ratio=0.0)
    torch.manual_seed(1)
    losses = criterion(predictions, [targets])
    found = torch.autograd.grad(losses["mask"] + losses["dice"], (embeddings, features))

    torch.manual_seed(1)
    ((match,),) = criterion.matcher(predictions.layers, features, [targets])
    grid = (2 * torch.rand(criterion.points.num_drawn, 2) - 1)[None, None, -64:]
    dense = torch.einsum("qd,dhw->qhw", embeddings[0, match.query_idx], features[0])
    logits = F.grid_sample(dense[None], grid, align_corners=False)[0, :, 0]
    masks = F.grid_sample(targets.masks[None, match.target_idx].float(), grid, align_corners=False)[0, :, 0]
    cross_entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean(1)
    probs = logits.sigmoid()
    dice = 1 - (2 * (probs * masks).sum(1) + 1) / (probs.sum(1) + masks.sum(1) + 1)
    expected = torch.autograd.grad(5 / 3 * (cross_entropy + dice).sum(), (embeddings, features))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_criterion__computes_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    predictions, targets = make_predictions(1), [make_targets(3)]
    expected = losses_of(predictions, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(predictions, targets)
    assert all(losses[name].dtype == torch.float32 and torch.equal(losses[name], expected[name]) for name in NAMES)
