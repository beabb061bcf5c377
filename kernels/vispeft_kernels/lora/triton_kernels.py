"""The low-rank update in Triton: device code only. `kernels/README.md` has the formulas.

Rows are tokens. A part is one target projection of a fused map, such as q of qkv.
"""

from typing import NamedTuple

import triton
import triton.language as tl


class Operand(NamedTuple):
    """One operand of a low-rank product: rows of h [BLOCK_M, 1], or columns of b [1, BLOCK_N].

    first: pointers to rank 0 of each; is_inside: true where there is one; stride: elements from a rank to the next
    """

    first: tl.tensor
    is_inside: tl.tensor
    stride: tl.tensor


@triton.jit
def _keep(seed_ptr, row, column, threshold, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    """Return true for elements [BLOCK_M, BLOCK_K] that dropout keeps. row: [BLOCK_M]; column: first, a multiple of 8.

    Philox4x32-7 with the seed as key counts (row, column // 8): 16 of its 128 bits decide one element, so the mask
    depends on the element alone, not on the block sizes.
    """
    group = column // 8 + tl.arange(0, BLOCK_K // 8)
    c0 = tl.broadcast_to(row[:, None], (BLOCK_M, BLOCK_K // 8)).to(tl.uint32)
    c1 = tl.broadcast_to(group[None, :], (BLOCK_M, BLOCK_K // 8)).to(tl.uint32)
    zero = c0 * 0
    w0, w1, w2, w3 = tl.philox(tl.load(seed_ptr), c0, c1, zero, zero, 7)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    noise = tl.join(words & 0xFFFF, words >> 16)
    return tl.reshape(noise, (BLOCK_M, BLOCK_K)).to(tl.int32) >= threshold


@triton.jit
def lora_mask_kernel(mask_ptr, seed_ptr, rows, columns, threshold, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    """The zero-one mask of the other kernels, written to memory. mask: [rows, columns], int8."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    first = tl.program_id(1) * BLOCK_K
    column = first + tl.arange(0, BLOCK_K)
    keep = _keep(seed_ptr, row, first, threshold, BLOCK_M, BLOCK_K)
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    tl.store(mask_ptr + row[:, None] * columns + column[None, :], keep.to(tl.int8), mask=inside)


@triton.jit
def lora_shrink_kernel(
    x_ptr,
    a_ptr,
    h_ptr,
    seed_ptr,
    rows,
    features,
    ranks,
    x_stride,
    scale,
    threshold,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """h = scale (x o m) a^T. x: [rows, features]; a: [ranks, features]; h: [rows, ranks]."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    rank = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    total = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
    for k in range(0, features, BLOCK_K):
        column = k + tl.arange(0, BLOCK_K)
        x = tl.load(
            x_ptr + row[:, None] * x_stride + column[None, :],
            mask=(row[:, None] < rows) & (column[None, :] < features),
            other=0.0,
        )
        if DROPOUT:
            keep = _keep(seed_ptr, row, k, threshold, BLOCK_M, BLOCK_K)
            x = tl.where(keep, x, tl.zeros_like(x))
        a = tl.load(
            a_ptr + rank[None, :] * features + column[:, None],
            mask=(rank[None, :] < ranks) & (column[:, None] < features),
            other=0.0,
        )
        total = tl.dot(x, a, total, input_precision=PRECISION)
    inside = (row[:, None] < rows) & (rank[None, :] < ranks)
    tl.store(h_ptr + row[:, None] * ranks + rank[None, :], (total * scale).to(h_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _columns(b_ptr, column, width, stride, BY_RANK: tl.constexpr):
    """Columns of one part as an operand. b: [width, rank] or, where BY_RANK, [rank, width]; column: [BLOCK_N]."""
    is_inside = (column >= 0) & (column < width)
    if BY_RANK:
        first, rank_stride = b_ptr + column, stride
    else:
        first, rank_stride = b_ptr + column.to(tl.int64) * stride, 1
    return Operand(first[None, :], is_inside[None, :], rank_stride)


@triton.jit
def _low_rank(total, h, b, rank, BLOCK_R: tl.constexpr, PRECISION: tl.constexpr):
    """The product h b^T of one part added to total [BLOCK_M, BLOCK_N]. h, b: `Operand`."""
    for r in range(0, rank, BLOCK_R):
        k = r + tl.arange(0, BLOCK_R)
        is_rank = k < rank
        h_block = tl.load(h.first + k[None, :] * h.stride, mask=h.is_inside & is_rank[None, :], other=0.0)
        b_block = tl.load(b.first + k[:, None].to(tl.int64) * b.stride, mask=b.is_inside & is_rank[:, None], other=0.0)
        total = tl.dot(h_block, b_block, total, input_precision=PRECISION)
    return total


@triton.jit
def lora_expand_kernel(
    y_ptr,
    h_ptr,
    b_ptr,
    out_ptr,
    seed_ptr,
    rows,
    width,
    rank,
    y_stride,
    out_stride,
    h_stride,
    b_stride,
    offset0,
    offset1,
    offset2,
    scale,
    threshold,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    B_BY_RANK: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out = y + scale (h b^T) o m on the columns of one part. y, out: [rows, *]; h: [rows, parts * rank].

    b: [parts * width, rank], or, where B_BY_RANK, [rank, width] of the one part.
    """
    part = tl.program_id(2)
    first_column = tl.where(part == 0, offset0, tl.where(part == 1, offset1, offset2))
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offset = tl.program_id(1) * BLOCK_N
    column = offset + tl.arange(0, BLOCK_N)
    b_ptr += part.to(tl.int64) * width * rank
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    h = Operand(h_ptr + row[:, None] * h_stride + part * rank, row[:, None] < rows, 1)
    b = _columns(b_ptr, column, width, b_stride, B_BY_RANK)
    total = _low_rank(total, h, b, rank, BLOCK_R, PRECISION)
    total *= scale
    if DROPOUT:
        total = tl.where(_keep(seed_ptr, row, offset, threshold, BLOCK_M, BLOCK_N), total, 0.0)
    inside = (row[:, None] < rows) & (column[None, :] < width)
    total += tl.load(y_ptr + row[:, None] * y_stride + (first_column + column)[None, :], mask=inside, other=0.0)
    tl.store(
        out_ptr + row[:, None] * out_stride + (first_column + column)[None, :],
        total.to(out_ptr.dtype.element_ty),
        mask=inside,
    )


@triton.jit
def lora_grad_kernel(
    grad_ptr,
    h_ptr,
    b_ptr,
    grad_h_ptr,
    sums_ptr,
    rows,
    width,
    rank,
    grad_stride,
    offset0,
    offset1,
    offset2,
    scale,
    PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """grad_h = scale grad b, and for each tile a partial sum of grad_b = scale grad^T h, in one read of grad [rows, *].

    h, grad_h: [rows, PARTS * rank]; b: [PARTS * width, rank]; sums: [tiles, PARTS * width, rank], float32.
    """
    tile, part = tl.program_id(0), tl.program_id(1)
    first_column = tl.where(part == 0, offset0, tl.where(part == 1, offset1, offset2))
    row, k = tile.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_R)
    ranks_inside = (row[:, None] < rows) & (k[None, :] < rank)
    ranks_at = row[:, None] * (PARTS * rank) + part * rank + k[None, :]
    h = tl.load(h_ptr + ranks_at, mask=ranks_inside, other=0.0)
    b_ptr += part.to(tl.int64) * width * rank
    sums_ptr += (tile.to(tl.int64) * PARTS + part) * width * rank
    grad_h = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
    for n in range(0, width, BLOCK_N):
        column = n + tl.arange(0, BLOCK_N)
        grad = tl.load(
            grad_ptr + row[:, None] * grad_stride + (first_column + column)[None, :],
            mask=(row[:, None] < rows) & (column[None, :] < width),
            other=0.0,
        )
        at = column[:, None].to(tl.int64) * rank + k[None, :]
        inside = (column[:, None] < width) & (k[None, :] < rank)
        b = tl.load(b_ptr + at, mask=inside, other=0.0)
        grad_h = tl.dot(grad, b, grad_h, input_precision=PRECISION)
        partial = tl.dot(tl.trans(grad), h, input_precision=PRECISION)
        tl.store(sums_ptr + at, partial * scale, mask=inside)
    tl.store(grad_h_ptr + ranks_at, (grad_h * scale).to(grad_h_ptr.dtype.element_ty), mask=ranks_inside)


@triton.jit
def lora_grad_a_kernel(
    x_ptr,
    grad_h_ptr,
    sums_ptr,
    seed_ptr,
    rows,
    features,
    ranks,
    x_stride,
    scale,
    threshold,
    CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """For each tile of CHUNK rows a partial sum of grad_a = scale grad_h^T (x o m). sums: [tiles, ranks, features]."""
    tile = tl.program_id(0)
    first = tile.to(tl.int64) * CHUNK
    last = tl.minimum(first + CHUNK, rows)
    offset = tl.program_id(1) * BLOCK_K
    column = offset + tl.arange(0, BLOCK_K)
    rank = tl.program_id(2) * BLOCK_R + tl.arange(0, BLOCK_R)
    total = tl.zeros((BLOCK_R, BLOCK_K), tl.float32)
    for m in range(0, CHUNK, BLOCK_M):
        row = first + m + tl.arange(0, BLOCK_M)
        x = tl.load(
            x_ptr + row[:, None] * x_stride + column[None, :],
            mask=(row[:, None] < last) & (column[None, :] < features),
            other=0.0,
        )
        if DROPOUT:
            keep = _keep(seed_ptr, row, offset, threshold, BLOCK_M, BLOCK_K)
            x = tl.where(keep, x, tl.zeros_like(x))
        grad_h = tl.load(
            grad_h_ptr + row[None, :] * ranks + rank[:, None],
            mask=(row[None, :] < last) & (rank[:, None] < ranks),
            other=0.0,
        )
        total = tl.dot(grad_h, x, total, input_precision=PRECISION)
    at = (tile.to(tl.int64) * ranks + rank[:, None]) * features + column[None, :]
    tl.store(sums_ptr + at, total * scale, mask=(rank[:, None] < ranks) & (column[None, :] < features))


@triton.jit
def lora_linear_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    h_ptr,
    b_ptr,
    out_ptr,
    seed_ptr,
    rows,
    columns,
    features,
    width,
    rank,
    x_stride,
    weight_stride,
    out_stride,
    h_stride,
    b_stride,
    offset0,
    offset1,
    offset2,
    scale,
    threshold,
    PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    GROUP: tl.constexpr,
    WEIGHT_BY_FEATURE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out = x W^T + bias + scale (h b^T) o m: the frozen product with the low-rank one in the same accumulator.

    x: [rows, features]; weight: [columns, features], and b [PARTS * width, rank]; or, where WEIGHT_BY_FEATURE, weight
    [features, columns] and b [rank, columns], which is the gradient of the input.
    """
    pid = tl.program_id(0)
    tiles_m, tiles_n = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    group = pid // (GROUP * tiles_n)
    height = tl.minimum(tiles_m - group * GROUP, GROUP)
    inner = pid % (GROUP * tiles_n)
    row = (group * GROUP + inner % height).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offset = (inner // height) * BLOCK_N
    column = offset + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for part in tl.static_range(PARTS):
        first_column = offset0 if part == 0 else (offset1 if part == 1 else offset2)
        if (offset < first_column + width) & (offset + BLOCK_N > first_column):
            h = Operand(h_ptr + row[:, None] * h_stride + part * rank, row[:, None] < rows, 1)
            b = _columns(b_ptr + part * width * rank, column - first_column, width, b_stride, WEIGHT_BY_FEATURE)
            total = _low_rank(total, h, b, rank, BLOCK_R, PRECISION)
    total *= scale
    if DROPOUT:
        total = tl.where(_keep(seed_ptr, row, offset, threshold, BLOCK_M, BLOCK_N), total, 0.0)
    for k in range(0, features, BLOCK_K):
        feature = k + tl.arange(0, BLOCK_K)
        x = tl.load(
            x_ptr + row[:, None] * x_stride + feature[None, :],
            mask=(row[:, None] < rows) & (feature[None, :] < features),
            other=0.0,
        )
        if WEIGHT_BY_FEATURE:
            at = feature[:, None].to(tl.int64) * weight_stride + column[None, :]
        else:
            at = column[None, :].to(tl.int64) * weight_stride + feature[:, None]
        weight = tl.load(weight_ptr + at, mask=(feature[:, None] < features) & (column[None, :] < columns), other=0.0)
        total = tl.dot(x, weight, total, input_precision=PRECISION)
    if HAS_BIAS:
        total += tl.load(bias_ptr + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    tl.store(out_ptr + row[:, None] * out_stride + column[None, :], total.to(out_ptr.dtype.element_ty), mask=inside)
