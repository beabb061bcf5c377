"""The low-rank update by Triton's kernels, on rows [M, *]. `torch_impl.py` has the same functions.

The seed of dropout is one int64 on the device, so that a CUDA graph draws a new one at each replay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vispeft_kernels.dispatch import requested
from vispeft_kernels.launch import Config, capability, ceil_div, computable, padded, precision, rows_of, start
from vispeft_kernels.lora import configs
from vispeft_kernels.lora.options import Factors, Kept, LoraOptions


def new_seed(x: Tensor) -> Tensor:
    """Draw a seed on the device of x from torch's own generator, without waiting for the device."""
    return torch.randint(2**62, (1,), device=x.device)


def update_(y: Tensor, rows: Tensor, factors: Factors, options: LoraOptions) -> Tensor:
    """Add `scale * (dropout(x) a^T) b^T` to y [M, N] in place; return h = dropout(x) a^T [M, parts * r]."""
    a, b = factors
    hidden = shrink(rows, a, options)
    if options.parts == 1:
        first = options.column_offsets[0]
        y[:, first : first + b.shape[0]].addmm_(hidden, b.t(), alpha=options.scale)
    else:
        expand_(y, LowRankProduct(hidden, b, options))
    return hidden


def linear(
    rows: Tensor, weight: Tensor, bias: Tensor | None, factors: Factors, options: LoraOptions
) -> tuple[Tensor, Tensor]:
    """Return `x W^T + bias` with the update [M, N], and h; in one kernel where that was measured to be faster."""
    config = fused_config(rows, weight.shape[0], factors.b.shape[1], "forward")
    if config is None:
        y = F.linear(rows, weight, bias)
        return y, update_(y, rows, factors, options)
    hidden = shrink(rows, factors.a, options)
    return fused_linear(rows, weight, bias, LowRankProduct(hidden, factors.b, options), config), hidden


def gradients(grad: Tensor, kept: Kept, options: LoraOptions, needs_x: bool) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return the gradients of x [M, K], through the frozen product too where there is a weight, of a and of b."""
    grad = rows_of(grad)
    grad_hidden, grad_b = grad_hidden_and_b(grad, kept.hidden, kept.factors.b, options)
    x = kept.rows[:]
    grad_a = masked_grad_a(x, grad_hidden, options) if options.dropout else grad_hidden.t() @ x
    product = LowRankProduct(grad_hidden, kept.factors.a, options, by_rank=True)
    return _grad_x(grad, kept.weight, product) if needs_x else None, grad_a, grad_b


def _grad_x(grad: Tensor, weight: Tensor | None, product: LowRankProduct) -> Tensor:
    """Return grad W + dropout(grad_h a), [M, K], where there is a weight; without, the second part alone."""
    grad_hidden, a = product.hidden, product.factor
    if weight is None:
        if product.seed is None:
            return grad_hidden @ a
        return expand_(torch.zeros(grad.shape[0], a.shape[1], dtype=grad.dtype, device=grad.device), product)
    weight = weight.to(grad.dtype)
    config = fused_config(grad, weight.shape[1], a.shape[0], "backward", product.seed is not None)
    if config is not None:
        return fused_linear(grad, weight, None, product, config)
    grad_x = grad @ weight
    return grad_x.addmm_(grad_hidden, a) if product.seed is None else expand_(grad_x, product)


@dataclass(frozen=True, eq=False)
class LowRankProduct:
    """`scale * (h factor^T)` on the columns of each part; or, where `by_rank`, `dropout(h factor)` on all columns.

    hidden: [M, parts * r]; factor: [parts * n, r], or where `by_rank` [r, n]. The second form is the gradient of x.
    """

    hidden: Tensor
    factor: Tensor
    options: LoraOptions
    by_rank: bool = False

    @property
    def parts(self) -> int:
        """Number of target projections."""
        return 1 if self.by_rank else self.options.parts

    @property
    def sizes(self) -> tuple[int, int]:
        """Columns of a part, and its rank."""
        rows, columns = self.factor.shape
        return (columns, rows) if self.by_rank else (rows // self.parts, columns)

    @property
    def three_offsets(self) -> list[int]:
        """First columns of the parts, padded with zeros to as many as the kernels take."""
        offsets = (0,) if self.by_rank else self.options.column_offsets
        return [*offsets, 0, 0][: configs.LARGEST_PARTS]

    @property
    def scale(self) -> float:
        """Factor of the product; that of dropout for the gradient, whose own scale is in h."""
        return keep_scale(self.options) if self.by_rank else self.options.scale

    @property
    def seed(self) -> Tensor | None:
        """Seed of the mask on the product, if any."""
        return self.options.seed if self.by_rank else None


def keep_scale(options: LoraOptions) -> float:
    """Return the factor of elements that dropout keeps."""
    return 1 / (1 - options.dropout)


def drop_threshold(options: LoraOptions) -> int:
    """Return the 16-bit random number below which an element is dropped."""
    return round(options.dropout * 2**16)


def shrink(x: Tensor, a: Tensor, options: LoraOptions) -> Tensor:
    """Return h = dropout(x) a^T, [M, R] in x's dtype. x: [M, K]; a: [R, K]."""
    rows, factors = computable(rows_of(x)), computable(a.contiguous())
    ranks = a.shape[0]
    hidden = torch.empty(x.shape[0], ranks, dtype=rows.dtype, device=x.device)
    config = configs.shrink(ranks, rows.dtype)
    grid = ceil_div(x.shape[0], config.blocks["BLOCK_M"]), ceil_div(ranks, config.blocks["BLOCK_R"])
    _start_through_dropout(_kernels().lora_shrink_kernel, grid, (rows, factors, hidden), ranks, options, config)
    return hidden.to(x.dtype)


