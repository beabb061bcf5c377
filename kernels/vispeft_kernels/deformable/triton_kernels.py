"""Deformable attention in Triton: device code only. `kernels/README.md` has the formulas.

A bag is one query of one head of one image, with `levels * points` samples. `levels_ptr` [levels, 3] holds the height,
the width and the first pixel of each level. Where `REFERENCE` is 0, `locations_ptr` holds locations and
`attention_ptr` weights; where it is 2 or 4, offsets around the points or boxes of `reference_ptr`, and logits.
"""

from typing import NamedTuple

import triton
import triton.language as tl

ENTRIES = tl.constexpr(16)  # corners that `deformable_gather_kernel` reads at a time


class Level(NamedTuple):
    """Height and width of a level of the pyramid, and the number of its first pixel."""

    height: tl.tensor
    width: tl.tensor
    first: tl.tensor


class Plane(NamedTuple):
    """All pixels of one head of one image.

    pointer: to the first channel of pixel 0; stride: elements from a pixel to the next
    channel, is_channel: [BLOCK_D]; channels of the head, and true where they exist
    """

    pointer: tl.tensor
    stride: tl.tensor
    channel: tl.tensor
    is_channel: tl.tensor


@triton.jit
def _softmax(attention_ptr, bag, is_query, samples, BLOCK_S: tl.constexpr):
    """The largest logit of each bag, and the sum of exponentials above it."""
    sample = tl.arange(0, BLOCK_S)
    inside = is_query[:, None] & (sample[None, :] < samples)
    logits = tl.load(attention_ptr + bag[:, None] * samples + sample[None, :], mask=inside, other=0.0).to(tl.float32)
    logits = tl.where(sample[None, :] < samples, logits, float("-inf"))
    top = tl.max(logits, 1)
    return top, tl.sum(tl.exp(logits - top[:, None]), 1)


@triton.jit
def _load_level(levels_ptr, number):
    """The sizes of the level of this number."""
    return Level(
        tl.load(levels_ptr + 3 * number), tl.load(levels_ptr + 3 * number + 1), tl.load(levels_ptr + 3 * number + 2)
    )


@triton.jit
def _locate(locations_at, reference_at, is_query, level, points, REFERENCE: tl.constexpr):
    """Positions of samples in pixels, and the pixels of one unit of a location or offset, [BLOCK_Q] each.

    locations_at, reference_at: [BLOCK_Q], pointers to each query's location and reference point
    """
    x = tl.load(locations_at, mask=is_query, other=0.0).to(tl.float32)
    y = tl.load(locations_at + 1, mask=is_query, other=0.0).to(tl.float32)
    unit_x = tl.zeros_like(x) + level.width
    unit_y = tl.zeros_like(y) + level.height
    if REFERENCE > 0:
        center_x = tl.load(reference_at, mask=is_query, other=0.0).to(tl.float32)
        center_y = tl.load(reference_at + 1, mask=is_query, other=0.0).to(tl.float32)
        if REFERENCE == 4:
            unit_x *= tl.load(reference_at + 2, mask=is_query, other=0.0).to(tl.float32) * (0.5 / points)
            unit_y *= tl.load(reference_at + 3, mask=is_query, other=0.0).to(tl.float32) * (0.5 / points)
        else:
            unit_x = tl.zeros_like(x) + 1.0
            unit_y = tl.zeros_like(y) + 1.0
        x = center_x * level.width + x * unit_x - 0.5
        y = center_y * level.height + y * unit_y - 0.5
    else:
        x = x * unit_x - 0.5
        y = y * unit_y - 0.5
    return x, y, unit_x, unit_y


@triton.jit
def _corner(plane, row, column, level, is_query):
    """Pointers to one corner's channels [BLOCK_Q, BLOCK_D], and a mask of those that lie within the level."""
    inside = is_query & (row >= 0) & (row < level.height) & (column >= 0) & (column < level.width)
    pixel = (level.first + row * level.width + column).to(tl.int64)
    at = plane.pointer + pixel[:, None] * plane.stride + plane.channel[None, :]
    return at, inside[:, None] & plane.is_channel[None, :]


