"""Multi-scale deformable attention as one weighted gather-sum over zero-padded levels, with its backward by hand."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class _Table:
    """Where each level lies in a head's zero-padded table of `rows` rows; rows of a level are `stride` apart."""

    rows: int
    starts: tuple[int, ...]  # row of pixel (0, 0)
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Constants:
    """Per-level constants as tensors that broadcast against [B, Q, heads, levels, points]."""

    sizes: Tensor  # [levels, 1, 2] width, height
    limits: Tensor  # [levels, 1, 2] largest shifted coordinate: both corners beyond it are padding
    strides: Tensor  # [levels, 1]
    starts: Tensor  # [levels, 1] row of shifted coordinate (0, 0)
    corners: Tensor  # [4, levels, 1] row offsets of the four corners


@lru_cache(maxsize=64)
def _table(shapes: tuple[int, ...]) -> _Table:
    """Lay out levels [H0, W0, H1, W1, ...]: two zero rows above and below, two zero columns shared by row neighbours."""
    starts, strides, cursor, gap = [], [], 0, 0
    for height, width in zip(shapes[::2], shapes[1::2], strict=True):
        stride = width + 2
        padding = 2 * stride + 2
        cursor += max(gap, padding)
        starts.append(cursor)
        strides.append(stride)
        cursor += height * stride
        gap = padding
    return _Table(cursor + gap, tuple(starts), tuple(strides))


