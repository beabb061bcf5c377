"""Factors of LoRA and DoRA at one site, and their forms in the library where these differ from ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vispeft.errors import PlanError

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass(frozen=True)
class Factors:
    """Low-rank update of one site.

    a: [r, in, ...]
    b: [out, r, ...]
    scale: of their product
    magnitude: lengths of the weight's rows [out], for DoRA
    """

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """Rows of a."""
        return self.a.shape[0]


def summed(terms: Sequence[Factors]) -> Factors:
    """Return one pair of factors for the sum of several updates, with the magnitude of the first."""
    if len(terms) == 1:
        return terms[0]
    scale = terms[0].scale if len({term.scale for term in terms}) == 1 else 1.0
    b = torch.cat([term.b.detach() * (term.scale / scale) for term in terms], dim=1)
    return Factors(torch.cat([term.a.detach() for term in terms]), b, scale, terms[0].magnitude)


def whole_rows(b: Tensor, rows: Sequence[slice], outputs: int) -> Tensor:
    """Return B [outputs, parts * r] of parts [parts * rows of a part, r] block by block, zero elsewhere."""
    parts, rank = len(rows), b.shape[1]
    if rows[0].stop - rows[0].start == outputs:
        return b
    whole = b.new_zeros(outputs, parts * rank, *b.shape[2:])
    for index, (part, values) in enumerate(zip(rows, b.detach().chunk(parts), strict=True)):
        whole[part, index * rank : (index + 1) * rank] = values
    return whole


def to_grouped(pair: Factors, module: Convolution) -> Factors:
    """Return factors of a convolution with groups in the library's form.

    There, A is a convolution without groups, and each group of B reads rows of its own: so A becomes a block for each
    group, zero on the channels of others.
    """
    groups = module.groups
    if groups == 1:
        return pair
    a, rank, inputs = pair.a.detach(), pair.rank, pair.a.shape[1]
    blocks = a.new_zeros(groups, rank, groups, *a.shape[1:])
    blocks[range(groups), :, range(groups)] = a
    return replace(pair, a=blocks.view(groups * rank, groups * inputs, *a.shape[2:]))


def from_grouped(pair: Factors, module: Convolution) -> Factors | None:
    """Return factors of a convolution with groups in our form; None where A reads channels of other groups.

    Here, all groups of channels have the same A.
    """
    groups = module.groups
    if groups == 1:
        return pair
    rank, inputs = pair.rank // groups, module.in_channels // groups
    blocks = pair.a.view(groups, rank, groups, inputs, *pair.a.shape[2:])
    own = blocks[range(groups), :, range(groups)]
    if blocks.count_nonzero() != own.count_nonzero():
        return None
    if (own == own[0]).all():
        return replace(pair, a=own[0])
    rows = pair.b.shape[0] // groups
    b = pair.b.new_zeros(groups, rows, groups, *pair.b.shape[1:])
    b[range(groups), :, range(groups)] = pair.b.view(groups, rows, *pair.b.shape[1:])
    return replace(pair, a=own.flatten(0, 1), b=b.view(groups * rows, groups * rank, *pair.b.shape[2:]))


def row_lengths(weight: Tensor) -> Tensor:
    """Return the length of each row of a weight [out, ...], in float32 at least."""
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    lengths: Tensor = torch.linalg.vector_norm(weight.detach().flatten(1), dim=1, dtype=dtype)
    return lengths


def is_plain_embedding(module: nn.Module) -> bool:
    """Return True for an embedding that gives the rows of its weight as they are."""
    is_plain = isinstance(module, nn.Embedding) and type(module).forward is nn.Embedding.forward
    return is_plain and module.max_norm is None


def check_conv(site: str, module: Convolution, *, has_magnitude: bool) -> None:
    """Refuse a convolution that the library's LoRA (0.21) does not follow: it pads with zeros, without dilation."""
    if any(rate != 1 for rate in module.dilation) or module.padding_mode != "zeros":
        raise PlanError(
            f"The peft library forgets dilation and padding mode: at `{site}`, with dilation {module.dilation} and "
            f"padding {module.padding_mode!r}, it computes another update. Use `save_adapter` and `load_adapter`."
        )
    if module.groups > 1 and has_magnitude:
        raise PlanError(
            f"The peft library has no DoRA for convolutions with groups: `{site}` has {module.groups}. Use "
            "`save_adapter` and `load_adapter`."
        )
