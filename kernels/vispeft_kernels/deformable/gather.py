"""Multi-scale deformable attention as weighted gather-sums over zero-padded planes, with its backward by hand.

The four corners of a point are the same row of four views of one plane, shifted by 0, 1, `stride` and `stride + 1`: no
index is ever expanded. A few planes (one per image and head) are done at a time, so that all of it stays in cache.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from vispeft_kernels.deformable.atlas import (
    BORDER,
    Atlas,
    Shapes,
    fill_planes,
    level_constants,
    plan_atlas,
    read_planes,
)

POINTS_AT_ONCE = 131_072
ROWS_AT_ONCE = 32_768  # rows that an int16 can name: sorting those takes half the passes


@dataclass(frozen=True)
class _Levels:
    """Constants of the points of one plane."""

    sizes: Tensor  # [2, 1, Q * levels * points]: width, height
    starts: Tensor  # [Q * levels * points]: row of the shifted coordinate (0, 0), int32


@dataclass(frozen=True)
class _Points:
    """The sampling points of some planes, [planes, Q * levels * points] each."""

    rows: Tensor  # the upper left corner's row over all planes, int32
    x: Tensor  # fraction of a pixel to the right of that corner, 0..1
    y: Tensor  # fraction of a pixel below it
    weights: Tensor


@dataclass(frozen=True)
class Gradients:
    """Gradients like the inputs that they are for; empty where not needed."""

    value: Tensor
    locations: Tensor
    weights: Tensor


def forward(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """The sum of all weighted samples, [B, Q, heads * dim] in the dtype of `value`."""
    batch, _, heads, dim = value.shape
    out = value.new_zeros(batch, locations.shape[1], heads, dim)
    if out.numel() and locations.numel():
        atlas = plan_atlas(shapes)
        levels = _repeat_levels(atlas, locations, _dtype(value))
        for part in _parts(locations, atlas):
            points = _locate(locations[part], weights[part], levels, atlas)
            sums = _gather(_planes(value[part], atlas), points, atlas, locations)
            bags = out[part].transpose(1, 2)  # [b, h, Q, dim]
            bags.copy_(sums.view(bags.shape))
    return out.flatten(2)


def backward(
    grad: Tensor,
    value: Tensor,
    shapes: Shapes,
    locations: Tensor,
    weights: Tensor,
    needs_value: bool,
    needs_points: bool,
) -> Gradients:
    """Gradients of `forward` given that of its result, grad [B, Q, heads * dim]."""
    grads = Gradients(
        value.new_zeros(value.shape if needs_value else 0),
        locations.new_zeros(locations.shape if needs_points else 0),
        weights.new_zeros(weights.shape if needs_points else 0),
    )
    if grad.numel() and locations.numel():
        atlas = plan_atlas(shapes)
        levels = _repeat_levels(atlas, locations, _dtype(value))
        grad = grad.unflatten(2, value.shape[2:])  # [B, Q, heads, dim]
        for part in _parts(locations, atlas):
            points = _locate(locations[part], weights[part], levels, atlas)
            bags = grad[part].transpose(1, 2).to(_dtype(value)).reshape(-1, grad.shape[3])  # [b * h * Q, dim]
            if needs_value:
                read_planes(_scatter(bags, points, atlas, locations), grads.value[part], atlas)
            if needs_points:
                dots = _dot(bags, _planes(value[part], atlas), points, atlas, locations)
                _write_point_gradients(dots, points, levels, grads.locations[part], grads.weights[part])
    return grads


def _dtype(value: Tensor) -> torch.dtype:
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def _parts(locations: Tensor, atlas: Atlas) -> Iterator[tuple[slice, slice, slice]]:
    """Index [B, Q or S, heads] in parts of whole images, or of some heads of an image, that stay in cache."""
    batch, num_queries, heads, num_levels, points, _ = locations.shape
    planes = max(1, min(POINTS_AT_ONCE // (num_queries * num_levels * points), ROWS_AT_ONCE // atlas.rows))
    images, slots = max(1, planes // heads), min(planes, heads)
    for image in range(0, batch, images):
        for slot in range(0, heads, slots):
            yield slice(image, image + images), slice(None), slice(slot, slot + slots)


def _repeat_levels(atlas: Atlas, locations: Tensor, dtype: torch.dtype) -> _Levels:
    """Level constants once per point, which is faster than broadcasting over a short innermost dimension."""
    num_queries, points = locations.shape[1], locations.shape[4]
    sizes, starts = level_constants(atlas, dtype)
    return _Levels(
        sizes.repeat_interleave(points, 1).repeat(1, num_queries).unsqueeze(1),
        starts.repeat_interleave(points).repeat(num_queries),
    )


def _locate(locations: Tensor, weights: Tensor, levels: _Levels, atlas: Atlas) -> _Points:
    """Corner rows and fractions of locations [b, Q, h, levels, points, 2]; what is not finite stays so."""
    dtype = levels.sizes.dtype
    planes, points = locations.shape[0] * locations.shape[2], levels.starts.shape[0]
    permuted = locations.permute(5, 0, 2, 1, 3, 4)
    shifted = torch.empty(permuted.shape, dtype=dtype).copy_(permuted).view(2, planes, points)
    # pixel centres lie at 2, 3, ...; beyond the first and the last there are two of zeros
    shifted.mul_(levels.sizes).add_(BORDER - 0.5).clamp_min_(0)
    torch.minimum(shifted, levels.sizes + BORDER, out=shifted)
    cells = shifted.to(torch.int32)
    firsts = torch.arange(0, planes * atlas.rows, atlas.rows, dtype=torch.int32).unsqueeze(1)
    rows = cells[1].mul_(atlas.stride).add_(cells[0]).add_(levels.starts).add_(firsts)
    rows.clamp_(0, planes * atlas.rows - atlas.stride - 2)  # only nan is outside
    x, y = shifted.frac_()
    permuted = weights.transpose(1, 2)
    return _Points(rows, x, y, torch.empty(permuted.shape, dtype=dtype).copy_(permuted).view(planes, points))


def _planes(value: Tensor, atlas: Atlas) -> Tensor:
    """Zero-padded planes [b * h * rows, dim] of value [b, S, h, dim]."""
    batch, _, heads, dim = value.shape
    planes = torch.zeros(batch, heads, atlas.rows, dim, dtype=_dtype(value))
    fill_planes(planes, value, atlas)
    return planes.view(-1, dim)


def _corner_shifts(atlas: Atlas) -> tuple[int, int, int, int]:
    """From the upper left corner's row to that of the upper left, upper right, lower left, lower right."""
    return 0, 1, atlas.stride, atlas.stride + 1


