"""Choice of the weights that sparse deltas train, by gradients of a loss before training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft.inject import Attached, attached, base_parameters, switched_off
from vispeft.peft.methods.base import Delta
from vispeft.peft.methods.scored import Scored
from vispeft.peft.wrappers import unwrapped


def methods_to_choose(model: nn.Module) -> list[Scored]:
    """Return the methods of a model whose weights are not chosen yet, without repeats."""
    return list(_groups(model))


def choose_weights(model: nn.Module, losses: Iterable[Tensor], method: Scored | None = None) -> None:
    """Choose the weights that the deltas of methods such as `Sparse` train, in place.

    Call it once, between `inject` and training. All deltas are inactive while the losses are computed. The choice
    depends on losses and weights alone; adapter files and checkpoints hold it.

    losses: scalar losses of single images or batches, each computed when it is asked for, such as a generator
        `(loss_of(model(images), targets) for images, targets in batches)`
    method: the one whose weights to choose; all that are not chosen yet by default
    """
    groups = {own: items for own, items in _groups(model).items() if method is None or own == method}
    if not groups:
        raise PlanError(
            "There is nothing to choose: no delta of the model waits for a choice of its weights. Call `inject` with a "
            "method such as Sparse(rule='fisher') first, and `choose_weights` once."
        )
    weights = {item.key: _weight_of(model, item) for items in groups.values() for item in items}
    scores = {key: torch.zeros_like(weight, dtype=torch.float32) for key, weight in weights.items()}
    # all of them: some compute no gradient of the frozen weight beside them
    with switched_off([item.delta for item in attached(model)]), _thawed(weights.values()):
        for gradients in _gradients(losses, weights):
            for own, items in groups.items():
                for item in items:
                    own.accumulate(scores[item.key], gradients[item.key])
    _set_choices(groups, weights, scores)


@torch.no_grad()
def choose_by_magnitude(model: nn.Module) -> None:
    """Choose the largest weights wherever a choice is missing, in place: for estimates of cost, which need no data."""
    groups = _groups(model)
    weights = {item.key: _weight_of(model, item) for items in groups.values() for item in items}
    _set_choices(groups, weights, weights)


def restore_choices(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give the deltas whose choice is missing tensors of the sizes of a checkpoint's, in place.

    tensors: trained parameters and buffers by their names in the model
    """
    names = {module: name for name, module in unwrapped(model).named_modules()}
    for own, items in _groups(model).items():
        for item in items:
            prefix = f"{names[item.delta]}."
            saved = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            own.restore_choice(item.delta, _weight_of(model, item), saved)


def _groups(model: nn.Module) -> dict[Scored, list[Attached]]:
    """Return the deltas whose weights are not chosen yet, by equal method."""
    groups: dict[Scored, list[Attached]] = {}
    for item in attached(model):
        method = item.delta.method
        if isinstance(method, Scored) and not method.is_chosen:
            groups.setdefault(method, []).append(item)
    return groups


def _weight_of(model: nn.Module, item: Attached) -> Tensor:
    """Return the frozen weight that a delta changes."""
    inner = unwrapped(model)
    owner, name = (item.site, "weight") if isinstance(item.delta, Delta) else item.site.rpartition(".")[::2]
    return base_parameters(inner.get_submodule(owner))[name]


def _set_choices(
    groups: Mapping[Scored, list[Attached]], weights: Mapping[str, Tensor], scores: Mapping[str, Tensor]
) -> None:
    """Choose the weights of each group and give them to its deltas."""
    for method, items in groups.items():
        chosen = method.choose([scores[item.key].detach() for item in items])
        for item, indices in zip(items, chosen, strict=True):
            method.set_choice(item.delta, weights[item.key], indices)


@contextmanager
def _thawed(weights: Iterable[Tensor]) -> Iterator[None]:
    """Let weights have gradients in the `with` block."""
    flags = [(weight, weight.requires_grad) for weight in weights]
    for weight, _ in flags:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight, flag in flags:
            weight.requires_grad_(flag)


def _gradients(losses: Iterable[Tensor], weights: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the gradients of each loss by the key of the delta, in float32, zero where the loss depends on none."""
    lacking, count = set(weights), 0
    with torch.enable_grad():
        for loss in losses:
            found = (
                torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
                if loss.requires_grad
                else [None] * len(weights)
            )
            own = dict(zip(weights, found, strict=True))
            lacking -= {key for key, gradient in own.items() if gradient is not None}
            count += 1
            # one number for all, in one transfer
            sums = torch.stack([gradient.float().abs().sum() for gradient in found if gradient is not None] or [loss])
            if not bool(sums.isfinite().all()):
                raise PlanError(
                    f"The gradients that choose weights must be finite, but those of loss {count} are not. "
                    f"Compute the losses in float32."
                )
            yield {
                key: torch.zeros_like(weights[key], dtype=torch.float32) if gradient is None else gradient.float()
                for key, gradient in own.items()
            }
    if count == 0:
        raise PlanError("`losses` must have one loss at least, but is empty.")
    if lacking:
        raise PlanError(
            f"The losses do not depend on the weights of {len(lacking)} deltas, such as `{min(lacking)}`. Give a "
            f"generator that computes each loss when it is asked for, with the model that has the deltas; or leave out "
            f"these sites."
        )
