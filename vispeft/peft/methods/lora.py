"""LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685): `W + scale * B A` with A and B of low rank."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vispeft_kernels.lora import lora_add, lora_update

from vispeft.errors import PlanError
from vispeft.peft.methods.base import Delta, Method, WeightDelta, at_least, trainable
from vispeft.peft.methods.base_modules import is_plain_linear
from vispeft.peft.methods.recomputed_inputs import RecomputedInputs

# thirds of a fused projection's rows
PARTS = "qkv"


@dataclass(frozen=True)
class LoRA(Method):
    """`y + alpha / rank * B(A x)`; B starts at zero.

    rank: columns of B and rows of A, per part
    alpha: numerator of the scale; the rank where it is not given
    parts: of a fused query-key-value projection, those to adapt ("q", "v", "qv", ...), each with factors of its own;
    empty is one pair of factors for the whole map
    dropout: on x before A, in training; for module sites only
    """

    name: ClassVar[str] = "lora"
    rank: int
    alpha: float | None = None
    parts: str = ""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        at_least("rank", self.rank, 1)
        check_parts(self.parts)
        if not 0 <= self.dropout < 1:
            raise PlanError(f"`dropout` must be at least 0 and below 1, but is {self.dropout}.")
        if self.alpha is not None and not (math.isfinite(self.alpha) and self.alpha):
            raise PlanError(f"`alpha` must be finite and not 0, or nothing would ever be learnt, but is {self.alpha}.")

    @property
    def scale(self) -> float:
        """Factor of the low-rank product."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def for_module(self, module: nn.Module) -> Delta:
        """The delta for a linear map or an ungrouped convolution."""
        match module:
            case nn.Linear():
                return LinearLoRA(self, module.weight)
            case nn.Conv2d():
                self._check_conv(module)
                return ConvLoRA(self, module)
            case _:
                kind = type(module)
                # of a quantised map the bare name would be that of a map that is served
                name = f"{kind.__module__}.{kind.__name__}" if hasattr(nn, kind.__name__) else kind.__name__
                raise PlanError(
                    f"`{self.name}` serves nn.Linear and nn.Conv2d modules and parameters, but this is a {name}."
                )

    def for_parameter(self, parameter: Tensor) -> WeightDelta:
        """The delta for a matrix [out, in] or a convolution kernel [out, in, kh, kw]."""
        self._check_parameter(parameter)
        return WeightLoRA(self, parameter)

    def _check_parameter(self, parameter: Tensor) -> None:
        if parameter.ndim not in (2, 4):
            raise PlanError(
                f"`{self.name}` serves parameters [out, in] and [out, in, kh, kw], but this one is "
                f"{list(parameter.shape)}."
            )
        if self.dropout:
            raise PlanError(
                f"`dropout` must be 0 on a parameter, which never sees the input, but is {self.dropout}. "
                f"Set it to 0, or name a module that is called."
            )

    def _check_conv(self, module: nn.Conv2d) -> None:
        is_plain = type(module).forward is nn.Conv2d.forward and type(module)._conv_forward is nn.Conv2d._conv_forward
        if not is_plain:
            raise PlanError(
                f"`{self.name}` cannot follow the padding or weights of a {type(module).__name__}. "
                f"Name its `weight` parameter instead."
            )
        if module.groups > 1:
            raise PlanError(
                f"`{self.name}` serves convolutions with 1 group, but this one has {module.groups}. "
                f"Name its `weight` parameter instead."
            )


def check_parts(parts: str) -> None:
    """Refuses parts that are not some of q, k and v in this order."""
    if "".join(part for part in PARTS if part in parts) != parts:
        raise PlanError(f"`parts` must be some of q, k, v in this order, each once, but is {parts!r}.")


def part_rows(parts: str, rows: int) -> list[slice]:
    """The rows that each part of a fused map owns; one slice over all where no parts are named."""
    if not parts:
        return [slice(0, rows)]
    if rows % len(PARTS):
        raise PlanError(f"`parts` needs a fused map whose outputs are three equal parts, but this one has {rows}.")
    third = rows // len(PARTS)
    return [slice(PARTS.index(part) * third, (PARTS.index(part) + 1) * third) for part in parts]


class LinearLoRA(Delta):
    """Factors of a linear map: `a` [parts * r, in], `b` [parts * out of a part, r]."""

    def __init__(self, method: LoRA, weight: Tensor) -> None:
        super().__init__(method)
        self.outputs, self.rows = weight.shape[0], part_rows(method.parts, weight.shape[0])
        self.starts = tuple(rows.start for rows in self.rows)
        self.scale, self.dropout = method.scale, method.dropout
        self.a, self.b = _factors(method.rank, self.rows, weight)
        # the table of the injection, once the delta is part of one
        self.recomputed_inputs = RecomputedInputs()

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """y with the low-rank update on the rows of its parts. x: [..., in]; y: [..., out]."""
        dropout = self.dropout if self.training else 0.0
        if base is not None and is_plain_linear(base):
            return lora_update(
                y,
                x,
                base.weight,
                base.bias,
                self.a,
                self.b,
                self.scale,
                column_offsets=self.starts,
                dropout=dropout,
                recompute=self.recomputed_inputs.recompute_of(x),
            )
        return lora_add(y, x, self.a, self.b, self.scale, column_offsets=self.starts, dropout=dropout)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """`W + scale * B A`, and the bias as it is."""
        return add_product(weight, self.a, self.b, self.scale, self.rows), bias

    def extra_repr(self) -> str:
        return repr(self.method)


