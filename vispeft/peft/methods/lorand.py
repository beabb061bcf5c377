"""LoRand (Yin et al., CVPR 2023, "1% VS 100%: Parameter-Efficient Low Rank Adapter for Dense Predictions")."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from vispeft_kernels.adapter import ACTIVATIONS

from vispeft.errors import PlanError
from vispeft.peft.methods.base import Delta, Method, WeightDelta, at_least, one_of, reference_tensor, trainable
from vispeft.peft.methods.composed_adapter import ComposedAdapter
from vispeft.peft.methods.context import Context


@dataclass(frozen=True)
class LoRand(Method):
    """`y + up(act(down(y)))`, where the weights are the sums of `P_i K_i Q_i` and of `P'_i K_i Q'_i` (section 3.2).

    Both maps share the kernels K_i. All Q'_i start at zero, where the paper draws them at random.

    width: features between the two maps
    rank: rows and columns of each K_i, the paper's beta
    branches: products in each sum, the paper's alpha
    activation: gelu (exact), relu or silu
    """

    name: ClassVar[str] = "lorand"
    merges: ClassVar[bool] = False
    width: int
    rank: int = 8
    branches: int = 2
    activation: str = "gelu"

    def __post_init__(self) -> None:
        for option in ("width", "rank", "branches"):
            at_least(option, getattr(self, option), 1)
        one_of("activation", self.activation, ACTIVATIONS)

    def for_module(self, module: nn.Module, context: Context) -> Delta:
        """Return the adapter for any module whose output width is known."""
        return LoRandDelta(self, module)

    def for_parameter(self, parameter: Tensor, context: Context) -> WeightDelta:
        """Refuse every parameter: an adapter acts on outputs."""
        raise PlanError(
            "`lorand` serves modules, but this is a parameter. Name the module whose output it should follow."
        )


class LoRandDelta(ComposedAdapter):
    """Factors of the `b` branches, where r is the rank; `up_q` is zero at the start, the others are uniform.

    down_p, up_p: P_i [b, d, r] and P'_i [b, w, r]
    down_q, up_q: Q_i [b, r, w] and Q'_i [b, r, d]
    kernel: K_i [b, r, r]
    """

    def __init__(self, method: LoRand, base: nn.Module) -> None:
        super().__init__(method, base, method.width, method.activation)
        branches, width, rank, like = method.branches, method.width, method.rank, reference_tensor(base)
        self.down_p = trainable(branches, self.features, rank, like=like)
        self.down_q = trainable(branches, rank, width, like=like)
        self.kernel = trainable(branches, rank, rank, like=like)
        self.up_p = trainable(branches, width, rank, like=like)
        self.up_q = trainable(branches, rank, self.features, like=like)
        for factors in (self.down_p, self.down_q, self.kernel, self.up_p):
            for factor in factors.data:
                nn.init.kaiming_uniform_(factor, a=math.sqrt(5))
        nn.init.uniform_(self.down_b, -(self.features**-0.5), self.features**-0.5)

    def weights(self) -> tuple[Tensor, Tensor]:
        """Return the sums of products as weights of `down` [w, d] and `up` [d, w]."""
        down = (self.down_p @ self.kernel @ self.down_q).sum(0)
        up = (self.up_p @ self.kernel @ self.up_q).sum(0)
        return down.t().contiguous(), up.t().contiguous()
