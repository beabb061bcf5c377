"""The matching finds the cheapest pairs, alone or in a batch, and takes any number of targets."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vispeft.losses.matcher import (
    CostWeights,
    HungarianMatcher,
    Match,
    assign,
    box_costs,
    focal_class_costs,
    mask_costs,
    mask_costs_at,
    softmax_class_costs,
)
from vispeft.losses.points import corners
from vispeft.structures import LayerPredictions, Targets

NUM_QUERIES, NUM_CLASSES, WIDTH = 8, 3, 6


def make_layers(batch_size: int, num_layers: int = 2) -> tuple[LayerPredictions, ...]:
    return tuple(
        LayerPredictions(
            torch.randn(batch_size, NUM_QUERIES, NUM_CLASSES),
            torch.rand(batch_size, NUM_QUERIES, 4),
            torch.randn(batch_size, NUM_QUERIES, WIDTH),
        )
        for _ in range(num_layers)
    )


def make_targets(count: int) -> Targets:
    return Targets(torch.randint(0, NUM_CLASSES, (count,)), torch.rand(count, 4), torch.rand(count, 16, 16) > 0.5)


def image_of(layers: tuple[LayerPredictions, ...], b: int) -> tuple[LayerPredictions, ...]:
    one = slice(b, b + 1)
    return tuple(LayerPredictions(x.class_logits[one], x.boxes[one], x.mask_embeddings[one]) for x in layers)


def test_matcher__matches_a_batch_as_its_single_images() -> None:
    torch.manual_seed(0)
    layers, features = make_layers(3), torch.randn(3, WIDTH, 4, 4)
    targets = [make_targets(count) for count in (4, 0, 11)]
    matcher = HungarianMatcher(num_points=64)
    torch.manual_seed(1)
    together = matcher(layers, features, targets)
    for b, image_matches in enumerate(together):
        torch.manual_seed(1)
        (alone,) = matcher(image_of(layers, b), features[b : b + 1], targets[b : b + 1])
        assert len(image_matches) == len(alone) == 2
        for match, expected in zip(image_matches, alone, strict=True):
            assert torch.equal(match.query_idx, expected.query_idx)
            assert torch.equal(match.target_idx, expected.target_idx)


@pytest.mark.parametrize("count", [0, 1, NUM_QUERIES, NUM_QUERIES + 5], ids=lambda count: f"{count}_targets")
def test_matcher__gives_each_query_and_target_at_most_one_partner(count: int) -> None:
    torch.manual_seed(0)
    ((match, _),) = HungarianMatcher(num_points=16)(make_layers(1), torch.randn(1, WIDTH, 4, 4), [make_targets(count)])
    num_pairs = min(count, NUM_QUERIES)
    assert len(match.query_idx) == len(match.target_idx) == num_pairs
    assert len(match.query_idx.unique()) == len(match.target_idx.unique()) == num_pairs
    assert match.query_idx.dtype == match.target_idx.dtype == torch.int64


def test_matcher__finds_the_queries_that_are_right() -> None:
    torch.manual_seed(0)
    targets = make_targets(3)
    order = torch.tensor([5, 0, 2])  # the query that answers for each target
    layer = LayerPredictions(torch.full((1, 8, 3), -4.0), torch.rand(1, 8, 4), torch.zeros(1, 8, 3))
    layer.class_logits[0, order, targets.labels] = 4
    layer.boxes[0, order] = targets.boxes
    layer.mask_embeddings[0, order] = torch.eye(3)
    features = 20 * targets.masks[None].float() - 10
    ((match,),) = HungarianMatcher(num_points=256)([layer], features, [targets])
    assert torch.equal(order[match.target_idx], match.query_idx)


@pytest.mark.parametrize("right", ["class_logits", "boxes", "mask_embeddings"])
def test_matcher__prefers_the_query_that_is_right_in_one_thing(right: str) -> None:
    torch.manual_seed(0)
    targets = Targets(torch.tensor([1]), torch.tensor([[0.3, 0.3, 0.2, 0.2]]), torch.rand(1, 16, 16) > 0.5)
    logits, boxes, embeddings = torch.zeros(1, 3, 2), torch.full((1, 3, 4), 0.8), torch.zeros(1, 3, 1)
    layer = LayerPredictions(logits, boxes, embeddings)
    getattr(layer, right)[0, 2] = {
        "class_logits": torch.tensor([0.0, 3.0]),
        "boxes": targets.boxes[0],
        "mask_embeddings": torch.ones(1),
    }[right]
    features = 10 * targets.masks[None].float() - 5
    ((match,),) = HungarianMatcher(num_points=256)([layer], features, [targets])
    assert match.query_idx.tolist() == [2]


def plain_giou(one: Tensor, other: Tensor) -> float:
    """Generalised IoU of two cxcywh boxes by its definition."""
    (a_low, a_high), (b_low, b_high) = ((box[:2] - box[2:] / 2, box[:2] + box[2:] / 2) for box in (one, other))
    overlap = (torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp(min=0).prod()
    union = one[2:].prod() + other[2:].prod() - overlap
    hull = (torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)).prod()
    return float(overlap / union - (hull - union) / hull)


def test_matcher__adds_the_published_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Class 4, mask 5, dice 5, L1 5 and generalised IoU 2 (Mask DINO's published settings), each by its definition."""
    torch.manual_seed(0)
    (layer,), features, targets = make_layers(1, num_layers=1), torch.randn(1, WIDTH, 4, 4), make_targets(3)
    given: list[Tensor] = []

    def keep(costs: Tensor) -> tuple[Match, ...]:
        given.append(costs)
        return assign(costs)

    monkeypatch.setattr("vispeft.losses.matcher.assign", keep)
    torch.manual_seed(1)
    HungarianMatcher(num_points=64)([layer], features, [targets])
    torch.manual_seed(1)
    grid = (2 * torch.rand(64, 2) - 1)[None, None]
    at_points = F.grid_sample(features, grid, align_corners=False)[0, :, 0]  # [D, 64]
    masks = F.grid_sample(targets.masks[None].float(), grid, align_corners=False)[0, :, 0]  # [T, 64]
    wanted = torch.zeros(1, NUM_QUERIES, 3)
    for query in range(NUM_QUERIES):
        logits = layer.mask_embeddings[0, query] @ at_points
        for target, mask in enumerate(masks):
            logit = layer.class_logits[0, query, targets.labels[target]]
            prob, probs = logit.sigmoid(), logits.sigmoid()
            focal = -0.25 * (1 - prob) ** 2 * prob.log() + 0.75 * prob**2 * (1 - prob).log()
            cross_entropy = F.binary_cross_entropy_with_logits(logits, mask)
            dice = 1 - (2 * (probs * mask).sum() + 1) / (probs.sum() + mask.sum() + 1)
            box, target_box = layer.boxes[0, query], targets.boxes[target]
            boxes = 5 * (box - target_box).abs().sum() - 2 * plain_giou(box, target_box)
            wanted[0, query, target] = 4 * focal + 5 * cross_entropy + 5 * dice + boxes
    torch.testing.assert_close(given[0], wanted, rtol=1e-4, atol=1e-4)


