"""Multi-scale deformable attention as weighted gather-sums over zero-padded planes, with a hand-written gradient.

The four corners of a point are the same row of four views of one table, shifted by a constant each: no index is ever
expanded. Some images, or some heads of an image, are computed at a time, so that all data stays in cache.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from vispeft_kernels.deformable.padded_levels import BORDER, PaddedLevels, Shapes, level_views, pad_levels

POINTS_AT_ONCE = 65_536
ROWS_AT_ONCE = 32_768  # rows that an int16 can index: sorting those takes half the passes
RADIX_SORT_SIZE = 32_768  # torch sorts fewer integers by comparison, at many times the cost per element


@dataclass(frozen=True)
class _Part:
    """Images and heads that are computed together: b images, h heads."""

    layout: PaddedLevels
    images: int
    heads: int
    bag_size: int  # levels * points
    sizes: Tensor  # [2, 1, Q * h * bag_size]: width and height of the level of each point of an image
    first_rows: Tensor  # [Q * h * bag_size]: int32 row of its level's shifted coordinate (0, 0)

    @property
    def num_rows(self) -> int:
        return self.images * self.layout.rows * self.heads

    @property
    def shifts(self) -> tuple[int, int, int, int]:
        """Rows from the upper left corner to the upper left, upper right, lower left and lower right."""
        below = self.layout.stride * self.heads
        return 0, self.heads, below, below + self.heads


@dataclass(frozen=True)
class _Points:
    """Sampling points, [b, Q * h * levels * points] each."""

    rows: Tensor  # the upper left corner in a table [b * rows * h, dim], int32
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
    """Return the sum of all weighted samples, [B, Q, heads * dim] in the dtype of `value`."""
    batch, _, heads, dim = value.shape
    out = value.new_empty(batch, locations.shape[1], heads, dim)
    if out.numel() and locations.numel():
        for block, part in _parts(value, pad_levels(shapes), locations):
            points = _locate(locations[block], weights[block], part)
            sums = _gather(_table(value[block], part), points, part)
            out[block] = sums.view(out[block].shape)
    else:
        out.zero_()  # no points
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
    """Return the gradients of `forward` that belong to grad [B, Q, heads * dim]."""
    grads = Gradients(
        value.new_empty(value.shape if needs_value else 0),
        locations.new_empty(locations.shape if needs_points else 0),
        weights.new_empty(weights.shape if needs_points else 0),
    )
    if grad.numel() and locations.numel():
        grad = grad.reshape(*grad.shape[:2], *value.shape[2:])  # [B, Q, heads, dim]
        for block, part in _parts(value, pad_levels(shapes), locations):
            points = _locate(locations[block], weights[block], part)
            bags = grad[block].to(part.sizes.dtype).reshape(-1, grad.shape[3])  # [b * Q * h, dim]
            if needs_value:
                planes = _scatter(bags, points, part)
                for plane, level in level_views(planes, grads.value[block], part.layout):
                    level.copy_(plane)
            if needs_points:
                dots = _dot(bags, _table(value[block], part), points, part)
                _write_point_gradients(dots, points, part, grads.locations[block], grads.weights[block])
    else:
        grads.value.zero_()  # no points
    return grads


def _parts(
    value: Tensor, layout: PaddedLevels, locations: Tensor
) -> Iterator[tuple[tuple[slice, slice, slice], _Part]]:
    """Split the work: indices into [B, Q or S, heads], and the part that is computed there at a time."""
    batch, num_queries, heads, num_levels, points, _ = locations.shape
    bag_size = num_levels * points
    planes = max(1, min(POINTS_AT_ONCE // (num_queries * bag_size), ROWS_AT_ONCE // layout.rows))
    images = max(1, min(batch, planes // heads))
    slots = max(count for count in range(1, heads + 1) if heads % count == 0 and count <= planes)
    sizes, first_rows = _constants(
        layout, points, slots, torch.float64 if value.dtype == torch.float64 else torch.float32
    )
    # once per point: faster than broadcasting over a short innermost dimension
    sizes, first_rows = sizes.repeat(1, num_queries).unsqueeze(1), first_rows.repeat(num_queries)
    for image in range(0, batch, images):
        part = _Part(layout, min(images, batch - image), slots, bag_size, sizes, first_rows)
        for slot in range(0, heads, slots):
            yield (slice(image, image + images), slice(None), slice(slot, slot + slots)), part


def _arange(*bounds: int) -> Tensor:
    """Return indices on the CPU, on any default device; int32 is half the traffic."""
    return torch.arange(*bounds, dtype=torch.int32, device="cpu")


@lru_cache(maxsize=64)
def _constants(layout: PaddedLevels, points: int, heads: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return `sizes` [2, heads * levels * points] and `first_rows` [heads * levels * points] of one query's `_Part`."""
    sizes = torch.tensor([shape[::-1] for shape in layout.shapes], dtype=dtype, device="cpu").t()
    origins = torch.tensor(layout.first_pixels, dtype=torch.int32, device="cpu") - BORDER * (layout.stride + 1)
    rows = origins * heads + _arange(heads).unsqueeze(1)  # [heads, levels]
    return sizes.repeat_interleave(points, 1).repeat(1, heads), rows.repeat_interleave(points, 1).flatten()