@triton.jit
def deformable_fwd_kernel(
    value_ptr,
    levels_ptr,
    locations_ptr,
    attention_ptr,
    reference_ptr,
    out_ptr,
    queries,
    heads,
    levels,
    points,
    dim,
    image_stride,
    pixel_stride,
    head_stride,
    reference_stride,
    REFERENCE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """out [B, Q, heads, dim]: the weighted sum of each bag's samples of value [B, S, heads, dim]."""
    query = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    channel = tl.arange(0, BLOCK_D)
    is_query, is_channel = query < queries, channel < dim
    bag = (image * queries + query) * heads + head
    reference_at = reference_ptr
    samples = levels * points
    plane = Plane(value_ptr + image * image_stride + head * head_stride, pixel_stride, channel, is_channel)
    if REFERENCE > 0:
        reference_at += REFERENCE * (image * reference_stride + query)
        top, bottom = _softmax(attention_ptr, bag, is_query, samples, BLOCK_S)
    total = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    for number in range(levels):
        level = _load_level(levels_ptr, number)
        for point in range(points):
            at = bag * samples + number * points + point
            weight = tl.load(attention_ptr + at, mask=is_query, other=0.0).to(tl.float32)
            if REFERENCE > 0:
                weight = tl.exp(weight - top) / bottom
            x, y, _, _ = _locate(locations_ptr + 2 * at, reference_at, is_query, level, points, REFERENCE)
            left, above = tl.floor(x), tl.floor(y)
            f, g = x - left, y - above
            column, row = left.to(tl.int32), above.to(tl.int32)
            p, m = _corner(plane, row, column, level, is_query)
            total += tl.load(p, mask=m, other=0.0).to(tl.float32) * (weight * (1 - g) * (1 - f))[:, None]
            p, m = _corner(plane, row, column + 1, level, is_query)
            total += tl.load(p, mask=m, other=0.0).to(tl.float32) * (weight * (1 - g) * f)[:, None]
            p, m = _corner(plane, row + 1, column, level, is_query)
            total += tl.load(p, mask=m, other=0.0).to(tl.float32) * (weight * g * (1 - f))[:, None]
            p, m = _corner(plane, row + 1, column + 1, level, is_query)
            total += tl.load(p, mask=m, other=0.0).to(tl.float32) * (weight * g * f)[:, None]
    tl.store(
        out_ptr + bag[:, None] * dim + channel[None, :],
        total.to(out_ptr.dtype.element_ty),
        mask=is_query[:, None] & is_channel[None, :],
    )


@triton.jit
def deformable_bwd_kernel(
    grad_ptr,
    value_ptr,
    levels_ptr,
    locations_ptr,
    attention_ptr,
    reference_ptr,
    sums_ptr,
    grad_locations_ptr,
    grad_attention_ptr,
    queries,
    heads,
    levels,
    points,
    dim,
    pixels,
    image_stride,
    pixel_stride,
    head_stride,
    reference_stride,
    NEEDS_VALUE: tl.constexpr,
    NEEDS_POINTS: tl.constexpr,
    REFERENCE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Add the gradient of value into sums [B, S, heads, dim], float32, and write those of locations and attention."""
    query = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    channel = tl.arange(0, BLOCK_D)
    is_query, is_channel = query < queries, channel < dim
    bag = (image * queries + query) * heads + head
    reference_at = reference_ptr
    samples = levels * points
    plane = Plane(value_ptr + image * image_stride + head * head_stride, pixel_stride, channel, is_channel)
    sums = Plane(sums_ptr + (image * pixels * heads + head) * dim, heads * dim, channel, is_channel)
    grad = tl.load(
        grad_ptr + bag[:, None] * dim + channel[None, :], mask=is_query[:, None] & is_channel[None, :], other=0.0
    ).to(tl.float32)
    sample = tl.arange(0, BLOCK_S)
    weights = tl.zeros((BLOCK_Q, BLOCK_S), tl.float32)
    grads = tl.zeros((BLOCK_Q, BLOCK_S), tl.float32)
    if REFERENCE > 0:
        reference_at += REFERENCE * (image * reference_stride + query)
        top, bottom = _softmax(attention_ptr, bag, is_query, samples, BLOCK_S)
    for number in range(levels):
        level = _load_level(levels_ptr, number)
        for point in range(points):
            index = number * points + point
            at = bag * samples + index
            weight = tl.load(attention_ptr + at, mask=is_query, other=0.0).to(tl.float32)
            if REFERENCE > 0:
                weight = tl.exp(weight - top) / bottom
            x, y, unit_x, unit_y = _locate(locations_ptr + 2 * at, reference_at, is_query, level, points, REFERENCE)
            left, above = tl.floor(x), tl.floor(y)
            f, g = x - left, y - above
            column, row = left.to(tl.int32), above.to(tl.int32)
            if NEEDS_VALUE:
                p, m = _corner(sums, row, column, level, is_query)
                tl.atomic_add(p, grad * (weight * (1 - g) * (1 - f))[:, None], mask=m, sem="relaxed")
                p, m = _corner(sums, row, column + 1, level, is_query)
                tl.atomic_add(p, grad * (weight * (1 - g) * f)[:, None], mask=m, sem="relaxed")
                p, m = _corner(sums, row + 1, column, level, is_query)
                tl.atomic_add(p, grad * (weight * g * (1 - f))[:, None], mask=m, sem="relaxed")
                p, m = _corner(sums, row + 1, column + 1, level, is_query)
                tl.atomic_add(p, grad * (weight * g * f)[:, None], mask=m, sem="relaxed")
            if NEEDS_POINTS:
                p, m = _corner(plane, row, column, level, is_query)
                s00 = tl.sum(tl.load(p, mask=m, other=0.0).to(tl.float32) * grad, 1)
                p, m = _corner(plane, row, column + 1, level, is_query)
                s01 = tl.sum(tl.load(p, mask=m, other=0.0).to(tl.float32) * grad, 1)
                p, m = _corner(plane, row + 1, column, level, is_query)
                s10 = tl.sum(tl.load(p, mask=m, other=0.0).to(tl.float32) * grad, 1)
                p, m = _corner(plane, row + 1, column + 1, level, is_query)
                s11 = tl.sum(tl.load(p, mask=m, other=0.0).to(tl.float32) * grad, 1)
                over, under = s00 + f * (s01 - s00), s10 + f * (s11 - s10)
                product = over + g * (under - over)
                grad_x = weight * unit_x * ((1 - g) * (s01 - s00) + g * (s11 - s10))
                grad_y = weight * unit_y * (under - over)
                kind = grad_locations_ptr.dtype.element_ty
                tl.store(grad_locations_ptr + 2 * at, grad_x.to(kind), mask=is_query)
                tl.store(grad_locations_ptr + 2 * at + 1, grad_y.to(kind), mask=is_query)
                if REFERENCE > 0:
                    is_this = sample[None, :] == index
                    weights = tl.where(is_this, weight[:, None], weights)
                    grads = tl.where(is_this, product[:, None], grads)
                else:
                    tl.store(grad_attention_ptr + at, product.to(grad_attention_ptr.dtype.element_ty), mask=is_query)
    if NEEDS_POINTS and REFERENCE > 0:
        grads = weights * (grads - tl.sum(weights * grads, 1)[:, None])
        tl.store(
            grad_attention_ptr + bag[:, None] * samples + sample[None, :],
            grads.to(grad_attention_ptr.dtype.element_ty),
            mask=is_query[:, None] & (sample[None, :] < samples),
        )


@triton.jit
def deformable_corners_kernel(
    levels_ptr,
    locations_ptr,
    attention_ptr,
    reference_ptr,
    rows_ptr,
    weights_ptr,
    queries,
    heads,
    levels,
    points,
    pixels,
    nowhere,
    reference_stride,
    REFERENCE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """The row of value [B * S * heads] and the weight of each sample's four corners; `nowhere` outside the level."""
    query = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    is_query = query < queries
    bag = (image * queries + query) * heads + head
    reference_at = reference_ptr
    samples = levels * points
    if REFERENCE > 0:
        reference_at += REFERENCE * (image * reference_stride + query)
        top, bottom = _softmax(attention_ptr, bag, is_query, samples, BLOCK_S)
    for number in range(levels):
        level = _load_level(levels_ptr, number)
        for point in range(points):
            at = bag * samples + number * points + point
            weight = tl.load(attention_ptr + at, mask=is_query, other=0.0).to(tl.float32)
            if REFERENCE > 0:
                weight = tl.exp(weight - top) / bottom
            x, y, _, _ = _locate(locations_ptr + 2 * at, reference_at, is_query, level, points, REFERENCE)
            left, above = tl.floor(x), tl.floor(y)
            f, g = x - left, y - above
            for corner in tl.static_range(4):
                column, row = left.to(tl.int32) + corner % 2, above.to(tl.int32) + corner // 2
                across = f if corner % 2 else 1 - f
                down = g if corner // 2 else 1 - g
                inside = (row >= 0) & (row < level.height) & (column >= 0) & (column < level.width)
                pixel = image * pixels + level.first + row * level.width + column
                tl.store(rows_ptr + 4 * at + corner, tl.where(inside, pixel * heads + head, nowhere), mask=is_query)
                tl.store(weights_ptr + 4 * at + corner, weight * across * down, mask=is_query)


@triton.jit
def deformable_gather_kernel(grad_ptr, order_ptr, weights_ptr, ends_ptr, sums_ptr, corners, DIM: tl.constexpr):
    """The gradient of one row of value: the sum over its corners, in their order, of weight times the bag's gradient.

    corners: of one bag, levels * points * 4. order: of all corners by row; ends [rows + 1]: first corner of each row.
    """
    BLOCK_D: tl.constexpr = triton.next_power_of_2(DIM) if DIM > 8 else 8
    row = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(ends_ptr + row), tl.load(ends_ptr + row + 1)
    channel = tl.arange(0, BLOCK_D)
    total = tl.zeros((ENTRIES, BLOCK_D), tl.float32)
    for start in range(begin, end, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)
        is_entry = entry < end
        corner = tl.load(order_ptr + entry, mask=is_entry, other=0)
        weight = tl.load(weights_ptr + corner, mask=is_entry, other=0.0)
        grad = tl.load(
            grad_ptr + (corner // corners)[:, None] * DIM + channel[None, :],
            mask=is_entry[:, None] & (channel[None, :] < DIM),
            other=0.0,
        )
        total += grad.to(tl.float32) * weight[:, None]
    tl.store(sums_ptr + row * DIM + channel, tl.sum(total, 0), mask=channel < DIM)
