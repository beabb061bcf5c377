"""Windows of a map's tokens, gathered and returned by index, with tokens of padding that are all alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.models.swin_transformer import window_partition
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Windows:
    """Places of the N = H W tokens of a map in its windows; windows at the border have cells of padding.

    tokens: [windows * cells] int64, the token in each cell; N in padding
    cells: [N] int64, the cell of each token
    padding: [P] int64, the cells of padding
    """

    tokens: Tensor
    cells: Tensor
    padding: Tensor

    @classmethod
    def of(
        cls, size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], device: torch.device
    ) -> Windows:
        """Return the windows of a map that is padded at the right and bottom, then shifted to the left and top."""
        height, width = size
        count = height * width
        places = torch.arange(count, device=device).view(1, height, width, 1)
        places = F.pad(places, (0, 0, 0, -width % window[1], 0, -height % window[0]), value=count)
        places = torch.roll(places, (-shift[0], -shift[1]), dims=(1, 2))
        tokens = window_partition(places, window).flatten()
        # each token is once among them; no sort, which ONNX lacks
        cells = tokens.new_zeros(count + 1).scatter(0, tokens, torch.arange(len(tokens), device=device))
        padding = (tokens == count).int().topk(len(tokens) - count).indices
        return cls(tokens, cells[:count], padding)

    def gather(self, x: Tensor) -> Tensor:
        """Return the cells [B, windows * cells, C] of tokens [B, N, C], with one more token if there is padding."""
        if torch.compiler.is_compiling():
            return x.index_select(1, self.tokens)
        y: Tensor = _Gather.apply(x, self.tokens, self.cells, self.padding)
        return y

    def give_back(self, x: Tensor) -> Tensor:
        """Return the tokens [B, N, C] of cells [B, windows * cells, C]; those of padding are left out."""
        if torch.compiler.is_compiling():
            return x.index_select(1, self.cells)
        y: Tensor = _GiveBack.apply(x, self.tokens, self.cells, self.padding)
        return y


class _Gather(torch.autograd.Function):
    """`index_select` by tokens; torch's own backward adds rows one by one, though no row but the padding's is twice."""

    @staticmethod
    def forward(x: Tensor, tokens: Tensor, cells: Tensor, padding: Tensor) -> Tensor:
        return x.index_select(1, tokens)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _, cells, padding = ctx.saved_tensors
        grad_x = grad.index_select(1, cells)
        if len(padding):
            grad_x = torch.cat((grad_x, grad.index_select(1, padding).sum(1, keepdim=True)), dim=1)
        return grad_x, None, None, None


class _GiveBack(torch.autograd.Function):
    """`index_select` by cells, whose backward is that by tokens."""

    @staticmethod
    def forward(x: Tensor, tokens: Tensor, cells: Tensor, padding: Tensor) -> Tensor:
        return x.index_select(1, cells)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tokens, _, padding = ctx.saved_tensors
        if len(padding):
            grad = torch.cat((grad, grad.new_zeros(len(grad), 1, grad.shape[2])), dim=1)
        return grad.index_select(1, tokens), None, None, None
