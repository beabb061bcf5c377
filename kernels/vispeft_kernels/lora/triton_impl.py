"""The low-rank update by Triton's kernels: the same steps as `autograd.py` takes in torch, on rows [M, *]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from vispeft_kernels.dispatch import requested
from vispeft_kernels.launch import Config, capability, ceil_div, computable, padded, precision, rows_of, start
from vispeft_kernels.lora import configs

Starts = tuple[int, ...]


@dataclass(frozen=True)
class Dropout:
    """What draws a mask: `probability` to drop, and an int64 seed on the device, which a CUDA graph may draw anew."""

    probability: float
    seed: Tensor | None

    @property
    def threshold(self) -> int:
        return round(self.probability * 2**16)

    @property
    def gain(self) -> float:
        return 1 / (1 - self.probability)


NONE = Dropout(0.0, None)


def new_seed(x: Tensor) -> Tensor:
    """A seed on the device of x, from torch's own generator; no device is waited for."""
    return torch.randint(2**62, (1,), device=x.device)


def shrink(x: Tensor, a: Tensor, dropout: Dropout = NONE) -> Tensor:
    """h = dropout(x) a^T. x: [M, K]; a: [R, K]. Returns [M, R] in x's dtype."""
    rows, factors = computable(rows_of(x)), computable(a.contiguous())
    ranks = a.shape[0]
    hidden = torch.empty(x.shape[0], ranks, dtype=rows.dtype, device=x.device)
    config = configs.shrink(ranks, rows.dtype)
    count = ceil_div(x.shape[0], config.blocks["BLOCK_M"])
    start(
        _kernels().lora_shrink_kernel,
        (count, ceil_div(ranks, config.blocks["BLOCK_R"])),
        (
            rows,
            factors,
            hidden,
            dropout.seed,
            *rows.shape,
            ranks,
            rows.stride(0),
            dropout.gain,
            dropout.threshold,
        ),
        {"DROPOUT": dropout.seed is not None, "PRECISION": precision(rows.dtype)},
        config,
    )
    return hidden.to(x.dtype)


