"""The low-rank update as `torch.library` operators, which `torch.compile` and export see as one node each.

They run `torch_impl.py` on the CPU and Triton's kernels on a CUDA device. A seed of dropout is a tensor [1], int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vispeft_kernels.launch import is_interpreted
from vispeft_kernels.lora import torch_impl, triton_steps
from vispeft_kernels.lora.autograd import compute_dtype
from vispeft_kernels.lora.torch_impl import Rows

Gradients = tuple[Tensor, Tensor, Tensor]


def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    starts: Sequence[int],
    dropout: float,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """`x weight^T + bias` with the update, in `dtype`: autocast's, or x's, if not given."""
    dtype = dtype or compute_dtype(x)
    offset = None if bias is None else bias.to(dtype)
    factors = a.to(dtype), b.to(dtype)
    seed = _seed(x, dropout)
    y: Tensor = lora_linear_op(x.to(dtype), weight.to(dtype), offset, *factors, seed, scale, list(starts), dropout)[0]
    return y


def lora_add(y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float, starts: Sequence[int], dropout: float) -> Tensor:
    """y with the update, in y's precision."""
    factors = a.to(y.dtype), b.to(y.dtype)
    out: Tensor = lora_add_op(y, x.to(y.dtype), *factors, _seed(x, dropout), scale, list(starts), dropout)[0]
    return out


def _seed(x: Tensor, dropout: float) -> Tensor | None:
    return torch.randint(2**62, (1,), device=x.device) if dropout else None


def _steps_for(x: Tensor) -> Any:
    return triton_steps if x.device.type == "cuda" or is_interpreted() else torch_impl


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


@torch.library.custom_op("vispeft::lora_linear", mutates_args=(), device_types=("cpu", "cuda"))
def lora_linear_op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    seed: Tensor | None,
    scale: float,
    starts: list[int],
    dropout: float,
) -> tuple[Tensor, Tensor]:
    """The map with its update [..., N], and h [M, parts * r]."""
    with torch.autocast(x.device.type, enabled=False):
        y, hidden = _steps_for(x).linear(_flat(x), weight, bias, a, b, scale, tuple(starts), dropout, seed)
    return y.view(*x.shape[:-1], y.shape[-1]), hidden


@lora_linear_op.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    seed: Tensor | None,
    scale: float,
    starts: list[int],
    dropout: float,
) -> tuple[Tensor, Tensor]:
    rows = x.shape[:-1].numel()
    return x.new_empty(*x.shape[:-1], weight.shape[0]), x.new_empty(rows, a.shape[0])


@torch.library.custom_op("vispeft::lora_add", mutates_args=(), device_types=("cpu", "cuda"))
def lora_add_op(
    y: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    seed: Tensor | None,
    scale: float,
    starts: list[int],
    dropout: float,
) -> tuple[Tensor, Tensor]:
    """y with the update added, and h [M, parts * r]."""
    out = y.clone(memory_format=torch.contiguous_format)
    with torch.autocast(x.device.type, enabled=False):
        rows = out.view(-1, y.shape[-1])
        hidden = _steps_for(x).update_(rows, _flat(x), a, b, scale, tuple(starts), dropout, seed)
    return out, hidden


@lora_add_op.register_fake
def _(
    y: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    seed: Tensor | None,
    scale: float,
    starts: list[int],
    dropout: float,
) -> tuple[Tensor, Tensor]:
    return y.new_empty(y.shape), x.new_empty(x.shape[:-1].numel(), a.shape[0])


@torch.library.custom_op("vispeft::lora_backward", mutates_args=(), device_types=("cpu", "cuda"))
def lora_backward_op(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    hidden: Tensor,
    a: Tensor,
    b: Tensor,
    seed: Tensor | None,
    scale: float,
    starts: list[int],
    dropout: float,
    needs_x: bool,
) -> Gradients:
    """Gradients of x (empty where not needed), a and b."""
    with torch.autocast(x.device.type, enabled=False):
        rows = Rows(_flat(x), None, x.dtype)
        grad_x, grad_a, grad_b = _steps_for(x).gradients(
            _flat(grad), rows, weight, hidden, a, b, scale, tuple(starts), dropout, seed, needs_x
        )
    return x.new_empty(0) if grad_x is None else grad_x.view(x.shape), grad_a.to(a.dtype), grad_b.to(b.dtype)


@lora_backward_op.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    hidden: Tensor,
    a: Tensor,
    b: Tensor,
    seed: Tensor | None,
    scale: float,
    starts: list[int],
    dropout: float,
    needs_x: bool,
) -> Gradients:
    return x.new_empty(x.shape if needs_x else 0), a.new_empty(a.shape), b.new_empty(b.shape)


def _keep_linear(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, a, b, seed, *ctx.options = inputs
    ctx.save_for_backward(x, weight, output[1], a, b, seed)
    ctx.mark_non_differentiable(output[1])


def _linear_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, hidden, a, b, seed = ctx.saved_tensors
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    grad_x, grad_a, grad_b = lora_backward_op(grad, x, weight, hidden, a, b, seed, *ctx.options, needs_x)
    rows = _flat(grad)
    return (
        grad_x if needs_x else None,
        rows.t() @ _flat(x) if needs_weight else None,
        rows.sum(0) if needs_bias else None,
        grad_a,
        grad_b,
        *(None,) * 4,
    )


def _keep_add(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, x, a, b, seed, *ctx.options = inputs
    ctx.save_for_backward(x, output[1], a, b, seed)
    ctx.mark_non_differentiable(output[1])


def _add_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, hidden, a, b, seed = ctx.saved_tensors
    needs_x = ctx.needs_input_grad[1]
    grad_x, grad_a, grad_b = lora_backward_op(grad, x, None, hidden, a, b, seed, *ctx.options, needs_x)
    return grad, grad_x if needs_x else None, grad_a, grad_b, *(None,) * 4


lora_linear_op.register_autograd(_linear_backward, setup_context=_keep_linear)
lora_add_op.register_autograd(_add_backward, setup_context=_keep_add)