def test_matcher__is_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layers, features, targets = make_layers(1), torch.randn(1, WIDTH, 4, 4), [make_targets(5)]

    def match() -> list[Tensor]:
        torch.manual_seed(1)
        return [m.query_idx for m in HungarianMatcher(num_points=64)(layers, features, targets)[0]]

    whole = match()
    monkeypatch.setattr("vispeft.losses.matcher.LOGITS_AT_ONCE", 3 * 64)
    assert all(torch.equal(a, b) for a, b in zip(match(), whole, strict=True))


def test_matcher__without_boxes_compares_class_and_mask() -> None:
    torch.manual_seed(0)
    layers, features, target = make_layers(1), torch.randn(1, WIDTH, 4, 4), make_targets(4)
    bare = tuple(LayerPredictions(x.class_logits, None, x.mask_embeddings) for x in layers)
    pairs = []
    for given, weights in ((bare, CostWeights()), (layers, CostWeights(box=0.0, giou=0.0))):
        torch.manual_seed(1)
        pairs.append(HungarianMatcher(weights, num_points=64)(given, features, [target])[0])
    assert all(torch.equal(one.query_idx, other.query_idx) for one, other in zip(*pairs, strict=True))


def test_assign__pairs_all_despite_costs_that_are_not_finite() -> None:
    costs = torch.tensor([[[math.nan, 1.0], [0.0, math.inf], [-math.inf, math.nan]]])
    (match,) = assign(costs)
    assert dict(zip(match.target_idx.tolist(), match.query_idx.tolist(), strict=True)) == {0: 1, 1: 0}


