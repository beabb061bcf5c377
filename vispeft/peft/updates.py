"""Updates of a model's weights: the difference that its deltas make to each matrix, and its singular values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from vispeft.peft.inject import attached
from vispeft.peft.merge import merged_values
from vispeft.peft.methods.base import Delta
from vispeft.peft.wrappers import unwrapped

# singular values below this share of the largest are rounding
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Update:
    """Change of one weight by fine-tuning.

    name: of the parameter in the base model
    methods: of the deltas that make the change; empty for a parameter trained in full
    rank: the largest rank of these methods that have one
    weight: value of the base [out, in], float32; a convolution's kernel is flattened to [out, in * kh * kw]
    change: what is added to it, of the same shape
    """

    name: str
    methods: tuple[str, ...]
    rank: int | None
    weight: Tensor
    change: Tensor

    @cached_property
    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """U [out, k], singular values [k] in falling order and V^T [k, in] of the change, without those of rounding."""
        u, values, vt = torch.linalg.svd(self.change, full_matrices=False)
        kept = int((values > values[:1] * _ROUNDING).sum())
        return u[:, :kept], values[:kept], vt[:kept]


@dataclass(frozen=True)
class Spectrum:
    """Singular values of one update, and its place in the base's weight (Hu et al. 2021, section 7; arXiv:2106.09685).

    values: singular values of the change, falling
    effective_rank: exp of the entropy of the shares `values / sum(values)` (Roy and Vetterli 2007)
    energy_rank: least number of leading directions that hold 0.9 of the change's squared norm
    relative_norm: Frobenius norm of the change over that of the base's weight
    amplification: norm of the change over that of the base's weight, both in the change's leading directions, the
        factor of section 7.3; None where the base has nothing there
    share_in_top: share of the change's squared norm inside as many top directions of the base's weight
    share_by_chance: the same for random directions
    """

    values: tuple[float, ...]
    effective_rank: float
    energy_rank: int
    relative_norm: float
    amplification: float | None
    share_in_top: float
    share_by_chance: float


@torch.no_grad()
def weight_updates(model: nn.Module, base: Mapping[str, Tensor]) -> tuple[list[Update], dict[str, str]]:
    """Return the updates of an adapted model's matrices in its order, and why some deltas are no update of a weight.

    base: parameters of the model before the adapter file was read, for those trained in full; of another shape, such
        as class rows of another number, they are left out
    """
    model = unwrapped(model)
    changes, refused = merged_values(model)
    names = {id(parameter): name for name, parameter in model.named_parameters(remove_duplicate=False)}
    deltas: dict[str, list[object]] = {}
    for item in attached(model):
        site = f"{item.site}.weight" if isinstance(item.delta, Delta) else item.site
        deltas.setdefault(site, []).append(item.delta.method)
    updates: dict[str, Update] = {}
    for change in changes:
        name = _plain(names.get(id(change.parameter), ""))
        if not name:
            owner = next(prefix for prefix, module in model.named_modules() if module is change.owner)
            name = f"{owner}.{change.name}" if owner else change.name
        methods = deltas.get(name, [])
        ranks = [rank for method in methods if isinstance(rank := getattr(method, "rank", None), int)]
        kinds = tuple(dict.fromkeys(str(getattr(method, "name", "")) for method in methods))
        _add(updates, Update(name, kinds, max(ranks, default=None), *_matrices(change.parameter, change.value)))
    for name, parameter in model.named_parameters():
        before = base.get(name)
        if name not in updates and parameter.requires_grad and before is not None and before.shape == parameter.shape:
            _add(updates, Update(name, (), None, *_matrices(before, parameter)))
    order = {name: place for place, name in enumerate(base)}
    return sorted(updates.values(), key=lambda update: order.get(update.name, len(order))), refused


def spectrum(update: Update) -> Spectrum:
    """Return the singular values of an update that is not zero, and its place in the base's weight."""
    u, values, vt = update.factors
    shares = values / values.sum()
    k = _energy_rank(values)
    inside = torch.linalg.matrix_norm(u[:, :k].T @ update.weight @ vt[:k].T)
    base_u, _, base_vt = torch.linalg.svd(update.weight, full_matrices=False)
    in_top = base_u[:, :k].T @ update.change @ base_vt[:k].T
    total = torch.linalg.vector_norm(values)
    outputs, inputs = update.weight.shape
    return Spectrum(
        values=tuple(values.tolist()),
        effective_rank=float(torch.exp(-(shares * shares.log()).sum())),
        energy_rank=k,
        relative_norm=float(total / torch.linalg.matrix_norm(update.weight).clamp(min=1e-12)),
        amplification=float(torch.linalg.vector_norm(values[:k]) / inside) if inside else None,
        share_in_top=float((in_top**2).sum() / total**2),
        share_by_chance=k * k / (outputs * inputs),
    )


def overlap(first: Update, second: Update) -> float:
    """Return how far the smaller of two updates' input directions lie in the other's: 0 (nowhere) to 1 (within).

    Hu et al. 2021, equation 4: `||V1 V2^T||^2 / min(i, j)`, with the leading directions of both, which hold 0.9 of
    their squared norm.
    """
    v1, v2 = (update.factors[2][: _energy_rank(update.factors[1])] for update in (first, second))
    return float(((v1 @ v2.T) ** 2).sum() / min(len(v1), len(v2)))


def _energy_rank(values: Tensor) -> int:
    """Return the least number of leading singular values that hold 0.9 of the sum of squares."""
    squares = values.double() ** 2
    return min(len(values), int((squares.cumsum(0) < 0.9 * squares.sum()).sum()) + 1)


def _add(updates: dict[str, Update], update: Update) -> None:
    """Add an update of a matrix that is not zero."""
    if min(update.change.shape) > 1 and bool(update.change.any()):
        updates[update.name] = update


def _matrices(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weight and its change as float32 matrices [out, rest]; of a vector, [1, n]."""
    before, after = (tensor.detach().float().cpu() for tensor in (before, after))
    before, after = (tensor.flatten(1) if tensor.ndim > 1 else tensor.reshape(1, -1) for tensor in (before, after))
    return before, after - before


def _plain(name: str) -> str:
    """Return the name that a parameter has without the parametrization that holds its deltas."""
    return name.replace("parametrizations.", "").removesuffix(".original")
