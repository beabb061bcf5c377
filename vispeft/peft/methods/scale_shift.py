"""Scales and offsets on a module's output.

SSF: Lian et al. 2022, https://arxiv.org/abs/2210.08823. IA3: Liu et al. 2022, https://arxiv.org/abs/2205.05638.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft.methods.base import Delta, Method, WeightDelta, one_of, reference_tensor, trainable, widths
from vispeft.peft.methods.context import Context
from vispeft.peft.methods.input_scale import InputGain
from vispeft.peft.methods.layout import ChannelDim
from vispeft.peft.methods.qkv import check_parts, part_rows


@dataclass(frozen=True)
class ScaleShift(Method):
    """SSF: `y * scale + offset` per feature, from ones and zeros so that nothing changes at the start."""

    name: ClassVar[str] = "scale_shift"

    def for_module(self, module: nn.Module, context: Context) -> Delta:
        """Return the delta for any module whose output width is known."""
        return GainOffset(self, module, "", has_offset=True)

    def for_parameter(self, parameter: Tensor, context: Context) -> WeightDelta:
        """Refuse every parameter: SSF acts on outputs."""
        raise _parameter_refused(self.name)


@dataclass(frozen=True)
class IA3(Method):
    """IA3: `y * scale` per feature, from ones.

    parts: of a fused query-key-value projection, those to scale ("kv", ...); empty is the whole output
    side: "input" scales the input of a linear map or convolution instead, as IA3 does inside an MLP
    """

    name: ClassVar[str] = "ia3"
    parts: str = ""
    side: str = "output"

    def __post_init__(self) -> None:
        check_parts(self.parts)
        one_of("side", self.side, ("input", "output"))
        if self.parts and self.side == "input":
            raise PlanError(f"`parts` must be empty with `side: input`, but is {self.parts!r}.")

    def for_module(self, module: nn.Module, context: Context) -> Delta:
        """Return the delta for any module whose output width is known."""
        if self.side == "input":
            return InputGain(self, module)
        return GainOffset(self, module, self.parts, has_offset=False)

    def for_parameter(self, parameter: Tensor, context: Context) -> WeightDelta:
        """Refuse every parameter: IA3 acts on outputs, biases included."""
        raise _parameter_refused(self.name)


class GainOffset(Delta):
    """`gain`, the scales, from ones, and for SSF `offset`, from zeros: one number per adapted feature of the output."""

    def __init__(self, method: Method, base: nn.Module, parts: str, *, has_offset: bool) -> None:
        super().__init__(method)
        size = widths(base)
        self.channel_dim = ChannelDim(size)
        self.rows = part_rows(parts, size.outputs)
        features = sum(rows.stop - rows.start for rows in self.rows)
        like = reference_tensor(base)
        self.gain = trainable(features, like=like)
        self.offset = trainable(features, like=like) if has_offset else None
        nn.init.ones_(self.gain)
        self.outputs = size.outputs

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return `y * scale + offset` on the features of its parts. y: [..., out] or [B, out, H, W]."""
        shape = [-1] + [1] * (y.ndim - 2) if self.channel_dim.of(y) == 1 else [-1]
        gain, offset = self._spread(y.dtype)
        if offset is None:
            return y * gain.view(shape)
        return torch.addcmul(offset.view(shape), y, gain.view(shape))

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None] | None:
        """Return weight rows and bias times the scales, with offsets in the bias; None for offsets without a bias."""
        gain, offset = self._spread(self.gain.dtype)
        if bias is None and offset is not None:
            return None
        scaled = (weight.to(gain.dtype) * gain.view(-1, *(1 for _ in weight.shape[1:]))).to(weight.dtype)
        if bias is None:
            return scaled, None
        shifted = bias.to(gain.dtype) * gain
        return scaled, (shifted if offset is None else shifted + offset).to(bias.dtype)

    def _spread(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Return scales and offsets for the whole output: those of its parts, ones elsewhere."""
        gain = self.gain.to(dtype)
        if self.gain.shape[0] == self.outputs:
            return gain, None if self.offset is None else self.offset.to(dtype)
        pieces, end = [], 0
        for rows, part in zip(self.rows, gain.chunk(len(self.rows)), strict=True):
            pieces += [gain.new_ones(rows.start - end), part]
            end = rows.stop
        return torch.cat([*pieces, gain.new_ones(self.outputs - end)]), None


def _parameter_refused(name: str) -> PlanError:
    """Return the error for a parameter site."""
    return PlanError(f"`{name}` serves modules, but this is a parameter. Name the module whose output it should scale.")