@dataclass(frozen=True)
class _Margins:
    """Padding by other values than zeros: left, right, top and bottom, and torch's name of the mode."""

    sizes: list[int]
    mode: str


class ConvLoRA(Delta):
    """Factors of a convolution: `a` [r, in, kh, kw] with the base's geometry, `b` [out, r, 1, 1]."""

    def __init__(self, method: LoRA, base: nn.Conv2d) -> None:
        super().__init__(method)
        if method.parts:
            raise PlanError(f"`parts` must be empty on a convolution, but is {method.parts!r}.")
        self.scale, self.dropout = method.scale, method.dropout
        self.stride, self.dilation = base.stride, base.dilation
        is_zeros = base.padding_mode == "zeros"
        self.padding = base.padding if is_zeros else 0
        self.margins = None if is_zeros else _Margins(_margins(base), base.padding_mode)
        self.outputs, self.rows = base.out_channels, part_rows("", base.out_channels)
        self.a, self.b = _factors(method.rank, self.rows, base.weight)

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """y with the low-rank update. x: [B, in, H, W]; y: [B, out, h, w]."""
        x = F.dropout(x.to(y.dtype), self.dropout, self.training)
        if self.margins is not None:
            x = F.pad(x, self.margins.sizes, self.margins.mode)
        a, b = (factor.to(y.dtype) for factor in (self.a, self.b))
        hidden = F.conv2d(x, a, None, self.stride, self.padding, self.dilation)
        return torch.add(y, F.conv2d(hidden, b), alpha=self.scale)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """`W + scale * B A` over flattened kernels, and the bias as it is."""
        return add_product(weight, self.a, self.b, self.scale, self.rows), bias

    def extra_repr(self) -> str:
        return repr(self.method)


class WeightLoRA(WeightDelta):
    """Factors of a parameter [out, in] or [out, in, kh, kw], shaped as those of a linear map or a convolution."""

    def __init__(self, method: LoRA, weight: Tensor) -> None:
        super().__init__(method)
        self.outputs, self.rows = weight.shape[0], part_rows(method.parts, weight.shape[0])
        self.scale = method.scale
        self.a, self.b = _factors(method.rank, self.rows, weight)

    def forward(self, weight: Tensor) -> Tensor:
        """`W + scale * B A` on the rows of its parts."""
        return add_product(weight, self.a, self.b, self.scale, self.rows)

    def extra_repr(self) -> str:
        return repr(self.method)


def _margins(base: nn.Conv2d) -> list[int]:
    """The padding of a convolution by other values than zeros: left, right, top and bottom."""
    sizes: list[int] = []
    for axis in (1, 0):
        whole = base.dilation[axis] * (base.kernel_size[axis] - 1)
        match base.padding:
            case "same":
                sizes += [whole // 2, whole - whole // 2]
            case "valid":
                sizes += [0, 0]
            case _:
                sizes += [int(base.padding[axis])] * 2
    return sizes


def add_product(weight: Tensor, a: Tensor, b: Tensor, scale: float, rows: list[slice]) -> Tensor:
    """`W + scale * B A` on the rows of each part, in the factors' precision and returned in the weight's.

    weight: [out, ...]; a: [parts * r, ...]; b: [parts * rows of a part, r, ...]
    """
    flat, a, b = weight.flatten(1).to(a.dtype), a.flatten(1), b.flatten(1)
    pieces, end = [], 0
    for part, a_part, b_part in zip(rows, a.chunk(len(rows)), b.chunk(len(rows)), strict=True):
        pieces += [flat[end : part.start], torch.addmm(flat[part], b_part, a_part, alpha=scale)]
        end = part.stop
    return torch.cat([*pieces, flat[end:]]).view(weight.shape).to(weight.dtype)


def _factors(rank: int, rows: list[slice], weight: Tensor) -> tuple[nn.Parameter, nn.Parameter]:
    """A, Kaiming-uniform as in the paper's code, and B, zero, for each part, stacked."""
    largest = max(weight.shape[0], weight[0].numel())
    if rank > largest:
        raise PlanError(f"`rank` must be at most {largest}, the larger side of this site, but is {rank}.")
    parts, height = len(rows), rows[0].stop - rows[0].start
    a = trainable(parts * rank, *weight.shape[1:], like=weight)
    for part in a.data.chunk(parts):
        nn.init.kaiming_uniform_(part, a=math.sqrt(5))
    return a, trainable(parts * height, rank, *(1 for _ in weight.shape[2:]), like=weight)
