"""Rein (Wei et al., CVPR 2024, https://arxiv.org/abs/2312.04265): trained tokens that refine the features of blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft.methods.base import Delta, Method, WeightDelta, at_least, reference_tensor, trainable, widths
from vispeft.peft.methods.context import Context
from vispeft.peft.methods.layout import ChannelDim, laid_out_like, refuse_sequence_first


@dataclass(frozen=True)
class Rein(Method):
    """`y + mlp_f(y + S mlp_t(T))` with `S = softmax(y T^t / sqrt(d))` over m tokens T (equations 3 to 5 and 9).

    The first token has a part of S but gives no features, so that a position may take nothing from the tokens. T is a
    product `A B` of low rank. `mlp_t` and `mlp_f` are linear maps that all sites of equal options share. `mlp_f` starts
    at zero: the option `zero_mlp_delta_f` of the authors' code, whose default is a random `mlp_f` and a trained scale
    of 0.001. Class and register tokens are left as they are. The link from tokens to a decoder's queries is left out.

    tokens: m
    rank: columns of A and rows of B; without it T is one matrix
    shared: False gives each site maps of its own
    """

    name: ClassVar[str] = "rein"
    merges: ClassVar[bool] = False
    tokens: int = 100
    rank: int | None = 16
    shared: bool = True

    def __post_init__(self) -> None:
        at_least("tokens", self.tokens, 2)
        if self.rank is not None:
            at_least("rank", self.rank, 1)

    def for_module(self, module: nn.Module, context: Context) -> Delta:
        """Return the tokens of any module whose output width is known and that gives tokens or a map."""
        refuse_sequence_first(module, self.name)
        like, features = reference_tensor(module), widths(module).outputs
        maps = context.shared(lambda: TokenMaps(features, like)) if self.shared else TokenMaps(features, like)
        if maps.features != features:
            raise PlanError(
                f"The sites of `rein` share their maps, which have {maps.features} features, but this site has "
                f"{features} outputs. Set `shared` to false, or give sites of another width options of their own."
            )
        return ReinDelta(self, module, context, maps)

    def for_parameter(self, parameter: Tensor, context: Context) -> WeightDelta:
        """Refuse every parameter: the tokens act on outputs."""
        raise PlanError("`rein` serves modules, but this is a parameter. Name the block whose output it should refine.")


class TokenMaps(nn.Module):
    """Linear maps of tokens, `token_w` [d, d] and `token_b` [d], and of features, `feature_w` and `feature_b`, zero."""

    def __init__(self, features: int, like: Tensor) -> None:
        super().__init__()
        self.features = features
        self.token_w, self.token_b = trainable(features, features, like=like), trainable(features, like=like)
        self.feature_w, self.feature_b = trainable(features, features, like=like), trainable(features, like=like)
        nn.init.kaiming_uniform_(self.token_w, a=math.sqrt(5))
        nn.init.uniform_(self.token_b, -(features**-0.5), features**-0.5)


class ReinDelta(Delta):
    """Tokens of one site: `a` [m, r] and `b` [r, d], or without a rank `tokens` [m, d]; uniform in Xavier's bound."""

    def __init__(self, method: Rein, base: nn.Module, context: Context, maps: TokenMaps) -> None:
        super().__init__(method)
        self.channel_dim, self.maps, self.sizes = ChannelDim(widths(base)), maps, context.map_sizes()
        features, like = maps.features, reference_tensor(base)
        self.tokens: nn.Parameter | None = None
        self.a: nn.Parameter | None = None
        self.b: nn.Parameter | None = None
        if method.rank is None:
            self.tokens = _uniform(math.sqrt(3 / features), method.tokens, features, like=like)
        else:
            # as for prompts, d stands for the numbers of a patch in the authors' bound
            bound = math.sqrt(6 / (features + math.sqrt(features * method.rank)))
            self.a = _uniform(bound, method.tokens, method.rank, like=like)
            self.b = _uniform(bound, method.rank, features, like=like)

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return y with refined patches. y: tokens [B, N, d] or maps [B, d, H, W] or [B, H, W, d]."""
        if y.ndim == 3:
            num_prefix = self.sizes.grid_of(y).num_prefix
            patches = y[:, num_prefix:]
            return laid_out_like(y, torch.cat([y[:, :num_prefix], patches + self._update(patches)], dim=1))
        if y.ndim != 4:
            raise PlanError(
                f"`rein` needs tokens or maps as output of its module, but it is {list(y.shape)}. Name another module."
            )
        dim = self.channel_dim.of(y)
        features = y.movedim(dim, -1)
        return laid_out_like(y, (features + self._update(features)).movedim(-1, dim))

    def merged(self, weight: Tensor, bias: Tensor | None) -> None:
        """Return None: a softmax is not linear."""
        return

    def _update(self, features: Tensor) -> Tensor:
        """Return `mlp_f(f + S mlp_t(T))` of features f [..., d], in their dtype."""
        dtype, maps = features.dtype, self.maps
        tokens = self._all_tokens().to(dtype)
        similarity = F.linear(features, tokens) * maps.features**-0.5
        values = F.linear(tokens[1:], maps.token_w.to(dtype), maps.token_b.to(dtype))
        refined = features + similarity.softmax(-1)[..., 1:].to(dtype) @ values.to(dtype)
        return F.linear(refined, maps.feature_w.to(dtype), maps.feature_b.to(dtype)).to(dtype)

    def _all_tokens(self) -> Tensor:
        """Return the tokens T [m, d]."""
        if self.tokens is not None:
            return self.tokens
        assert self.a is not None
        assert self.b is not None
        return self.a @ self.b


def _uniform(bound: float, *shape: int, like: Tensor) -> nn.Parameter:
    """Return a parameter that is uniform within +-bound."""
    parameter = trainable(*shape, like=like)
    nn.init.uniform_(parameter, -bound, bound)
    return parameter