def _locate(locations: Tensor, weights: Tensor, part: _Part) -> _Points:
    """Return the corner rows and fractions of locations [b, Q, h, levels, points, 2]; NaN stays NaN."""
    dtype, layout = part.sizes.dtype, part.layout
    shifted = (
        weights.new_empty((2, *weights.shape), dtype=dtype).copy_(locations.movedim(-1, 0)).view(2, part.images, -1)
    )
    # pixel centres lie at 2, 3, ...; beyond the first and the last there are two of zeros
    shifted.mul_(part.sizes).add_(BORDER - 0.5).clamp_min_(0)
    torch.minimum(shifted, part.sizes + BORDER, out=shifted)
    cells = shifted.to(torch.int32)
    rows = cells[1].mul_(layout.stride).add_(cells[0]).mul_(part.heads).add_(part.first_rows)
    if part.images > 1:
        rows.add_(_arange(0, part.num_rows, layout.rows * part.heads).unsqueeze(1))
    rows.clamp_(0, part.num_rows - 1 - part.shifts[3])  # only NaN is outside
    x, y = shifted.frac_()
    return _Points(rows, x, y, weights.to(dtype).reshape(part.images, -1))


def _table(value: Tensor, part: _Part) -> Tensor:
    """Return the zero-padded planes [b * rows * h, dim] of value [b, S, h, dim]."""
    planes = value.new_zeros((part.images, part.layout.rows, *value.shape[2:]), dtype=part.sizes.dtype)
    for plane, level in level_views(planes, value, part.layout):
        plane.copy_(level)
    return planes.view(-1, value.shape[3])


def _corner_weights(points: _Points) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the bilinear times the attention weight of the four corners, flat."""
    lower = points.weights * points.y
    upper = points.weights - lower
    lower_right = lower * points.x
    upper_right = upper * points.x
    upper_left, lower_left = upper.sub_(upper_right), lower.sub_(lower_right)
    return upper_left.view(-1), upper_right.view(-1), lower_left.view(-1), lower_right.view(-1)


def _weighted_sums(table: Tensor, rows: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of weights * table[rows] of each bag, which goes from starts[i] to starts[i + 1]."""
    return torch.embedding_bag(table, rows, starts, mode=0, per_sample_weights=weights)[0]


def _gather(table: Tensor, points: _Points, part: _Part) -> Tensor:
    """Return the weighted sums [b * Q * h, dim] of rows of the table."""
    rows = points.rows.view(-1)
    starts = _arange(0, rows.numel(), part.bag_size)
    total = table.new_zeros(0)
    for shift, weights in zip(part.shifts, _corner_weights(points), strict=True):
        sums = _weighted_sums(table[shift:], rows, starts, weights)
        total = total.add_(sums) if shift else sums
    return total


