"""LoRA on maps whose weight has other axes than [out, in, ...]: transposed convolutions and embeddings."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft.methods.base import Delta, trainable
from vispeft.peft.methods.convolution import pointwise
from vispeft.peft.methods.low_rank import LowRank

_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class TransposedConvLoRA(Delta):
    """Low-rank update of a transposed convolution, whose weight is [in, out / groups, *kernel].

    `a` [r, in] is a map of the channels of one position, and `b` [r, out / groups, *kernel] has the base's geometry:
    the update of the weight is `scale * A^T B` over flattened kernels. Every group of channels has the same B.
    """

    def __init__(self, method: LowRank, base: nn.Module) -> None:
        super().__init__(method)
        assert isinstance(base, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
        _refuse_parts(method, base)
        weight = base.weight
        _check_rank(method.rank, weight.shape[0], weight[0].numel())
        self.scale, self.dropout = method.scale, method.dropout
        self.stride, self.dilation, self.groups = base.stride, base.dilation, base.groups
        self.padding = [int(margin) for margin in base.padding]
        self.a = trainable(method.rank, weight.shape[0], like=weight)
        self.b = trainable(method.rank, *weight.shape[1:], like=weight)
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return y with the low-rank update. x: [B, in, *size]; y: [B, out, *size]."""
        x = F.dropout(x.to(y.dtype), self.dropout, self.training)
        axes = self.b.ndim - 2
        # [groups * r, in / groups, 1, ...], group by group
        down = self.a.view(self.a.shape[0], self.groups, -1).transpose(0, 1).flatten(0, 1).to(y.dtype)
        hidden = pointwise(x, down[(..., *[None] * axes)], self.groups)
        up = torch.cat([self.b.to(y.dtype)] * self.groups)
        margins = self._output_padding(x, y)
        update = _TRANSPOSED[axes](hidden, up, None, self.stride, self.padding, margins, self.groups, self.dilation)
        return torch.add(y, update, alpha=self.scale)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return `W + scale * A^T B` over flattened kernels, and the bias as it is."""
        flat = torch.addmm(weight.flatten(1).to(self.a.dtype), self.a.t(), self.b.flatten(1), alpha=self.scale)
        return flat.view(weight.shape).to(weight.dtype), bias

    def _output_padding(self, x: Tensor, y: Tensor) -> list[int]:
        """Return the rows and columns at the ends that y has beyond the smallest size, which a caller may choose."""
        axes = range(self.b.ndim - 2)
        return [
            y.shape[2 + i]
            - ((x.shape[2 + i] - 1) * self.stride[i] - 2 * self.padding[i])
            - (self.dilation[i] * (self.b.shape[2 + i] - 1) + 1)
            for i in axes
        ]


class EmbeddingLoRA(Delta):
    """Low-rank update of an embedding [n, d]: `b` [n, r] by index and `a` [r, d], so that row i is `W_i + scale B_i A`.

    These are the factors of the weight as a parameter. A padding index keeps its row.
    """

    def __init__(self, method: LowRank, base: nn.Module) -> None:
        super().__init__(method)
        assert isinstance(base, nn.Embedding)
        _refuse_parts(method, base)
        if method.dropout:
            raise PlanError(f"`dropout` must be 0 on an Embedding, whose input is numbers, but is {method.dropout}.")
        if base.max_norm is not None:
            raise PlanError("An Embedding with `max_norm` changes its own weight when it is called. Name another site.")
        _check_rank(method.rank, base.num_embeddings, base.embedding_dim)
        self.scale, self.padding_idx = method.scale, base.padding_idx
        self.a = trainable(method.rank, base.embedding_dim, like=base.weight)
        self.b = trainable(base.num_embeddings, method.rank, like=base.weight)
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return y with the low-rank update. x: indices [...]; y: [..., d]."""
        rows = F.embedding(x, self.b, self.padding_idx).to(y.dtype)
        return torch.add(y, rows @ self.a.to(y.dtype), alpha=self.scale)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return `W + scale * B A`."""
        return torch.addmm(weight.to(self.a.dtype), self.b, self.a, alpha=self.scale).to(weight.dtype), bias


def _refuse_parts(method: LowRank, base: nn.Module) -> None:
    """Refuse parts, which only a fused linear map has."""
    if method.parts:
        raise PlanError(f"`parts` must be empty on a {type(base).__name__}, but is {method.parts!r}.")


def _check_rank(rank: int, *sides: int) -> None:
    """Refuse a rank above the larger side of a weight."""
    if rank > max(sides):
        raise PlanError(f"`rank` must be at most {max(sides)}, the larger side of this site, but is {rank}.")
