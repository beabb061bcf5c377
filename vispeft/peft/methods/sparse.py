"""Sparse updates: single weights that scores choose.

FISH Mask (Sung et al. 2021, https://arxiv.org/abs/2111.09839), SPT (He et al. 2023, https://arxiv.org/abs/2303.08566)
and GPS (Zhang et al. 2024, https://arxiv.org/abs/2312.10136) differ in the scores, and in the sets of weights from
which the highest ones are chosen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft.methods.base import Delta, WeightDelta, at_least, one_of, trainable
from vispeft.peft.methods.context import Context
from vispeft.peft.methods.scored import Scored
from vispeft.peft.methods.weight_update import ConvUpdate, LinearUpdate, ParameterUpdate, Update, UpdateMethod
from vispeft.peft.quantization.kinds import frozen_weight
from vispeft.peft.targets import Site

RULES = ("magnitude", "gradient", "fisher", "gps")


@dataclass(frozen=True)
class Sparse(UpdateMethod, Scored):
    """`W + S`, with trained entries of S at the weights of highest score, zero at the start, and no others.

    The score of a weight w, with the gradients g of single images, is |w| for `magnitude`, the sum of g ** 2 for
    `fisher`, which is the empirical Fisher information of FISH Mask and the sensitivity of SPT (section 3.1), and
    |sum of g| for `gradient` and `gps`. The budget holds over all sites of equal options together. For `gps` it holds
    for each row of a weight, the connections of one neuron, which gets one entry at least.

    With `rank`, a site that would get as many entries as a low-rank product of that rank has parameters gets this
    product in their place (SPT, section 3.2). The budget counts the parameters of the product, as in the authors' code.

    The code of SPT squares the gradients of batches, and a product takes the place of a fifth as many entries there.
    GPS takes the gradients of a supervised contrastive loss. Here they are those of the training loss.

    budget: part of the weights that is trained
    rule: `magnitude`, `gradient`, `fisher` or `gps`
    rank: of the low-rank products; without it there are entries alone
    images: training images whose gradients make the scores
    chosen: number of trained values of each site, which the choice writes into the plan of an adapter file; by hand,
        the sites get so many entries by magnitude
    """

    name: ClassVar[str] = "sparse"
    budget: float = 0.005
    rule: str = "fisher"
    rank: int | None = None
    images: int = 64
    chosen: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.budget <= 1:
            raise PlanError(f"`budget` must be above 0 and at most 1, a part of the weights, but is {self.budget}.")
        one_of("rule", self.rule, RULES)
        at_least("images", self.images, 1)
        if self.rank is not None:
            at_least("rank", self.rank, 1)
            if self.rule == "gps":
                raise PlanError("`rank` must be left out with `rule: gps`, which has entries in every row of a weight.")
        if self.chosen is not None:
            at_least("chosen", self.chosen, 0)

    @property
    def num_images(self) -> int:
        """Number of training images whose gradients make the scores."""
        return self.images

    @property
    def is_chosen(self) -> bool:
        """True where the weights are chosen."""
        return self.chosen is not None

    def update_of(self, weight: Tensor, context: Context) -> Update:
        """Return the update of the weight, chosen already where that needs no data."""
        if self.chosen is not None:
            return self._chosen_update(weight, _largest(weight.detach().abs().flatten(), self.chosen))
        if self.rule == "magnitude":
            every = context.shared(lambda: _ByMagnitude(self, context.sites))
            return self._chosen_update(weight, every.indices[context.index])
        return Unchosen(weight, self._allotment(weight, context))

    def for_module(self, module: nn.Module, context: Context) -> Delta:
        """Return the delta for a linear map or a convolution."""
        delta = super().for_module(module, context)
        _record(delta)
        return delta

    def for_parameter(self, parameter: Tensor, context: Context) -> WeightDelta:
        """Return the delta for a matrix [out, in] or a convolution kernel [out, in, kh, kw]."""
        delta = super().for_parameter(parameter, context)
        _record(delta)
        return delta

    def accumulate(self, score: Tensor, gradient: Tensor) -> None:
        """Add the gradient of one image, or its square, to the score of a weight, in place."""
        score.add_(gradient.square() if self.rule == "fisher" else gradient)

    def choose(self, scores: Sequence[Tensor]) -> list[Tensor]:
        """Return the flat indices of the weights with the highest absolute scores, by site."""
        flat = [score.abs().flatten() for score in scores]
        if self.rule == "gps":
            return [self._of_each_row(one.view(len(score), -1)) for one, score in zip(flat, scores, strict=True)]
        sizes = [one.numel() for one in flat]
        every = torch.cat(flat)
        limits = [_num_factors(score, self.rank) for score in scores] if self.rank is not None else None
        picked = _largest(every, self._count(every, sizes, limits))
        ends = torch.tensor(sizes, device=picked.device).cumsum(0)
        counts = torch.bincount(torch.bucketize(picked, ends, right=True), minlength=len(sizes)).tolist()
        starts = [0, *ends.tolist()]
        return [part - start for part, start in zip(torch.split(picked, counts), starts[:-1], strict=True)]

    def set_choice(self, delta: nn.Module, weight: Tensor, indices: Tensor) -> None:
        """Give the delta entries at the indices, or a low-rank product in their place, in place."""
        assert isinstance(delta, LinearUpdate | ConvUpdate | ParameterUpdate)
        delta.update = self._chosen_update(weight, indices)
        _record(delta)

    def restore_choice(self, delta: nn.Module, weight: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Give the delta entries or a product of the sizes of saved ones, in place."""
        assert isinstance(delta, LinearUpdate | ConvUpdate | ParameterUpdate)
        if "update.indices" in tensors:
            delta.update = Entries(weight, tensors["update.indices"])
        elif "update.a" in tensors:
            delta.update = Product(weight, len(tensors["update.a"]))
        _record(delta)

    def _chosen_update(self, weight: Tensor, indices: Tensor) -> Update:
        """Return the entries at the indices, or the product that takes their place."""
        if self.rank is not None and len(indices) >= _num_factors(weight, self.rank):
            return Product(weight, self.rank)
        return Entries(weight, indices)

    def _allotment(self, weight: Tensor, context: Context) -> int:
        """Return the part of the budget that a site has by its size alone, as long as nothing is chosen."""
        if self.rule == "gps":
            return weight.shape[0] * self._per_row(weight[0].numel())
        sizes = [_weight_of(site).numel() for site in context.sites]
        before, after = sum(sizes[: context.index]), sum(sizes[: context.index + 1])
        # rounded sums, so that the sites together have the budget exactly
        return round(self.budget * after) - round(self.budget * before)

    def _per_row(self, num_columns: int) -> int:
        """Return the entries of each row."""
        return max(1, round(self.budget * num_columns))

    def _of_each_row(self, scores: Tensor) -> Tensor:
        """Return the flat indices of the highest scores of each row. scores: [out, in]"""
        num_rows, num_columns = scores.shape
        columns = scores.topk(self._per_row(num_columns), dim=1).indices
        flat = columns + torch.arange(num_rows, device=scores.device)[:, None] * num_columns
        return flat.flatten().sort().values

    def _count(self, scores: Tensor, sizes: Sequence[int], limits: Sequence[int] | None) -> int:
        """Return the number of weights to choose among all, so that the trained values fit into the budget.

        limits: parameters of the product of each site, the most values that the site can have
        """
        budget = round(self.budget * len(scores))
        if limits is None:
            return budget
        # by falling scores, the site of each weight
        site_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(scores.device)
        order = site_of[scores.argsort(descending=True, stable=True)]
        largest = torch.tensor(limits, device=scores.device)
        low, high = budget, len(scores)
        while low < high:
            middle = (low + high + 1) // 2
            counts = torch.bincount(order[:middle], minlength=len(sizes))
            if int(torch.minimum(counts, largest).sum()) <= budget:
                low = middle
            else:
                high = middle - 1
        return low