def expand_(y: Tensor, product: LowRankProduct) -> Tensor:
    """Add a low-rank product to y [M, N] in place, in one pass over its columns."""
    into, h, factors = computable(y), computable(product.hidden), computable(product.factor.contiguous())
    width, rank = product.sizes
    config = configs.expand(rank, into.dtype)
    start(
        _kernels().lora_expand_kernel,
        (ceil_div(y.shape[0], config.blocks["BLOCK_M"]), ceil_div(width, config.blocks["BLOCK_N"]), product.parts),
        (
            into, h, factors, into, product.seed, y.shape[0], width, rank, into.stride(0), into.stride(0),
            h.stride(0), factors.shape[1], *product.three_offsets, product.scale, drop_threshold(product.options),
        ),
        {
            "B_BY_RANK": product.by_rank, "DROPOUT": product.seed is not None, "PRECISION": precision(into.dtype),
        },
        config,
    )  # fmt: skip
    return y if into is y else y.copy_(into)


def grad_hidden_and_b(grad: Tensor, hidden: Tensor, b: Tensor, options: LoraOptions) -> tuple[Tensor, Tensor]:
    """Return the gradients of h [M, parts * r], in grad's dtype, and of b, in float32, from one read of grad [M, N]."""
    rows, h, factors = computable(rows_of(grad)), computable(hidden.contiguous()), computable(b.contiguous())
    product = LowRankProduct(h, b, options)
    width, rank = product.sizes
    config = configs.grad(rank, rows.dtype)
    count = ceil_div(grad.shape[0], config.blocks["BLOCK_M"])
    grad_h = torch.empty_like(h)
    sums = torch.empty(count, b.shape[0], rank, dtype=torch.float32, device=grad.device)
    start(
        _kernels().lora_grad_kernel,
        (count, product.parts),
        (
            rows, h, factors, grad_h, sums, grad.shape[0], width, rank, rows.stride(0), *product.three_offsets,
            options.scale,
        ),
        {"PARTS": product.parts, "PRECISION": precision(rows.dtype)},
        config,
    )  # fmt: skip
    return grad_h.to(hidden.dtype), sums.sum(0)


