"""The low-rank update of a linear map: `y + scale * (x a^T) b^T`, in parts of the output if asked for.

Shapes: x [..., in]; y [..., out]; a [parts * r, in]; b [parts * n, r]. Part `i` owns rows `i * r` to `(i + 1) * r` of
`a` and rows `i * n` to `(i + 1) * n` of `b`, and is added to the output columns from `starts[i]` to `starts[i] + n`;
other columns are left as they are. One part at column 0 is ordinary LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

`dropout` falls on `x` before `a`. Its mask is drawn again from a seed in the backward pass instead of being kept.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vispeft_kernels.dispatch import choose
from vispeft_kernels.errors import KernelError
from vispeft_kernels.lora import autograd, ops, reference, torch_impl, triton_impl, triton_steps
from vispeft_kernels.lora.autograd import Replay, Steps
from vispeft_kernels.lora.autograd_scaled import scaled, scaled_lora
from vispeft_kernels.lora.configs import LARGEST_PARTS, LARGEST_RANK

__all__ = ["is_fused", "lora_add", "lora_linear", "lora_update", "scaled"]

STEPS: dict[str, Steps] = {"function": torch_impl, "triton": triton_steps}


def lora_add(
    y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float, *, starts: Sequence[int] = (0,), dropout: float = 0.0
) -> Tensor:
    """`y + scale * (x a^T) b^T`, a new tensor. Keeps x and the rank-sized product for the backward pass, no more."""
    _check(x, y.shape[-1], a, b, starts)
    how = _choose(y, x, a, b, starts)
    if how == "reference":
        return reference.lora_add(y, x, a, b, scale, starts, dropout)
    if torch.compiler.is_compiling():
        return ops.lora_add(y, x, a, b, scale, starts, dropout)
    return autograd.lora(y, x, None, None, a, b, scale, tuple(starts), dropout, None, STEPS[how])


def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    *,
    starts: Sequence[int] = (0,),
    dropout: float = 0.0,
    replay: Replay | None = None,
) -> Tensor:
    """`x weight^T + bias + scale * (x a^T) b^T`, differentiable in every tensor. weight: [out, in]; bias: [out].

    replay: as for `lora_update`
    """
    _check(x, weight.shape[0], a, b, starts)
    how = _choose(x, weight, a, b, starts)
    if how == "reference":
        return reference.lora_add(F.linear(x, weight, bias), x, a, b, scale, starts, dropout)
    if torch.compiler.is_compiling():
        return ops.lora_linear(x, weight, bias, a, b, scale, starts, dropout)
    return autograd.lora(None, x, weight, bias, a, b, scale, tuple(starts), dropout, replay, STEPS[how])


def is_fused(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, *, starts: Sequence[int] = (0,)) -> bool:
    """Whether `lora_linear` makes this in one kernel; where it does not, `lora_update` of the product is as good."""
    if torch.compiler.is_compiling() or _choose(x, weight, a, b, starts) != "triton":
        return False
    rows = torch.empty(0, x.shape[-1], dtype=autograd.compute_dtype(x), device=x.device)
    return triton_impl.product_for(rows, weight.shape[0], b.shape[1], "forward") is not None


def lora_update(
    y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    *,
    starts: Sequence[int] = (0,),
    dropout: float = 0.0,
    replay: Replay | None = None,
    gain: Tensor | None = None,
) -> Tensor:
    """`lora_linear` where `y = x weight^T + bias` is there already and is the caller's alone: y is overwritten.

    The gradients of x, weight and bias are taken here in one go, so the graph behind `y` is not used any more.
    replay: a function of rows and a tensor of x's shape from which it makes x again; that tensor is then kept for
    backward instead of x
    gain: [out]; the result z is then scaled about the bias, `bias + gain * (z - bias)`, which keeps no more
    """
    _check(x, y.shape[-1], a, b, starts)
    how = _choose(y, x, a, b, starts)
    if how == "reference":
        z = reference.lora_add(y, x, a, b, scale, starts, dropout)
        return z if gain is None else scaled(z, gain, bias)
    if torch.compiler.is_compiling():
        # y is left to the compiler to drop: the operator makes it again, with the update in it
        z = ops.lora_linear(x, weight, bias, a, b, scale, starts, dropout, dtype=y.dtype)
        return z if gain is None else scaled(z, gain, bias)
    y = y.detach()
    if gain is not None:
        return scaled_lora(y, x, weight, bias, a, b, scale, gain, tuple(starts), dropout, replay, STEPS[how])
    return autograd.lora(y, x, weight, bias, a, b, scale, tuple(starts), dropout, replay, STEPS[how])


def _choose(y: Tensor, x: Tensor, a: Tensor, b: Tensor, starts: Sequence[int]) -> str:
    """What serves; where Triton does not, `torch.compile` fuses the plain formula best by itself."""
    limits = ""
    if b.shape[-1] > LARGEST_RANK:
        limits = f"rank {b.shape[-1]} is above {LARGEST_RANK}"
    elif len(starts) > LARGEST_PARTS:
        limits = f"{len(starts)} parts are more than {LARGEST_PARTS}"
    how = choose("lora", "function", (y, x, a, b), limits)
    return "reference" if how == "function" and torch.compiler.is_compiling() else how


def _check(x: Tensor, out_features: int, a: Tensor, b: Tensor, starts: Sequence[int]) -> None:
    """Refuses factors that do not fit the input, the output or each other."""
    parts = len(starts)
    if parts == 0 or a.ndim != 2 or b.ndim != 2 or a.shape[0] != parts * b.shape[1] or b.shape[0] % parts:
        raise KernelError(
            f"`a` must be [parts * r, in] and `b` [parts * n, r] with {parts} parts, but they are "
            f"{tuple(a.shape)} and {tuple(b.shape)}."
        )
    if x.shape[-1] != a.shape[1]:
        raise KernelError(f"`x` must have {a.shape[1]} features, as `a` has columns, but has {x.shape[-1]}.")
    width = b.shape[0] // parts
    if min(starts) < 0 or max(starts) + width > out_features:
        raise KernelError(
            f"`starts` {tuple(starts)} with parts of {width} columns must lie within `y`'s {out_features}."
        )