class Entries(Update):
    """Trained entries `values` [k], zero at the start, at `indices` [k] of the flat weight."""

    def __init__(self, weight: Tensor, indices: Tensor) -> None:
        super().__init__()
        self.shape = (weight.shape[0], weight[0].numel())
        # half the size in files, for all weights that have fewer than 2 ** 31 entries
        dtype = torch.int32 if weight.numel() <= torch.iinfo(torch.int32).max else torch.int64
        self.register_buffer("indices", indices.to(weight.device, dtype, copy=True))
        self.values = trainable(len(indices), like=weight)

    def forward(self) -> Tensor:
        """Return the update [out, in]."""
        dense = self.values.new_zeros(self.shape[0] * self.shape[1])
        return dense.index_add(0, self.get_buffer("indices").long(), self.values).view(self.shape)


class Product(Update):
    """Factors `a` [r, in], Kaiming-uniform as in LoRA, and `b` [out, r], zero, in the place of many entries."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.a = trainable(rank, weight[0].numel(), like=weight)
        self.b = trainable(weight.shape[0], rank, like=weight)
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self) -> Tensor:
        """Return the update [out, in]."""
        return self.b @ self.a


class Unchosen(Update):
    """Parameters of a site whose weights are not chosen yet, for counts before training."""

    def __init__(self, weight: Tensor, count: int) -> None:
        super().__init__()
        self.values = trainable(count, like=weight)

    def forward(self) -> Tensor:
        """Refuse to run."""
        raise PlanError(
            "The weights of `sparse` are not chosen yet. Call `vispeft.choose_weights(model, losses)` after `inject` "
            "and before the first forward pass, or use `rule: magnitude`, which needs no data."
        )


class _ByMagnitude:
    """The choice of a whole group by magnitude, which the sites share while they are built."""

    def __init__(self, method: Sparse, sites: Sequence[Site]) -> None:
        self.indices = method.choose([_weight_of(site).detach().float() for site in sites])


def _record(delta: nn.Module) -> None:
    """Write the number of chosen values into the method of a delta, from which a file rebuilds it."""
    assert isinstance(delta, LinearUpdate | ConvUpdate | ParameterUpdate)
    assert isinstance(delta.method, Sparse)
    if not isinstance(delta.update, Unchosen):
        delta.method = replace(delta.method, chosen=sum(values.numel() for values in delta.update.parameters()))


def _largest(scores: Tensor, count: int) -> Tensor:
    """Return the ascending indices of the highest scores. scores: flat"""
    if count > len(scores):
        raise PlanError(f"`chosen` must be at most {len(scores)}, the numbers of this weight, but is {count}.")
    return scores.topk(count).indices.sort().values


def _num_factors(weight: Tensor, rank: int) -> int:
    """Return the parameters of a low-rank product for a weight."""
    return rank * (weight.shape[0] + weight[0].numel())


def _weight_of(site: Site) -> Tensor:
    """Return the weight that a delta at a site changes."""
    if site.parameter is not None:
        return site.module.get_parameter(site.parameter)
    assert isinstance(site.module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return frozen_weight(site.module)