def _corner_weights(points: _Points) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bilinear times attention weight of the four corners, flat."""
    lower = points.weights * points.y
    upper = points.weights - lower
    lower_right = lower * points.x
    upper_right = upper * points.x
    corners = upper.sub_(upper_right), upper_right, lower.sub_(lower_right), lower_right
    return tuple(corner.view(-1) for corner in corners)


def _bag_starts(points: _Points, locations: Tensor) -> Tensor:
    return torch.arange(0, points.rows.numel(), locations.shape[3] * locations.shape[4], dtype=torch.int32)


def _gather(planes: Tensor, points: _Points, atlas: Atlas, locations: Tensor) -> Tensor:
    """Weighted sums [b * h * Q, dim] of rows of the planes."""
    rows, starts = points.rows.view(-1), _bag_starts(points, locations)
    sums = [
        _weighted_sums(planes[shift:], rows, starts, weights)
        for shift, weights in zip(_corner_shifts(atlas), _corner_weights(points), strict=True)
    ]
    return sums[0].add_(sums[1]).add_(sums[2]).add_(sums[3])


def _weighted_sums(table: Tensor, rows: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """For each bag, which begins at starts[i] and ends where the next begins: the sum of weights * table[rows]."""
    return torch.embedding_bag(table, rows, starts, mode=0, per_sample_weights=weights)[0]


def _scatter(bags: Tensor, points: _Points, atlas: Atlas, locations: Tensor) -> Tensor:
    """The transpose of `_gather`: planes [b, h, rows, dim] from bags [b * h * Q, dim].

    Sorted by row, all points of one corner row are one bag: the scatter is a gather-sum again, and repeats to the bit.
    """
    num_rows = points.rows.shape[0] * atlas.rows
    keys = points.rows.view(-1).to(torch.int16 if num_rows <= ROWS_AT_ONCE else torch.int32)
    order = torch.sort(keys, stable=True).indices
    counts = torch.bincount(points.rows.view(-1), minlength=num_rows)
    starts = (counts.cumsum(0) - counts).to(torch.int32)
    bag = torch.arange(bags.shape[0], dtype=torch.int32).repeat_interleave(locations.shape[3] * locations.shape[4])
    bag = bag.index_select(0, order)
    planes = None
    for shift, weights in zip(_corner_shifts(atlas), _corner_weights(points), strict=True):
        sums = _weighted_sums(bags, bag, starts, weights.index_select(0, order))
        if planes is None:
            planes = sums
        else:
            planes[shift:].add_(sums[: num_rows - shift])
    return planes.view(-1, min(locations.shape[2], points.rows.shape[0]), atlas.rows, bags.shape[1])


def _dot(bags: Tensor, planes: Tensor, points: _Points, atlas: Atlas, locations: Tensor) -> list[Tensor]:
    """The product of each point's bag [b * h * Q, dim] with each of its four corners, like `points.rows` each."""
    _accept_sparse_beta()
    ends = torch.cat([_bag_starts(points, locations), torch.tensor([points.rows.numel()], dtype=torch.int32)])
    rows, zeros = points.rows.view(-1), torch.zeros(points.rows.numel(), dtype=bags.dtype)
    dots = []
    for shift in _corner_shifts(atlas):
        corners = planes[shift:]
        pattern = torch.sparse_csr_tensor(ends, rows, zeros, (bags.shape[0], corners.shape[0]), check_invariants=False)
        products = torch.sparse.sampled_addmm(pattern, bags, corners.t(), beta=0.0)
        dots.append(products.values().view(points.rows.shape))
    return dots


@lru_cache(maxsize=1)
def _accept_sparse_beta() -> None:
    """Let torch say once, unheard, that its sparse layout is in beta: nobody here asked for one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1))


def _write_point_gradients(
    dots: list[Tensor], points: _Points, levels: _Levels, grad_locations: Tensor, grad_weights: Tensor
) -> None:
    """Turn products with the corners into gradients of locations [b, Q, h, levels, points, 2] and weights."""
    upper_left, upper_right, lower_left, lower_right = dots
    upper_step = upper_right.sub_(upper_left)
    lower_step = lower_right.sub_(lower_left)
    upper = upper_left.addcmul_(points.x, upper_step)
    lower = lower_left.addcmul_(points.x, lower_step)
    down = lower.sub_(upper)
    right = upper_step.addcmul_(points.y, lower_step.sub_(upper_step))
    permuted = grad_weights.transpose(1, 2)
    permuted.copy_(upper.addcmul_(points.y, down).view(permuted.shape))
    for axis, step in enumerate((right, down)):
        step.mul_(points.weights).mul_(levels.sizes[axis])
        permuted = grad_locations[..., axis].transpose(1, 2)
        permuted.copy_(step.view(permuted.shape))
