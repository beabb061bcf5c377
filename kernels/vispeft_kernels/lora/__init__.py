"""The low-rank update of a linear map: `y + scale * (x a^T) b^T`, optionally on parts of the output.

Shapes: x [..., in]; y [..., out]; a [parts * r, in]; b [parts * n, r]. Part `i` owns rows `i * r` to `(i + 1) * r` of
`a` and rows `i * n` to `(i + 1) * n` of `b`, and is added to `n` output columns from `column_offsets[i]` on; other
columns are left as they are. One part at column 0 is ordinary LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

`dropout` is applied to `x` before `a`. Its mask is recomputed from a seed in the backward pass instead of being kept.
Factors and columns that do not fit raise `KernelError`.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from vispeft_kernels.dispatch import choose, requested
from vispeft_kernels.errors import KernelError
from vispeft_kernels.lora import reference, triton_impl
from vispeft_kernels.lora.autograd import Inputs, Recompute, compute_dtype, lora
from vispeft_kernels.lora.autograd_scaled import scaled, scaled_lora
from vispeft_kernels.lora.configs import LARGEST_PARTS, LARGEST_RANK
from vispeft_kernels.lora.options import Factors, LoraOptions
from vispeft_kernels.lora.segments import Run, segmented

__all__ = ["is_fused", "lora_add", "lora_linear", "lora_segments", "lora_update", "scaled"]


def lora_add(
    y: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    scale: float,
    *,
    column_offsets: Sequence[int] = (0,),
    dropout: float = 0.0,
) -> Tensor:
    """Return `y + scale * (x a^T) b^T`, a new tensor. Keeps x and the rank-sized product for the backward pass."""
    return _run(Inputs(y, x, None, None, a, b), LoraOptions(scale, tuple(column_offsets), dropout))


def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    *,
    column_offsets: Sequence[int] = (0,),
    dropout: float = 0.0,
    recompute: Recompute | None = None,
) -> Tensor:
    """Return `x weight^T + bias + scale * (x a^T) b^T`, differentiable in every tensor. weight: [out, in]; bias: [out].

    recompute: as for `lora_update`
    """
    return _run(Inputs(None, x, weight, bias, a, b), LoraOptions(scale, tuple(column_offsets), dropout), recompute)


def is_fused(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, *, column_offsets: Sequence[int] = (0,)) -> bool:
    """Return true if `lora_linear` is one kernel here; otherwise `lora_update` of the map's output is as fast."""
    if (
        torch.compiler.is_compiling()
        or _choose(x, weight, Factors(a, b), LoraOptions(1.0, tuple(column_offsets))) != "triton"
    ):
        return False
    rows = torch.empty(0, x.shape[-1], dtype=compute_dtype(x), device=x.device)
    return triton_impl.fused_config(rows, weight.shape[0], b.shape[1], "forward") is not None


def lora_update(
    y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    *,
    column_offsets: Sequence[int] = (0,),
    dropout: float = 0.0,
    recompute: Recompute | None = None,
    feature_scale: Tensor | None = None,
) -> Tensor:
    """Return `lora_linear` from an existing `y = x weight^T + bias`, which is overwritten and must have no other user.

    The gradients of x, weight and bias are computed here, so the graph behind `y` is not used.
    recompute: a function of rows, and a tensor of x's shape from which it computes x; that tensor is kept for backward
    instead of x
    feature_scale: [out]; the result z is scaled about the bias, `bias + feature_scale * (z - bias)` (DoRA), without
    keeping more
    """
    options = LoraOptions(scale, tuple(column_offsets), dropout)
    _check(x, y.shape[-1], Factors(a, b), options)
    implementation = _choose(y, x, Factors(a, b), options)
    inputs = Inputs(y.detach(), x, weight, bias, a, b)
    if implementation != "reference" and feature_scale is not None and not torch.compiler.is_compiling():
        return scaled_lora(inputs, feature_scale, options, implementation, recompute)
    z = (
        reference.lora_add(y, x, inputs.factors, options)
        if implementation == "reference"
        else lora(inputs, options, implementation, recompute)
    )
    return z if feature_scale is None else scaled(z, feature_scale, bias)


