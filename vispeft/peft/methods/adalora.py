"""AdaLoRA (Zhang et al. 2023, https://arxiv.org/abs/2303.10512): ranks given to the sites that need them in training.

The update of a map is `B diag(e) A`. Each triplet, an entry of e with its row of A and column of B, has an importance;
those of least importance among all sites get `e = 0`, until a budget of triplets is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft.methods.base import Delta, Scheduled, WeightDelta, at_least, trainable
from vispeft.peft.methods.context import Context
from vispeft.peft.methods.convolution import Conv
from vispeft.peft.methods.low_rank import ConvFactors, LinearFactors, LowRank, WeightFactors, add_product, unserved
from vispeft.peft.methods.recomputed_inputs import RecomputedInputs
from vispeft.peft.quantization.kinds import frozen_weight

# standard deviation of A and B at the start, as in the authors' code
_STD = 0.02


@dataclass(frozen=True)
class AdaLoRA(LowRank):
    """`y + alpha / rank * B(e * A x)` with e from zero; `rank` at the start, `target_rank` on average at the end.

    The options of LoRA, and
    target_rank: mean rank of all sites at the end, per part; half of `rank` where it is not given
    warmup, final: parts of the steps, at the start with all triplets and at the end with the budget reached; between
        them the budget falls by the paper's cubic schedule (equation 12)
    every: steps between two choices of the triplets
    smoothing: of the importance and of its uncertainty over steps (equations 9 and 10)
    """

    name: ClassVar[str] = "adalora"
    target_rank: float | None = None
    warmup: float = 0.1
    final: float = 0.3
    every: int = 10
    smoothing: float = 0.85

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_rank is not None and not 0 < self.target_rank <= self.rank:
            raise PlanError(
                f"`target_rank` must be above 0 and at most `rank`, {self.rank}, but is {self.target_rank}."
            )
        if not (self.warmup >= 0 and self.final >= 0 and self.warmup + self.final < 1):
            raise PlanError(
                f"`warmup` and `final` must be parts of the steps with a sum below 1, but are {self.warmup} and "
                f"{self.final}."
            )
        at_least("every", self.every, 1)
        if not 0 <= self.smoothing < 1:
            raise PlanError(f"`smoothing` must be at least 0 and below 1, but is {self.smoothing}.")

    def for_linear(self, module: nn.Linear, context: Context) -> Delta:
        """Return the delta for a linear map."""
        delta = LinearAdaLoRA(self, frozen_weight(module), context.tables.recomputed_inputs)
        _allocator(self, context).join(delta, delta.triplets)
        return delta

    def for_conv(self, module: Conv, context: Context) -> Delta:
        """Return the delta for a convolution."""
        delta = ConvAdaLoRA(self, module)
        _allocator(self, context).join(delta, delta.triplets)
        return delta

    def for_other(self, module: nn.Module) -> Delta:
        """Refuse a module of another kind."""
        raise unserved(self.name, module, "linear maps, convolutions")

    def for_weight(self, weight: Tensor, context: Context) -> WeightDelta:
        """Return the delta for a matrix [out, in] or a convolution kernel [out, in, kh, kw]."""
        delta = WeightAdaLoRA(self, weight)
        _allocator(self, context).join(delta, delta.triplets)
        return delta


class Triplets(nn.Module):
    """Entries of e with their rows of A and columns of B at one site, and the importance of each.

    delta: has a [parts * r, ...], e [parts * r] and b [parts * rows of a part, r, ...]
    is_kept: [parts * r] bool, the last choice; until then all True
    The other buffers are part of the state of a run, but not of an adapter file.
    """

    def __init__(self, delta: nn.Module, smoothing: float) -> None:
        super().__init__()
        # in a tuple, so that it is no child of its own child
        self._owner = (delta,)
        self.smoothing = smoothing
        a, e, b = self.factors()
        self.num_parts = e.numel() // b.shape[1]
        self.register_buffer("is_kept", torch.ones_like(e, dtype=torch.bool))
        for name, factor in zip("aeb", (a, e, b), strict=True):
            self.register_buffer(f"{name}_sensitivity", torch.zeros_like(factor), persistent=False)
            self.register_buffer(f"{name}_uncertainty", torch.zeros_like(factor), persistent=False)

    def factors(self) -> list[nn.Parameter]:
        """Return a, e and b."""
        return [self._owner[0].get_parameter(name) for name in "aeb"]

    def update(self) -> None:
        """Update the smoothed sensitivity `|w dL/dw|` of each entry and its uncertainty (equations 8 to 10)."""
        for name, factor in zip("aeb", self.factors(), strict=True):
            if factor.grad is None:
                continue
            now = (factor * factor.grad).abs()
            sensitivity, uncertainty = (self.get_buffer(f"{name}_{kind}") for kind in ("sensitivity", "uncertainty"))
            sensitivity.lerp_(now, 1 - self.smoothing)
            uncertainty.lerp_((now - sensitivity).abs(), 1 - self.smoothing)

    def importance(self) -> Tensor:
        """Return the importance of each triplet [parts * r]: that of e plus the means of A's row and B's column."""
        a, e, b = (self.get_buffer(f"{name}_sensitivity") * self.get_buffer(f"{name}_uncertainty") for name in "aeb")
        columns = [part.flatten(2).mean((0, 2)) if part.ndim > 2 else part.mean(0) for part in b.chunk(self.num_parts)]
        return e + a.flatten(1).mean(1) + torch.cat(columns)

    def choose(self, chosen: Tensor, *, is_last: bool) -> None:
        """Set e to zero where a triplet is not chosen, in place; after the last choice for good.

        chosen: [parts * r] bool
        """
        self._owner[0].get_parameter("e").masked_fill_(~chosen, 0)
        if is_last:
            self.get_buffer("is_kept").copy_(chosen)

    def scaled_rows(self) -> Tensor:
        """Return `diag(e) A`, of the kept triplets. An average of e over steps may have values for the others too."""
        a, e, _ = self.factors()
        e_kept = e.masked_fill(~self.get_buffer("is_kept"), 0)
        return a * e_kept.view(-1, *(1 for _ in a.shape[1:]))


class RankAllocator(nn.Module, Scheduled):
    """Choice of the triplets, over all sites of equal methods in a plan."""

    def __init__(self, method: AdaLoRA) -> None:
        super().__init__()
        self.method = method
        # in a list, so that they are no children of their own child
        self.sites: list[Triplets] = []

    def join(self, delta: nn.Module, triplets: Triplets) -> None:
        """Add the triplets of a delta to the budget and become a child of the delta."""
        self.sites.append(triplets)
        delta.add_module("allocator", self)

    @torch.no_grad()
    def on_step(self, step: int, num_steps: int) -> None:
        """Update the importances, and choose the triplets where that is due."""
        # steps that fp16 loss scaling skips have gradients that are not finite
        gradients = [factor.grad for site in self.sites for factor in site.factors() if factor.grad is not None]
        if all(bool(gradient.isfinite().all()) for gradient in gradients):
            for site in self.sites:
                site.update()
        first, last = round(self.method.warmup * num_steps), max(1, round((1 - self.method.final) * num_steps))
        if step == last or (first <= step < last and step % self.method.every == 0):
            self._choose((last - step) / max(last - first, 1))
        elif step > last:
            # the optimizer's momentum moves e although it has no gradient
            for site in self.sites:
                site.choose(site.get_buffer("is_kept"), is_last=False)

    def _choose(self, remaining: float) -> None:
        """Choose the most important triplets of all sites.

        remaining: part of the steps of the cubic schedule that are to come, from 1 to 0
        """
        importance = torch.cat([site.importance() for site in self.sites])
        target = self.method.target_rank if self.method.target_rank is not None else self.method.rank / 2
        end = round(target * sum(site.num_parts for site in self.sites))
        budget = round(end + (importance.numel() - end) * remaining**3)
        chosen = torch.zeros_like(importance, dtype=torch.bool)
        chosen[importance.argsort(descending=True, stable=True)[:budget]] = True
        sizes = [site.get_buffer("is_kept").numel() for site in self.sites]
        for site, of_site in zip(self.sites, torch.split(chosen, sizes), strict=True):
            site.choose(of_site, is_last=remaining == 0)


class LinearAdaLoRA(LinearFactors):
    """Factors of a linear map as in LoRA, both random, and `e` [parts * r], zero."""

    def __init__(self, method: AdaLoRA, weight: Tensor, recomputed_inputs: RecomputedInputs) -> None:
        super().__init__(method, weight, recomputed_inputs)
        self.e = _random_factors(self.a, self.b)
        self.triplets = Triplets(self, method.smoothing)

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return y with the update on the rows of its parts. x: [..., in]; y: [..., out]."""
        return self.update(x, y, base, self.triplets.scaled_rows(), self.b)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return `W + scale * B diag(e) A`, and the bias as it is."""
        return add_product(weight, self.triplets.scaled_rows(), self.b, self.scale, self.rows), bias


class ConvAdaLoRA(ConvFactors):
    """Factors of a convolution as in LoRA, both random, and `e` [r], zero."""

    def __init__(self, method: AdaLoRA, base: Conv) -> None:
        super().__init__(method, base)
        self.e = _random_factors(self.a, self.b)
        self.triplets = Triplets(self, method.smoothing)

    def forward(self, x: Tensor, y: Tensor, base: nn.Module | None) -> Tensor:
        """Return y with the update. x: [B, in, *size]; y: [B, out, *size]."""
        return self.update(x, y, self.triplets.scaled_rows(), self.b)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return `W + scale * B diag(e) A` over flattened kernels, and the bias as it is."""
        return add_product(weight, self.triplets.scaled_rows(), self.b, self.scale, self.rows), bias


class WeightAdaLoRA(WeightFactors):
    """Factors of a parameter as in LoRA, both random, and `e` [parts * r], zero."""

    def __init__(self, method: AdaLoRA, weight: Tensor) -> None:
        super().__init__(method, weight)
        self.e = _random_factors(self.a, self.b)
        self.triplets = Triplets(self, method.smoothing)

    def forward(self, weight: Tensor) -> Tensor:
        """Return `W + scale * B diag(e) A` on the rows of its parts."""
        return add_product(weight, self.triplets.scaled_rows(), self.b, self.scale, self.rows)


def _allocator(method: AdaLoRA, context: Context) -> RankAllocator:
    return context.shared(lambda: RankAllocator(method))


def _random_factors(a: nn.Parameter, b: nn.Parameter) -> nn.Parameter:
    """Draw A and B, in place, and return e, zero."""
    for factor in (a, b):
        nn.init.normal_(factor, std=_STD)
    return trainable(a.shape[0], like=a)
