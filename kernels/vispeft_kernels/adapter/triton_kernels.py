"""The bottleneck adapter in Triton: device code only. `kernels/README.md` has the formulas.

A program computes some rows of the stream with the whole bottleneck, which stays on the chip.
"""

import triton
import triton.language as tl


@triton.jit
def _activate(z, ACTIVATION: tl.constexpr):
    """The activation of z, float32. gelu is exact."""
    if ACTIVATION == "gelu":
        y = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    elif ACTIVATION == "relu":
        y = tl.where(z > 0, z, z * 0.0)  # NaN stays NaN
    else:
        y = z * tl.sigmoid(z)
    return y


@triton.jit
def _slope(z, ACTIVATION: tl.constexpr):
    """The derivative of the activation at z, float32."""
    if ACTIVATION == "gelu":
        y = 0.5 * (1.0 + tl.erf(z * 0.7071067811865476)) + z * 0.3989422804014327 * tl.exp(-0.5 * z * z)
    elif ACTIVATION == "relu":
        y = tl.where(z > 0, 1.0, 0.0)
    else:
        s = tl.sigmoid(z)
        y = s * (1.0 + z * (1.0 - s))
    return y


@triton.jit
def adapter_fwd_kernel(
    y_ptr,
    x_ptr,
    down_w_ptr,
    down_b_ptr,
    up_w_ptr,
    up_b_ptr,
    out_ptr,
    z_ptr,
    rows,
    inputs,
    outputs,
    width,
    y_stride,
    x_stride,
    scale,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_W: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """z = x D^T + d, out = y + scale (act(z) U^T + u). x: [rows, inputs]; z: [rows, width]; y, out: [rows, outputs]."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    unit = tl.arange(0, BLOCK_W)
    is_row, is_unit = row[:, None] < rows, unit < width
    z = tl.zeros((BLOCK_M, BLOCK_W), tl.float32)
    for k in range(0, inputs, BLOCK_K):
        column = k + tl.arange(0, BLOCK_K)
        x = tl.load(
            x_ptr + row[:, None] * x_stride + column[None, :], mask=is_row & (column[None, :] < inputs), other=0.0
        )
        down = tl.load(
            down_w_ptr + unit[None, :] * inputs + column[:, None],
            mask=is_unit[None, :] & (column[:, None] < inputs),
            other=0.0,
        )
        z = tl.dot(x, down, z, input_precision=PRECISION)
    kind = z_ptr.dtype.element_ty
    z = (z + tl.load(down_b_ptr + unit, mask=is_unit, other=0.0).to(tl.float32)[None, :]).to(kind)
    tl.store(z_ptr + row[:, None] * width + unit[None, :], z, mask=is_row & is_unit[None, :])
    hidden = _activate(z.to(tl.float32), ACTIVATION).to(kind)
    for n in range(0, outputs, BLOCK_K):
        column = n + tl.arange(0, BLOCK_K)
        is_column = column < outputs
        up = tl.load(
            up_w_ptr + column[None, :] * width + unit[:, None], mask=is_column[None, :] & is_unit[:, None], other=0.0
        )
        total = tl.dot(hidden, up, input_precision=PRECISION)
        total += tl.load(up_b_ptr + column, mask=is_column, other=0.0).to(tl.float32)[None, :]
        inside = is_row & is_column[None, :]
        y = tl.load(y_ptr + row[:, None] * y_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
        tl.store(out_ptr + row[:, None] * outputs + column[None, :], (y + scale * total).to(kind), mask=inside)


@triton.jit
def adapter_bwd_kernel(
    grad_ptr,
    z_ptr,
    down_w_ptr,
    up_w_ptr,
    grad_x_ptr,
    grad_z_ptr,
    hidden_ptr,
    rows,
    inputs,
    outputs,
    width,
    grad_stride,
    hidden_stride,
    scale,
    ACTIVATION: tl.constexpr,
    SEQUENTIAL: tl.constexpr,
    NEEDS_X: tl.constexpr,
    ONES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_W: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """grad_z = scale (grad U) o act'(z), hidden = act(z), and grad_x = grad_z D, plus grad where SEQUENTIAL.

    hidden: [rows, width + ONES]; the column after its width is one, so that a product with it also sums grad over rows.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    unit = tl.arange(0, BLOCK_W)
    is_row, is_unit = row[:, None] < rows, unit < width
    total = tl.zeros((BLOCK_M, BLOCK_W), tl.float32)
    for n in range(0, outputs, BLOCK_K):
        column = n + tl.arange(0, BLOCK_K)
        grad = tl.load(
            grad_ptr + row[:, None] * grad_stride + column[None, :],
            mask=is_row & (column[None, :] < outputs),
            other=0.0,
        )
        up = tl.load(
            up_w_ptr + column[:, None] * width + unit[None, :],
            mask=(column[:, None] < outputs) & is_unit[None, :],
            other=0.0,
        )
        total = tl.dot(grad, up, total, input_precision=PRECISION)
    kind = grad_z_ptr.dtype.element_ty
    inside = is_row & is_unit[None, :]
    z = tl.load(z_ptr + row[:, None] * width + unit[None, :], mask=inside, other=0.0).to(tl.float32)
    hidden_at = hidden_ptr + row[:, None] * hidden_stride
    tl.store(hidden_at + unit[None, :], _activate(z, ACTIVATION).to(kind), mask=inside)
    extra = tl.arange(0, ONES)
    one = tl.where(extra[None, :] == 0, 1.0, 0.0) + tl.zeros((BLOCK_M, ONES), tl.float32)
    tl.store(hidden_at + width + extra[None, :], one.to(kind), mask=is_row & (extra[None, :] < ONES))
    grad_z = (total * scale * _slope(z, ACTIVATION)).to(kind)
    tl.store(grad_z_ptr + row[:, None] * width + unit[None, :], grad_z, mask=inside)
    if NEEDS_X:
        for k in range(0, inputs, BLOCK_K):
            column = k + tl.arange(0, BLOCK_K)
            is_column = column[None, :] < inputs
            down = tl.load(
                down_w_ptr + unit[:, None] * inputs + column[None, :], mask=is_unit[:, None] & is_column, other=0.0
            )
            grad_x = tl.dot(grad_z, down, input_precision=PRECISION)
            if SEQUENTIAL:
                grad_x += tl.load(
                    grad_ptr + row[:, None] * grad_stride + column[None, :], mask=is_row & is_column, other=0.0
                ).to(tl.float32)
            tl.store(grad_x_ptr + row[:, None] * inputs + column[None, :], grad_x.to(kind), mask=is_row & is_column)
