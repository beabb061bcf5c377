"""Reading maps at points agrees with grid_sample, forward and backward, and commutes with the product by embeddings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vispeft.losses.points import PointPlan, cell_rows, corners, read_rows, sample_masks, smallest, spread_rows

SIZES = [pytest.param((7, 5), id="odd"), pytest.param((1, 1), id="one_cell"), pytest.param((4, 12), id="wide")]


def grid_sample(maps: Tensor, points: Tensor) -> Tensor:
    """maps: [C, h, w]; points: [P, 2]. Returns [C, P]."""
    return F.grid_sample(maps[None], (2 * points - 1)[None, None], align_corners=False)[0, :, 0]


def draw_points(count: int = 200) -> Tensor:
    """Points all over the map, its border and a little outside included."""
    torch.manual_seed(0)
    border = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [-0.2, 0.5], [1.3, 0.2], [0.5, 0.5]])
    return torch.cat((torch.rand(count, 2), border))


@pytest.mark.parametrize("size", SIZES)
def test_read_rows__is_grid_sample(size: tuple[int, int]) -> None:
    points = draw_points()
    features = torch.randn(2, 3, *size)
    at = corners(points, *size)
    for rows, maps in zip(cell_rows(features), features, strict=True):
        torch.testing.assert_close(read_rows(rows, at).T, grid_sample(maps, points), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_spread_rows__is_the_gradient_of_grid_sample(size: tuple[int, int]) -> None:
    points = draw_points()
    maps = torch.randn(3, *size, requires_grad=True)
    grad = torch.randn(3, len(points))
    (expected,) = torch.autograd.grad(grid_sample(maps, points), maps, grad)
    spread = spread_rows(grad.T.contiguous(), corners(points, *size))
    torch.testing.assert_close(spread.T.reshape_as(expected), expected, atol=1e-4, rtol=1e-4)


def test_read_rows__commutes_with_the_product_by_embeddings() -> None:
    points = draw_points()
    features, embeddings = torch.randn(1, 6, 8, 9), torch.randn(4, 6)
    logits = torch.einsum("nd,dhw->nhw", embeddings, features[0])
    at_points = embeddings @ read_rows(cell_rows(features)[0], corners(points, 8, 9)).T
    torch.testing.assert_close(at_points, grid_sample(logits, points), atol=1e-5, rtol=1e-4)


def test_cell_rows__does_not_copy_channels_last() -> None:
    features = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    assert cell_rows(features).data_ptr() == features.data_ptr()


def test_sample_masks__is_grid_sample() -> None:
    points = draw_points()
    masks = torch.rand(3, 20, 14) > 0.5
    torch.testing.assert_close(
        sample_masks(masks, corners(points, 20, 14)), grid_sample(masks.float(), points), atol=1e-5, rtol=1e-4
    )


def test_sample_masks__has_no_rows_without_masks() -> None:
    assert sample_masks(torch.zeros(0, 8, 8, dtype=torch.bool), corners(torch.rand(5, 2), 8, 8)).shape == (0, 5)


@pytest.mark.parametrize("count", [0, 1, 7, 20], ids=str)
def test_smallest__finds_them(count: int) -> None:
    torch.manual_seed(0)
    values = torch.rand(5, 20)
    found = values.gather(1, smallest(values, count)).sort(dim=1).values
    torch.testing.assert_close(found, values.sort(dim=1).values[:, :count])


def test_smallest__is_empty_without_rows() -> None:
    assert smallest(torch.zeros(0, 20), 4).shape == (0, 4)


def test_point_plan__takes_the_published_shares() -> None:
    plan = PointPlan.of(12544, 3.0, 0.75)
    assert (plan.num_candidates, plan.num_uncertain, plan.num_random) == (37632, 9408, 3136)


def test_point_plan_select__takes_the_least_certain_candidates_and_all_random_points() -> None:
    torch.manual_seed(0)
    plan = PointPlan.of(16, 3.0, 0.75)
    logits = torch.randn(6, plan.num_drawn)
    chosen = plan.select(logits)
    candidates = logits[:, :48].abs()
    threshold = candidates.sort(dim=1).values[:, 11:12]
    assert chosen.shape == (6, 16)
    assert (candidates.gather(1, chosen[:, :12]) <= threshold).all()
    assert all(len(set(row.tolist())) == 16 for row in chosen)
    assert (chosen[:, 12:] == torch.arange(48, 52)).all()