def lora_segments(
    y: Tensor,
    x: Tensor,
    factors: Sequence[tuple[Tensor, Tensor] | None],
    scales: Sequence[float],
    lengths: Sequence[int],
    *,
    column_offsets: Sequence[int] = (0,),
    overwrite: bool = False,
) -> Tensor:
    """Return `lora_add` of a batch whose rows belong to different adapters, several models served at once.

    y [..., out] and x [..., in] are taken as rows: the first `lengths[0]` get the update with `factors[0]` and
    `scales[0]`, the next `lengths[1]` the second, and so on. A pair is a [parts * r, in] and b [parts * n, r], of any
    rank; None leaves the rows as they are. Pairs may repeat.
    overwrite: True if y has no other user, so that the result may take its memory where no gradient needs y
    """
    rows = x.shape[:-1].numel()
    if not len(factors) == len(scales) == len(lengths) or min(lengths, default=0) < 0 or sum(lengths) != rows:
        raise KernelError(
            f"`factors`, `scales` and `lengths` must have one entry a run of rows, and the lengths add up to {rows}, "
            f"the rows of `x`, but there are {len(factors)}, {len(scales)} and {list(lengths)}."
        )
    for pair, scale in zip(factors, scales, strict=True):
        if pair is not None:
            _check(x, y.shape[-1], Factors(*pair), LoraOptions(scale, tuple(column_offsets)))
    flat_y, flat_x = y.reshape(-1, y.shape[-1]), x.reshape(-1, x.shape[-1])
    if requested() == "auto":
        runs = [
            Run(slice(end - length, end), Factors(*pair), scale)
            for end, length, pair, scale in zip(accumulate(lengths), lengths, factors, scales, strict=True)
            if length and pair is not None
        ]
        return segmented(flat_y, flat_x, runs, column_offsets, overwrite).view(y.shape)
    # an implementation that was asked for by name serves each run
    pieces = [
        of_y if pair is None else lora_add(of_y, of_x, *pair, scale, column_offsets=column_offsets)
        for of_y, of_x, pair, scale in zip(
            torch.split(flat_y, list(lengths)), torch.split(flat_x, list(lengths)), factors, scales, strict=True
        )
    ]
    return torch.cat(pieces).view(y.shape) if pieces else y


def _run(inputs: Inputs, options: LoraOptions, recompute: Recompute | None = None) -> Tensor:
    """Return the update of y, or of the frozen map where there is no y, by the fastest implementation."""
    y, x, weight, bias = inputs[:4]
    base = weight if y is None else y
    assert base is not None
    _check(x, base.shape[0] if y is None else base.shape[-1], inputs.factors, options)
    implementation = _choose(x, base, inputs.factors, options)
    if implementation == "reference":
        return reference.lora_add(F.linear(x, base, bias) if y is None else y, x, inputs.factors, options)
    return lora(inputs, options, implementation, recompute)


def _choose(y: Tensor, x: Tensor, factors: Factors, options: LoraOptions) -> str:
    """Choose the implementation; without Triton, `torch.compile` fuses the plain formula best."""
    limits = ""
    if (rank := factors.b.shape[-1]) > LARGEST_RANK:
        limits = f"rank {rank} is above {LARGEST_RANK}"
    elif options.parts > LARGEST_PARTS:
        limits = f"{options.parts} parts are more than {LARGEST_PARTS}"
    implementation = choose("lora", "torch", (y, x, *factors), limits)
    return "reference" if implementation == "torch" and torch.compiler.is_compiling() else implementation


def _check(x: Tensor, out_features: int, factors: Factors, options: LoraOptions) -> None:
    """Refuse factors that do not fit the input, the output or each other."""
    a, b = factors
    offsets, parts = options.column_offsets, options.parts
    if parts == 0 or a.ndim != 2 or b.ndim != 2 or a.shape[0] != parts * b.shape[1] or b.shape[0] % parts:
        raise KernelError(
            f"`a` must be [parts * r, in] and `b` [parts * n, r] with {parts} parts, but they are "
            f"{tuple(a.shape)} and {tuple(b.shape)}."
        )
    if x.shape[-1] != a.shape[1]:
        raise KernelError(f"`x` must have {a.shape[1]} features, one per column of `a`, but has {x.shape[-1]}.")
    width = b.shape[0] // parts
    if min(offsets) < 0 or max(offsets) + width > out_features:
        raise KernelError(
            f"`column_offsets` {offsets} with parts of {width} columns must lie within the {out_features} of `y`."
        )
