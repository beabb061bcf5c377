"""Starts of LoRA from the pretrained weight itself: `W + scale * (B A - B0 A0)`, with A and B from A0 and B0 on.

PiSSA (Meng et al. 2024, https://arxiv.org/abs/2404.02948, section 3) takes the largest singular values of W;
MiLoRA (Wang et al. 2024, https://arxiv.org/abs/2406.09044, section 3) and SoMA (Yun et al. 2025,
https://arxiv.org/abs/2412.04077) take the smallest; OLoRA (Buyukakyuz 2024, https://arxiv.org/abs/2406.01775,
algorithm 1) takes the first columns of Q and rows of R. The papers put `W - scale * B0 A0` in the place of W. Here W
stays as it is, and the same function is computed in one update of twice the rank,

    B A - B0 A0 = (B - B0) A + B0 (A - A0)

in which one factor of either product is exactly zero at the start. A0 and B0 are frozen buffers and part of the adapter
file: a decomposition on another machine may have other signs, or other vectors where singular values are near.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft.methods.base import full_precision
from vispeft.peft.methods.convolution import Conv
from vispeft.peft.methods.low_rank import ConvFactors, LinearFactors, LowRank, WeightFactors, add_product
from vispeft.peft.methods.recomputed_inputs import RecomputedInputs
from vispeft.peft.quantization.kinds import frozen_weight


def _largest(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return A0 and B0 with `scale * B0 A0` the part of a weight by its largest singular values."""
    return _singular(weight, slice(rank), scale)


def _smallest(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return A0 and B0 with `scale * B0 A0` the part of a weight by its smallest singular values."""
    return _singular(weight, slice(min(weight.shape) - rank, None), scale)


def _singular(weight: Tensor, chosen: slice, scale: float) -> tuple[Tensor, Tensor]:
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    _refuse_zeros(values, chosen)
    root = (values[chosen] / abs(scale)).sqrt()
    return root[:, None] * right[chosen], left[:, chosen] * (root if scale > 0 else -root)


def _refuse_zeros(values: Tensor, chosen: slice) -> None:
    """Refuse singular values that are zero but for rounding: factors of zeros would never get a gradient."""
    if values.is_meta:
        return
    bound = values[0] * len(values) * torch.finfo(values.dtype).eps
    if bool((values[chosen] <= bound).any()):
        raise PlanError(
            f"`start` needs a weight with singular values above 0, but only {int((values > bound).sum())} of the "
            f"{len(values)} here are. Use `start: orthogonal` or `start: zero`."
        )


def _orthogonal(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return A0, the first rows of R, and B0, the first columns of Q, of the QR decomposition of a weight."""
    q, r = torch.linalg.qr(weight)
    return r[:rank], q[:, :rank]


STARTS = {"pissa": _largest, "milora": _smallest, "orthogonal": _orthogonal}


class LinearStartedLoRA(LinearFactors):
    """Low-rank update of a linear map from another start, with `a_start` and `b_start` as `a` and `b` at the start."""

    def __init__(self, method: LowRank, start: str, weight: Tensor, recomputed_inputs: RecomputedInputs) -> None:
        super().__init__(method, weight, recomputed_inputs)
        _register_start(self, start, weight)

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return y with the update on the rows of its parts. x: [..., in]; y: [..., out]."""
        return self.update(x, y, base, *changed_factors(self))

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return `W + scale * (B A - B0 A0)`, and the bias as it is."""
        return add_product(weight, *changed_factors(self), self.scale, self.rows), bias


class ConvStartedLoRA(ConvFactors):
    """Low-rank update of a convolution from another start, over flattened kernels."""

    def __init__(self, method: LowRank, start: str, base: Conv) -> None:
        super().__init__(method, base)
        _register_start(self, start, frozen_weight(base))

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return y with the update. x: [B, in, *size]; y: [B, out, *size]."""
        return self.update(x, y, *changed_factors(self))

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return `W + scale * (B A - B0 A0)`, and the bias as it is."""
        return add_product(weight, *changed_factors(self), self.scale, self.rows), bias


class WeightStartedLoRA(WeightFactors):
    """Low-rank update of a parameter from another start."""

    def __init__(self, method: LowRank, start: str, weight: Tensor) -> None:
        super().__init__(method, weight)
        _register_start(self, start, weight)

    def forward(self, weight: Tensor) -> Tensor:
        """Return `W + scale * (B A - B0 A0)` on the rows of its parts."""
        return add_product(weight, *changed_factors(self), self.scale, self.rows)


StartedLoRA = LinearStartedLoRA | ConvStartedLoRA | WeightStartedLoRA


def changed_factors(delta: StartedLoRA) -> tuple[Tensor, Tensor]:
    """Return `[A; A - A0]` [parts * 2 r, ...] and `[B - B0, B0]` [parts * rows of a part, 2 r, ...]."""
    a_start, b_start = delta.get_buffer("a_start"), delta.get_buffer("b_start")
    pieces = zip(*((factor.chunk(len(delta.rows))) for factor in (delta.a, delta.a - a_start)), strict=True)
    return torch.cat([half for pair in pieces for half in pair]), torch.cat([delta.b - b_start, b_start], 1)


@torch.no_grad()
def _register_start(delta: StartedLoRA, start: str, weight: Tensor) -> None:
    """Set A and B to the start of a weight, part by part, and register copies as buffers."""
    parts, rank = len(delta.rows), delta.b.shape[1]
    flat = weight.detach().to(delta.a.dtype).flatten(1)
    largest = min(flat[delta.rows[0]].shape)
    if rank > largest:
        raise PlanError(
            f"`rank` must be at most {largest}, the smaller side of this site, for `start: {start}`, but is {rank}."
        )
    for rows, a, b in zip(delta.rows, delta.a.chunk(parts), delta.b.chunk(parts), strict=True):
        with full_precision(flat):
            a_start, b_start = STARTS[start](flat[rows], rank, delta.scale)
        a.copy_(a_start.view_as(a))
        b.copy_(b_start.view_as(b))
    delta.register_buffer("a_start", delta.a.detach().clone())
    delta.register_buffer("b_start", delta.b.detach().clone())
