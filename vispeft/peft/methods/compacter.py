"""Compacter (Karimi Mahabadi et al. 2021, https://arxiv.org/abs/2106.04647): adapters of Kronecker products."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from vispeft_kernels.adapter import ACTIVATIONS

from vispeft.errors import PlanError
from vispeft.peft.methods.base import Delta, Method, WeightDelta, at_least, one_of, reference_tensor, trainable
from vispeft.peft.methods.composed_adapter import ComposedAdapter
from vispeft.peft.methods.context import Context

# standard deviation of the shared matrices at the start, as in the authors' code
_SHARED_STD = 0.01


@dataclass(frozen=True)
class Compacter(Method):
    """`y + up(act(down(y)))`, where each weight is the sum of n Kronecker products `A_i (x) (s_i t_i)` (equation 8).

    The n matrices A_i [n, n] are the same in both maps of all sites of equal options. The low-rank factors s_i and t_i
    belong to one map of one site; t_i of `up` starts at zero, where the paper draws it at random.

    width: features between the two maps
    n: summands, which divides the width and the features of every site
    rank: columns of s_i and rows of t_i
    activation: gelu (exact), relu or silu
    """

    name: ClassVar[str] = "compacter"
    merges: ClassVar[bool] = False
    width: int = 24
    n: int = 4
    rank: int = 1
    activation: str = "gelu"

    def __post_init__(self) -> None:
        for option in ("width", "n", "rank"):
            at_least(option, getattr(self, option), 1)
        if self.width % self.n:
            raise PlanError(f"`n` must divide `width`, which is {self.width}, but is {self.n}.")
        one_of("activation", self.activation, ACTIVATIONS)

    def for_module(self, module: nn.Module, context: Context) -> Delta:
        """Return the adapter for any module whose output width is known."""
        like = reference_tensor(module)
        return CompacterDelta(self, module, context.shared(lambda: SharedMatrices(self.n, like)))

    def for_parameter(self, parameter: Tensor, context: Context) -> WeightDelta:
        """Refuse every parameter: an adapter acts on outputs."""
        raise PlanError(
            "`compacter` serves modules, but this is a parameter. Name the module whose output it should follow."
        )


class SharedMatrices(nn.Module):
    """The matrices `a` [n, n, n] of all sites, normal with a standard deviation of 0.01."""

    def __init__(self, n: int, like: Tensor) -> None:
        super().__init__()
        self.a = trainable(n, n, n, like=like)
        nn.init.normal_(self.a, std=_SHARED_STD)


class CompacterDelta(ComposedAdapter):
    """Factors of both maps: `up_t` is zero at the start, the others are Glorot-uniform with a gain of sqrt(2).

    down_s, up_s: s_i [n, d / n, r] and [n, w / n, r]
    down_t, up_t: t_i [n, r, w / n] and [n, r, d / n]
    """

    def __init__(self, method: Compacter, base: nn.Module, shared: SharedMatrices) -> None:
        super().__init__(method, base, method.width, method.activation)
        n, rank, like = method.n, method.rank, reference_tensor(base)
        if self.features % n:
            raise PlanError(f"`n` must divide the site's {self.features} outputs, but is {n}.")
        features, width = self.features // n, method.width // n
        self.shared = shared
        self.down_s, self.down_t = trainable(n, features, rank, like=like), trainable(n, rank, width, like=like)
        self.up_s, self.up_t = trainable(n, width, rank, like=like), trainable(n, rank, features, like=like)
        for factors in (self.down_s, self.down_t, self.up_s):
            for factor in factors.data:
                nn.init.xavier_uniform_(factor, gain=math.sqrt(2))

    def weights(self) -> tuple[Tensor, Tensor]:
        """Return the sums of Kronecker products as weights of `down` [w, d] and `up` [d, w]."""
        a = self.shared.a
        return _summed(a, self.down_s @ self.down_t), _summed(a, self.up_s @ self.up_t)


def _summed(a: Tensor, b: Tensor) -> Tensor:
    """Return the transpose of the sum of `A_i (x) B_i`. a: [n, n, n]; b: [n, in / n, out / n]; result: [out, in]."""
    n, rows, columns = b.shape
    return torch.einsum("iab,icd->bdac", a, b).reshape(n * columns, n * rows)