def masked_grad_a(x: Tensor, grad_hidden: Tensor, options: LoraOptions) -> Tensor:
    """Return the gradient of a [R, K], in float32, where x passed through dropout. x: [M, K]; grad_hidden: [M, R]."""
    rows, grads = computable(rows_of(x)), computable(grad_hidden.contiguous())
    ranks, features = grads.shape[1], rows.shape[1]
    config = configs.grad_a(ranks, rows.dtype)
    count = ceil_div(x.shape[0], config.blocks["CHUNK"])
    sums = torch.empty(count, ranks, features, dtype=torch.float32, device=x.device)
    grid = count, ceil_div(features, config.blocks["BLOCK_K"]), ceil_div(ranks, config.blocks["BLOCK_R"])
    _start_through_dropout(_kernels().lora_grad_a_kernel, grid, (rows, grads, sums), ranks, options, config)
    return sums.sum(0)


def _start_through_dropout(
    kernel: Any, grid: tuple[int, ...], tensors: Sequence[Tensor], ranks: int, options: LoraOptions, config: Config
) -> None:
    """Start a kernel that multiplies x after dropout. tensors: x, the other factor and the output."""
    rows = tensors[0]
    sizes = *rows.shape, ranks, rows.stride(0)
    constants = {"DROPOUT": options.seed is not None, "PRECISION": precision(rows.dtype)}
    args = *tensors, options.seed, *sizes, keep_scale(options), drop_threshold(options)
    start(kernel, grid, args, constants, config)


def fused_linear(x: Tensor, weight: Tensor, bias: Tensor | None, product: LowRankProduct, config: Config) -> Tensor:
    """Return `x W^T + bias` plus a low-rank product, in one kernel; [M, N] in x's dtype.

    weight: [N, K]; or, where the product is `by_rank`, [K, N]
    """
    rows, weights, h = computable(rows_of(x)), computable(rows_of(weight)), computable(product.hidden.contiguous())
    factors = computable(product.factor.contiguous())
    offset = None if bias is None else computable(bias.contiguous())
    columns = weight.shape[1 if product.by_rank else 0]
    width, rank = product.sizes
    out = torch.empty(rows.shape[0], columns, dtype=rows.dtype, device=x.device)
    tiles = ceil_div(rows.shape[0], config.blocks["BLOCK_M"]) * ceil_div(columns, config.blocks["BLOCK_N"])
    start(
        _kernels().lora_linear_kernel,
        (tiles,),
        (
            rows, weights, offset, h, factors, out, product.seed, rows.shape[0], columns, rows.shape[1], width, rank,
            rows.stride(0), weights.stride(0), columns, h.stride(0), factors.stride(0), *product.three_offsets,
            product.scale, drop_threshold(product.options),
        ),
        {
            "PARTS": product.parts, "WEIGHT_BY_FEATURE": product.by_rank, "HAS_BIAS": bias is not None,
            "DROPOUT": product.seed is not None, "PRECISION": precision(rows.dtype),
        },
        config,
    )  # fmt: skip
    return out.to(x.dtype)


def mask(rows: int, columns: int, options: LoraOptions) -> Tensor:
    """Return the zero-one mask [rows, columns], int8, that the kernels draw from a seed: for tests."""
    assert options.seed is not None
    out = torch.empty(rows, columns, dtype=torch.int8, device=options.seed.device)
    start(
        _kernels().lora_mask_kernel,
        (ceil_div(rows, 64), ceil_div(columns, 64)),
        (out, options.seed, rows, columns, drop_threshold(options)),
        {},
        Config({"BLOCK_M": 64, "BLOCK_K": 64}, 4, 1),
    )
    return out


def fused_config(x: Tensor, columns: int, rank: int, way: str, has_dropout: bool = False) -> Config | None:
    """Return the configuration of the fused product that was measured to be fastest for rows x [M, K], if any.

    In mode `triton`, unknown shapes take the first candidate.
    """
    arch = capability(x.device)
    first = configs.products(rank, x.dtype, arch, has_dropout)[0] if requested() == "triton" else None
    name = str(x.dtype).removeprefix("torch.")
    shape = configs.Shape(arch, way, x.shape[1], columns, padded(rank), name, has_dropout)
    return configs.best_product(shape, x.dtype) or first


def _kernels() -> ModuleType:
    """Import the device code. Only this needs triton."""
    from vispeft_kernels.lora import triton_kernels

    return triton_kernels