@lru_cache(maxsize=64)
def _constants(shapes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> _Constants:
    table = _table(shapes)
    sizes = torch.tensor(shapes, dtype=dtype).view(-1, 1, 2).flip(2)
    strides = torch.tensor(table.strides, dtype=torch.int32).view(-1, 1)
    starts = torch.tensor(table.starts, dtype=torch.int32).view(-1, 1) - 2 * strides - 2
    corners = torch.stack([torch.zeros_like(strides), torch.ones_like(strides), strides, strides + 1])
    tensors = (sizes, sizes + 2, strides, starts, corners)
    return _Constants(*(tensor.to(device) for tensor in tensors))


@dataclass(frozen=True)
class _Points:
    """Sampling points of [B, Q, heads, levels, points] in table terms; `rows` and `weights` are [bags, 4 * levels * points]."""

    rows: Tensor
    x: Tensor  # fraction of a pixel right of the left corners
    y: Tensor


def _pad(value: Tensor, shapes: list[int]) -> Tensor:
    """Zero-padded tables [B * heads * rows, dim] of value [B, S, heads, dim]."""
    batch, _, heads, dim = value.shape
    table = _table(tuple(shapes))
    padded = value.new_zeros(batch, heads, table.rows, dim)
    start = 0
    for idx, (height, width) in enumerate(zip(shapes[::2], shapes[1::2], strict=True)):
        level = value[:, start : start + height * width].unflatten(1, (height, width))  # [B, H, W, heads, dim]
        _inside(padded, table, idx, height, width).copy_(level.permute(0, 3, 1, 2, 4))
        start += height * width
    return padded.view(-1, dim)


def _unpad(padded: Tensor, shapes: list[int], batch: int, heads: int) -> Tensor:
    """The pixels of zero-padded tables as [B, S, heads, dim]."""
    table = _table(tuple(shapes))
    padded = padded.view(batch, heads, table.rows, -1)
    levels = [
        _inside(padded, table, idx, height, width).flatten(2, 3)
        for idx, (height, width) in enumerate(zip(shapes[::2], shapes[1::2], strict=True))
    ]
    return torch.cat(levels, dim=2).transpose(1, 2).contiguous()


def _inside(padded: Tensor, table: _Table, idx: int, height: int, width: int) -> Tensor:
    """The pixels of one level [B, heads, H, W, dim] as a view into tables [B, heads, rows, dim]."""
    level = padded.narrow(2, table.starts[idx], height * table.strides[idx])
    return level.unflatten(2, (height, table.strides[idx])).narrow(3, 0, width)


def _locate(locations: Tensor, shapes: list[int], dtype: torch.dtype) -> _Points:
    batch, num_queries, heads, levels, points, _ = locations.shape
    constants = _constants(tuple(shapes), dtype, locations.device)
    shifted = (locations * constants.sizes).add_(1.5)  # pixel centres at 2, 3, ...: the padding begins at 0
    shifted = torch.clamp(shifted, torch.zeros_like(constants.limits), constants.limits)
    cells = shifted.to(torch.int32)
    fractions = shifted.frac_()
    rows = cells[..., 1].mul(constants.strides).add_(cells[..., 0]).add_(constants.starts)
    table_rows = _table(tuple(shapes)).rows
    rows.clamp_(0, table_rows)
    tables = torch.arange(0, batch * heads * table_rows, table_rows, dtype=torch.int32, device=locations.device)
    rows.add_(tables.view(batch, 1, heads, 1, 1))
    corners = rows.unsqueeze(3) + constants.corners  # [B, Q, heads, 4, levels, points]
    return _Points(corners.view(-1, 4 * levels * points), fractions[..., 0], fractions[..., 1])


def _corner_weights(points: _Points, weights: Tensor) -> Tensor:
    bottom = weights * points.y
    top = weights - bottom
    out = weights.new_empty(*weights.shape[:3], 4, *weights.shape[3:])
    out[:, :, :, 1] = top * points.x
    out[:, :, :, 0] = top - out[:, :, :, 1]
    out[:, :, :, 3] = bottom * points.x
    out[:, :, :, 2] = bottom - out[:, :, :, 3]
    return out.view(points.rows.shape)


def forward(value: Tensor, shapes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    batch, _, heads, dim = value.shape
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    if locations.numel() == 0 or value.numel() == 0:
        return value.new_zeros(batch, locations.shape[1], heads * dim)
    points = _locate(locations.to(dtype), shapes, dtype)
    corner_weights = _corner_weights(points, weights.to(dtype))
    table = _pad(value.to(dtype), shapes)
    offsets = torch.arange(0, points.rows.numel(), points.rows.shape[1], dtype=torch.int32, device=value.device)
    out = torch.embedding_bag(table, points.rows.view(-1), offsets, False, 0, False, corner_weights.view(-1))[0]
    return out.view(batch, -1, heads * dim).to(value.dtype)


def backward(
    grad: Tensor,
    value: Tensor,
    shapes: list[int],
    locations: Tensor,
    weights: Tensor,
    need_value: bool,
    need_points: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, heads, dim = value.shape
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    points = _locate(locations.to(dtype), shapes, dtype)
    table = _pad(value.to(dtype), shapes)
    bags = grad.to(dtype).reshape(-1, dim)
    w = weights.to(dtype)
    n = points.rows.shape[1]
    gv = value.new_empty(0)
    gl = locations.new_empty(0)
    ga = weights.new_empty(0)
    if need_value:
        corner_weights = _corner_weights(points, w)
        rows, order = torch.sort(points.rows.view(-1))
        counts = torch.bincount(rows, minlength=table.shape[0])
        offsets = counts.cumsum(0) - counts
        order32 = order.to(torch.int32)
        gt = torch.embedding_bag(
            bags, order.div(n, rounding_mode="floor"), offsets, False, 0, False, corner_weights.view(-1)[order]
        )[0]
        gv = _unpad(gt, shapes, batch, heads).to(value.dtype)
    if need_points:
        offsets = torch.arange(0, points.rows.numel(), n, dtype=torch.int32, device=value.device)
        o2b = torch.arange(bags.shape[0], dtype=torch.int32).repeat_interleave(n)
        dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            bags, table, points.rows.view(-1), offsets, o2b, 0
        )
        s = dots.view(*w.shape[:3], 4, *w.shape[3:])
        s00, s01, s10, s11 = s.unbind(3)
        d0 = s01 - s00
        d1 = s11 - s10
        top = torch.addcmul(s00, points.x, d0)
        dy = torch.addcmul(s10, points.x, d1).sub_(top)
        ga = torch.addcmul(top, points.y, dy).to(weights.dtype)
        dx = d0.addcmul_(points.y, d1 - d0)
        sizes = _constants(tuple(shapes), dtype, value.device).sizes
        gl = torch.stack([dx * w, dy * w], -1).mul_(sizes).to(locations.dtype)
    return gv, gl, ga