def test_focal_class_costs__is_the_focal_loss_as_positive_less_as_negative() -> None:
    costs = focal_class_costs(torch.tensor([[0.0, 9.0]]), torch.tensor([0]))
    expected = (0.25 - 0.75) * 0.25 * math.log(2)
    torch.testing.assert_close(costs, torch.tensor([[expected]]))


def test_softmax_class_costs__is_the_probability_negated() -> None:
    logits = torch.tensor([[0.2, 0.5, 0.3]]).log()
    torch.testing.assert_close(softmax_class_costs(logits, torch.tensor([1, 0, 1])), torch.tensor([[-0.5, -0.2, -0.5]]))


def test_mask_costs__is_cross_entropy_and_dice_of_every_pair() -> None:
    torch.manual_seed(0)
    logits, masks = 20 * torch.randn(4, 50), torch.rand(3, 50)
    pairs, others = logits[:, None].expand(4, 3, 50), masks.expand(4, 3, 50)
    cross_entropy = F.binary_cross_entropy_with_logits(pairs, others, reduction="none").mean(-1)
    probs = pairs.sigmoid()
    dice = 1 - (2 * (probs * others).sum(-1) + 1) / (probs.sum(-1) + others.sum(-1) + 1)
    costs = mask_costs(-logits, masks, CostWeights(mask=5.0, dice=3.0))
    torch.testing.assert_close(costs, 5 * cross_entropy + 3 * dice, atol=1e-4, rtol=1e-4)


def test_mask_costs_at__are_the_same_from_cells_and_at_points(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    embeddings, cells, masks = torch.randn(9, 6), torch.randn(12, 6), torch.rand(2, 50)
    at = corners(torch.rand(50, 2), 3, 4)
    costs = []
    for points_per_cell in (0, 100):
        monkeypatch.setattr("vispeft.losses.matcher.POINTS_PER_CELL", points_per_cell)
        monkeypatch.setattr("vispeft.losses.matcher.CELL_LOGITS_AT_ONCE", 200)
        costs.append(mask_costs_at(embeddings, cells, at, masks, CostWeights()))
    torch.testing.assert_close(*costs, atol=1e-4, rtol=1e-5)


def test_mask_costs__is_finite_for_extreme_logits() -> None:
    costs = mask_costs(torch.tensor([[-1e4, 1e4], [1e4, -1e4]]), torch.tensor([[1.0, 0.0]]), CostWeights())
    assert costs.isfinite().all()
    assert costs[0, 0] < costs[1, 0]


def test_box_costs__is_as_by_hand() -> None:
    box, other = torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.tensor([[0.6, 0.5, 0.2, 0.2]])
    # L1 0.1; overlap 0.02, union 0.06, hull 0.06
    costs = box_costs(box, other, CostWeights(box=5.0, giou=2.0))
    torch.testing.assert_close(costs, torch.tensor([[5 * 0.1 - 2 / 3]]))
