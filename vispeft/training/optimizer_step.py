"""One optimizer step: gradients of several batches, their checks and clipping, and the update of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from vispeft.errors import TrainingError
from vispeft.structures import AnyBatch
from vispeft.training.arguments import LoopSettings, Task
from vispeft.training.devices import uses_loss_scaling
from vispeft.training.guards import BatchLosses, check_finite, check_gradients
from vispeft.training.state import Counters
from vispeft.training.step import LossModule, SealedBatch

# the loss scale starts at 2^16 and halves with each skipped step: after so many it is below 1
_MAX_SKIPPED = 20


@dataclass(frozen=True)
class Wrapped:
    """Module and optimizer as Fabric wraps them. Their types are private to Fabric, hence `Any`.

    loss_module: gives the losses of a batch, under the precision and the processes of the run
    """

    loss_module: Any
    optimizer: Any


def wrap(fabric: Fabric, task: Task) -> Wrapped:
    """Move the task's model to the device, and wrap its losses and its optimizer."""
    loss_module = LossModule(task.model if task.tail is None else task.tail, task.criterion)
    return Wrapped(*fabric.setup(loss_module, task.optimizer))


@dataclass(frozen=True)
class OptimizerStep:
    """The pieces of one optimizer step, in the order in which the trainer calls them."""

    fabric: Fabric
    task: Task
    wrapped: Wrapped
    settings: LoopSettings
    counters: Counters

    def compute_gradients(self, batches: Iterator[AnyBatch]) -> dict[str, float]:
        """Fill the gradients from `accumulate` batches, check and clip them; return mean losses and gradient norm.

        Raises TrainingError before any weight changes where losses or gradients are not finite, a trainable parameter
        gets no gradient, or the batches have ended.
        """
        last = self.settings.accumulate - 1
        passes = [self._forward_backward(batches, is_last=i == last) for i in range(self.settings.accumulate)]
        self._check_gradients(passes)
        max_norm = math.inf if self.settings.clip_norm is None else self.settings.clip_norm
        norm = self.fabric.clip_gradients(
            self.wrapped.loss_module, self.wrapped.optimizer, max_norm=max_norm, error_if_nonfinite=False
        )
        return self._checked_losses(passes, torch.as_tensor(norm))

    def update_weights(self) -> None:
        """Let the optimizer change the weights; loss scaling (fp16) skips this where gradients are not finite."""
        self.wrapped.optimizer.step()

    def clear_gradients(self) -> None:
        """Clear the gradients for the next step."""
        self.wrapped.optimizer.zero_grad()

    def _forward_backward(self, batches: Iterator[AnyBatch], *, is_last: bool) -> _Pass:
        """Add the gradients of one batch. Processes exchange gradients in a step's last pass only."""
        batch = next(batches, None)
        if batch is None:
            raise TrainingError(
                f"There must be batches for {self.settings.steps} steps, but they end in step "
                f"{self.counters.step + 1}. Give more batches, or fewer `steps`."
            )
        with self.fabric.no_backward_sync(self.wrapped.loss_module, enabled=not is_last):
            losses: dict[str, Tensor] = self.wrapped.loss_module(SealedBatch(batch.to(self.fabric.device)))
            self.fabric.backward(torch.stack(list(losses.values())).sum() / self.settings.accumulate)
        return _Pass(
            file_names=tuple(meta.file_name for meta in batch.metas),
            names=tuple(losses),
            values=torch.stack([loss.detach() for loss in losses.values()]),
            has_targets=any(len(targets) for targets in batch.targets),
        )

    def _check_gradients(self, passes: list[_Pass]) -> None:
        """Check once, in the first step that has targets, that every trainable parameter gets a gradient."""
        if not self.counters.has_checked_gradients and any(one.has_targets for one in passes):
            check_gradients(self.task.model, may_lack_gradient=self.settings.may_lack_gradient)
            self.counters.has_checked_gradients = True

    def _checked_losses(self, passes: list[_Pass], grad_norm: Tensor) -> dict[str, float]:
        """Return mean losses over a step's passes and the gradient norm, in one transfer; refuse non-finite ones."""
        values = iter(torch.cat([*(one.values for one in passes), grad_norm.detach().reshape(1)]).tolist())
        batches = [BatchLosses(one.file_names, {name: next(values) for name in one.names}) for one in passes]
        norm = next(values)
        lr = max(group["lr"] for group in self.task.optimizer.param_groups)
        self.counters.num_skipped = 0 if math.isfinite(norm) else self.counters.num_skipped + 1
        may_skip = uses_loss_scaling(self.fabric) and self.counters.num_skipped < _MAX_SKIPPED
        check_finite(batches, norm, step=self.counters.step + 1, lr=lr, may_skip=may_skip)
        return {**_mean_losses(batches), "grad_norm": norm}


@dataclass(frozen=True)
class _Pass:
    """One forward and backward pass. values: [number of loss parts] float32, on the device."""

    file_names: tuple[str, ...]
    names: tuple[str, ...]
    values: Tensor
    has_targets: bool


def _mean_losses(batches: list[BatchLosses]) -> dict[str, float]:
    """Return the total `loss` and each part as `loss_<name>`. A part that a batch lacks counts as 0 there."""
    means = {"loss": sum(sum(batch.losses.values()) for batch in batches) / len(batches)}
    for batch in batches:
        for name, value in batch.losses.items():
            means[f"loss_{name}"] = means.get(f"loss_{name}", 0.0) + value / len(batches)
    return means
