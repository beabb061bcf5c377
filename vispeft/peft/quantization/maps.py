"""Linear maps and convolutions whose frozen weight is kept as codes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from vispeft.peft.quantization.codes import decode, encode


class _Quantized(nn.Module):
    """Codes and scales in the place of a weight. The buffers `codes` and `scales` are in the state dict.

    bits: 8 or 4
    weight_shape: of the weight
    """

    bits: int
    weight_shape: torch.Size

    @property
    def weight(self) -> Tensor:
        """The weight that the codes stand for, computed anew at every access."""
        return decode(self.get_buffer("codes"), self.get_buffer("scales"), self.bits, self.weight_shape)

    def _inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return x, scales and bias in the precision in which torch computes the map, also under autocast."""
        bias = self._parameters["bias"]
        if not torch.is_autocast_enabled(x.device.type):
            return x, self.get_buffer("scales"), bias
        dtype = torch.get_autocast_dtype(x.device.type)
        return x.to(dtype), self.get_buffer("scales"), None if bias is None else bias.to(dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}"


# a weight in codes cannot be set
class QuantizedLinear(_Quantized, nn.Linear):  # type: ignore[override]
    """`F.linear(x, W, bias)` with W from codes; autograd keeps the codes alone."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the output [..., out] for x [..., in]."""
        x, scales, bias = self._inputs(x)
        output: Tensor = _Linear.apply(x, self.get_buffer("codes"), scales, bias, self.bits, self.weight_shape)
        return output


class QuantizedConv2d(_Quantized, nn.Conv2d):  # type: ignore[override]
    """`F.conv2d(x, W, bias, ...)` with W from codes; autograd keeps the codes alone. For padding with zeros."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the output [B, out, h, w] for x [B, in, H, W]."""
        x, scales, bias = self._inputs(x)
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        codes = self.get_buffer("codes")
        output: Tensor = _Conv2d.apply(x, codes, scales, bias, self.bits, self.weight_shape, geometry)
        return output


# classes that are quantised, exactly, and the class that takes their place
QUANTIZED: dict[type[nn.Module], type[QuantizedLinear | QuantizedConv2d]] = {
    nn.Linear: QuantizedLinear,
    nn.Conv2d: QuantizedConv2d,
}


def quantize_map(module: nn.Module, bits: int) -> None:
    """Replace the weight of an nn.Linear or nn.Conv2d by codes, in place: the module stays the same object."""
    weight = module.get_parameter("weight")
    codes, scales = encode(weight, bits)
    kind = QUANTIZED[type(module)]
    del module._parameters["weight"]
    module.__class__ = kind
    assert isinstance(module, QuantizedLinear | QuantizedConv2d)
    module.bits, module.weight_shape = bits, weight.shape
    module.register_buffer("codes", codes)
    module.register_buffer("scales", scales)


class _Linear(torch.autograd.Function):
    """Linear map that decodes its weight in both passes."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, bits: int, shape: torch.Size
    ) -> Tensor:
        ctx.save_for_backward(codes, scales)
        ctx.bits, ctx.shape = bits, shape
        return F.linear(x, _decoded(x, codes, scales, bits, shape), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            codes, scales = ctx.saved_tensors
            grad_x = grad @ _decoded(grad, codes, scales, ctx.bits, ctx.shape)
        if ctx.needs_input_grad[3]:
            grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0)
        return grad_x, None, None, grad_bias, None, None


class _Conv2d(torch.autograd.Function):
    """Convolution that decodes its weight in both passes. geometry: stride, padding, dilation and groups"""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        codes: Tensor,
        scales: Tensor,
        bias: Tensor | None,
        bits: int,
        shape: torch.Size,
        geometry: tuple[Any, ...],
    ) -> Tensor:
        ctx.save_for_backward(codes, scales)
        ctx.bits, ctx.shape, ctx.geometry, ctx.input_shape = bits, shape, geometry, x.shape
        return F.conv2d(x, _decoded(x, codes, scales, bits, shape), bias, *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            codes, scales = ctx.saved_tensors
            weight = _decoded(grad, codes, scales, ctx.bits, ctx.shape)
            grad_x = conv2d_input(ctx.input_shape, weight, grad, *ctx.geometry)  # type: ignore[no-untyped-call]
        if ctx.needs_input_grad[3]:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, None, None, grad_bias, None, None, None


def _decoded(like: Tensor, codes: Tensor, scales: Tensor, bits: int, shape: torch.Size) -> Tensor:
    """Return the weight; under autocast in the precision of the input."""
    weight = decode(codes, scales, bits, shape)
    return weight.to(like.dtype) if like.dtype in (torch.bfloat16, torch.float16) else weight