def expand_(
    y: Tensor,
    hidden: Tensor,
    b: Tensor,
    scale: float,
    starts: Starts,
    *,
    by_rank: bool = False,
    dropout: Dropout = NONE,
    out: Tensor | None = None,
) -> Tensor:
    """out = y + scale * (h b^T), part by part, in one pass over those columns; in place where no `out` is given.

    y, out: [M, N]; hidden: [M, parts * r]; b: [parts * n, r], or [r, n] where `by_rank`, whose product
    then passes through dropout.
    """
    out = y if out is None else out
    source, into = computable(y), computable(out)
    h, factors = computable(hidden), computable(b.contiguous())
    parts = len(starts)
    width, rank = (b.shape[1], b.shape[0]) if by_rank else (b.shape[0] // parts, b.shape[1])
    config = configs.expand(rank, source.dtype)
    count = ceil_div(y.shape[0], config.blocks["BLOCK_M"])
    start(
        _kernels().lora_expand_kernel,
        (count, ceil_div(width, config.blocks["BLOCK_N"]), parts),
        (
            source, h, factors, into, dropout.seed, y.shape[0], width, rank, source.stride(0), into.stride(0),
            h.stride(0), factors.shape[1], *_three(starts),
            scale * dropout.gain, dropout.threshold,
        ),
        {
            "B_BY_RANK": by_rank, "HAS_Y": True, "DROPOUT": dropout.seed is not None,
            "PRECISION": precision(source.dtype),
        },
        config,
    )  # fmt: skip
    return out if into is out else out.copy_(into)


def grad_hidden_and_b(grad: Tensor, hidden: Tensor, b: Tensor, scale: float, starts: Starts) -> tuple[Tensor, Tensor]:
    """Gradients of h [M, parts * r], in grad's dtype, and of b, in float32, from one read of grad [M, N]."""
    rows, h, factors = computable(rows_of(grad)), computable(hidden.contiguous()), computable(b.contiguous())
    parts, rank = len(starts), b.shape[1]
    width = b.shape[0] // parts
    config = configs.grad(rank, rows.dtype)
    count = ceil_div(grad.shape[0], config.blocks["BLOCK_M"])
    grad_h = torch.empty_like(h)
    sums = torch.empty(count, parts * width, rank, dtype=torch.float32, device=grad.device)
    start(
        _kernels().lora_grad_kernel,
        (count, parts),
        (rows, h, factors, grad_h, sums, grad.shape[0], width, rank, rows.stride(0), *_three(starts), scale),
        {"PARTS": parts, "PRECISION": precision(rows.dtype)},
        config,
    )
    return grad_h.to(hidden.dtype), sums.sum(0)


def grad_a(x: Tensor, grad_hidden: Tensor, dropout: Dropout = NONE) -> Tensor:
    """The gradient of a, [R, K], in float32. x: [M, K]; grad_hidden: [M, R]."""
    rows, grads = computable(rows_of(x)), computable(grad_hidden.contiguous())
    ranks, features = grads.shape[1], rows.shape[1]
    config = configs.grad_a(ranks, rows.dtype)
    count = ceil_div(x.shape[0], config.blocks["CHUNK"])
    sums = torch.empty(count, ranks, features, dtype=torch.float32, device=x.device)
    start(
        _kernels().lora_grad_a_kernel,
        (count, ceil_div(features, config.blocks["BLOCK_K"]), ceil_div(ranks, config.blocks["BLOCK_R"])),
        (rows, grads, sums, dropout.seed, *rows.shape, ranks, rows.stride(0), dropout.gain, dropout.threshold),
        {"DROPOUT": dropout.seed is not None, "PRECISION": precision(rows.dtype)},
        config,
    )
    return sums.sum(0)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    hidden: Tensor,
    b: Tensor,
    scale: float,
    starts: Starts,
    config: Config,
    *,
    by_feature: bool = False,
    dropout: Dropout = NONE,
) -> Tensor:
    """`x W^T + bias + scale * (h b^T)` in one kernel; [M, N] in x's dtype.

    weight: [N, K] and b: [parts * n, r]; or, where `by_feature`, weight [K, N] and b [r, N], whose product then passes
    through dropout.
    """
    rows, weights, h = computable(rows_of(x)), computable(rows_of(weight)), computable(hidden.contiguous())
    factors, offset = computable(b.contiguous()), None if bias is None else computable(bias.contiguous())
    columns, parts = weight.shape[1 if by_feature else 0], len(starts)
    width, rank = (columns, b.shape[0]) if by_feature else (b.shape[0] // parts, b.shape[1])
    out = torch.empty(rows.shape[0], columns, dtype=rows.dtype, device=x.device)
    tiles = ceil_div(rows.shape[0], config.blocks["BLOCK_M"]) * ceil_div(columns, config.blocks["BLOCK_N"])
    start(
        _kernels().lora_linear_kernel,
        (tiles,),
        (
            rows, weights, offset, h, factors, out, dropout.seed, rows.shape[0], columns, rows.shape[1], width, rank,
            rows.stride(0), weights.stride(0), columns, h.stride(0), factors.stride(0), *_three(starts),
            scale * dropout.gain, dropout.threshold,
        ),
        {
            "PARTS": parts, "WEIGHT_BY_FEATURE": by_feature, "HAS_BIAS": bias is not None,
            "DROPOUT": dropout.seed is not None, "PRECISION": precision(rows.dtype),
        },
        config,
    )  # fmt: skip
    return out.to(x.dtype)


def mask(rows: int, columns: int, dropout: Dropout) -> Tensor:
    """The zero-one mask [rows, columns], int8, that the kernels draw from a seed: for tests and for the curious."""
    assert dropout.seed is not None
    out = torch.empty(rows, columns, dtype=torch.int8, device=dropout.seed.device)
    config = Config({"BLOCK_M": 64, "BLOCK_K": 64}, 4, 1)
    start(
        _kernels().lora_mask_kernel,
        (ceil_div(rows, 64), ceil_div(columns, 64)),
        (out, dropout.seed, rows, columns, dropout.threshold),
        {},
        config,
    )
    return out


def product_for(x: Tensor, columns: int, rank: int, way: str, dropout: Dropout = NONE) -> Config | None:
    """The configuration of the fused product that was measured to be the fastest way for rows x [M, K], if any.

    Where kernels are asked for by name, unknown shapes take the first candidate.
    """
    has_dropout = dropout.seed is not None
    arch = capability(x.device)
    first = configs.products(rank, x.dtype, arch, has_dropout)[0] if requested() == "triton" else None
    name = str(x.dtype).removeprefix("torch.")
    shape = configs.Shape(arch, way, x.shape[1], columns, padded(rank), name, has_dropout)
    return configs.best_product(shape, x.dtype) or first


def _kernels() -> ModuleType:
    """The device code; only here is triton imported."""
    from vispeft_kernels.lora import triton_kernels

    return triton_kernels


def _three(starts: Sequence[int]) -> list[int]:
    return [*starts, 0, 0][: configs.LARGEST_PARTS]