def _scatter(bags: Tensor, points: _Points, part: _Part) -> Tensor:
    """Apply the transpose of `_gather`: planes [b, rows, h, dim] from bags [b * Q * h, dim].

    Sorted by row, all points of a row are one bag: the scatter is a gather-sum again, reproducible to the bit. All four
    corners share one order; where there are fewer points than rows, one pass over the rows is cheaper than four.
    """
    rows, weights = points.rows.view(-1), _corner_weights(points)
    bag = _arange(bags.shape[0]).repeat_interleave(part.bag_size)
    if rows.numel() < part.num_rows:
        rows = torch.cat([rows + shift for shift in part.shifts])
        order, starts = _sort_rows(rows, part.num_rows)
        table = _weighted_sums(
            bags, bag.repeat(4).index_select(0, order), starts, torch.cat(weights).index_select(0, order)
        )
    else:
        order, starts = _sort_rows(rows, part.num_rows)
        bag = bag.index_select(0, order)
        table = _weighted_sums(bags, bag, starts, weights[0].index_select(0, order))
        for shift, corner_weights in zip(part.shifts[1:], weights[1:], strict=True):
            sums = _weighted_sums(bags, bag, starts, corner_weights.index_select(0, order))
            table[shift:].add_(sums[:-shift])
    return table.view(part.images, part.layout.rows, part.heads, -1)


def _sort_rows(rows: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Return the stable order that sorts int32 rows, and the place where each of `num_rows` begins in it, int32."""
    keys = rows.to(torch.int16 if num_rows <= ROWS_AT_ONCE else torch.int32)
    # padded with the last row, which a stable sort leaves behind all others, to what torch sorts by radix
    if RADIX_SORT_SIZE // 8 < rows.numel() < RADIX_SORT_SIZE:
        keys = torch.cat([keys, keys.new_full((RADIX_SORT_SIZE - rows.numel(),), num_rows - 1)])
    counts = torch.bincount(rows, minlength=num_rows)
    return torch.sort(keys, stable=True).indices[: rows.numel()], (counts.cumsum(0) - counts).to(torch.int32)


def _dot(bags: Tensor, table: Tensor, points: _Points, part: _Part) -> list[Tensor]:
    """Return the products of each point's bag [b * Q * h, dim] with its four corners, like `points.rows` each."""
    _accept_sparse_beta()
    rows = points.rows.view(-1)
    ends = _arange(0, rows.numel() + 1, part.bag_size)
    dots = []
    for shift in part.shifts:
        corners = table[shift:]
        products = bags.new_zeros(rows.numel())
        pattern = torch.sparse_csr_tensor(
            ends, rows, products, (bags.shape[0], corners.shape[0]), check_invariants=False
        )
        torch.sparse.sampled_addmm(pattern, bags, corners.t(), beta=0.0, out=pattern)
        dots.append(pattern.values().view(points.rows.shape))
    return dots


@lru_cache(maxsize=1)
def _accept_sparse_beta() -> None:
    """Trigger torch's one-time warning that its sparse layout is in beta, but do not show it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1), device="cpu")


def _write_point_gradients(
    dots: list[Tensor], points: _Points, part: _Part, grad_locations: Tensor, grad_weights: Tensor
) -> None:
    """Write the gradients of locations [b, Q, h, levels, points, 2] and weights from products with the corners."""
    upper_left, upper_right, lower_left, lower_right = dots
    upper_step = upper_right.sub_(upper_left)
    lower_step = lower_right.sub_(lower_left)
    upper = upper_left.addcmul_(points.x, upper_step)
    lower = lower_left.addcmul_(points.x, lower_step)
    down = lower.sub_(upper)
    right = upper_step.addcmul_(points.y, lower_step.sub_(upper_step))
    grad_weights.copy_(upper.addcmul_(points.y, down).view(grad_weights.shape))
    for axis, step in enumerate((right, down)):
        step.mul_(points.weights).mul_(part.sizes[axis])
        grad_locations[..., axis].copy_(step.view(grad_weights.shape))
