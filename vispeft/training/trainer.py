"""The training loop: steps, evaluations, checkpoints, early stopping, clean interruption and exact resuming."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from vispeft import peft
from vispeft.errors import CheckpointError, TrainingError
from vispeft.structures import AnyBatch
from vispeft.training.checkpoint import Checkpoint, Counters, restore_tensors, save_checkpoint, trained_tensors
from vispeft.training.devices import uses_loss_scaling
from vispeft.training.ema import Ema
from vispeft.training.guards import BatchLosses, check_finite, check_gradients, warn_of_no_instances
from vispeft.training.interrupt import Interrupt, interruptible
from vispeft.training.logs import RunLog
from vispeft.training.memory import memory_bytes, peak_memory_bytes, reset_peak_memory
from vispeft.training.progress import ProgressReport, format_bytes, open_progress
from vispeft.training.schedule import Schedule
from vispeft.training.seeds import preserved_rng, repeatable, rng_state, set_rng_state
from vispeft.training.step import LossFunction, LossModule, SealedBatch
from vispeft.training.validate import gather_objects

# the loss scale starts at 2^16 and halves with each skipped step: after so many it is below 1
_MOST_SKIPPED = 20


@dataclass(frozen=True)
class LoopSettings:
    """Settings of the loop; lengths and intervals in optimizer steps.

    accumulate: batches whose mean gradient makes one step
    clip_norm: largest norm of all gradients together; None: no clipping
    eval_every: None: at the end only
    checkpoint_every: beside the checkpoint after each evaluation; None: no others
    patience: stop after this many evaluations without a better `metric`; None: never
    ema_decay: decay of an average of the trained weights, evaluated and kept in their place; None: no average
    metric: the metric of an evaluation whose highest value is best
    may_rest: names of trainable parameters that may get no gradient
    update_statistics: let norms that are trained in full update their running statistics
    """

    steps: int
    accumulate: int = 1
    clip_norm: float | None = 1.0
    eval_every: int | None = None
    log_every: int = 10
    checkpoint_every: int | None = None
    patience: int | None = None
    ema_decay: float | None = None
    metric: str = "segm/AP"
    may_rest: Collection[str] = ()
    update_statistics: bool = False


@dataclass(frozen=True)
class FitResult:
    """Result of a run.

    best_step, best_metrics: of the evaluation whose adapter was kept; -1 and empty without one
    train_seconds, evaluate_seconds: over all sessions of the run
    peak_memory_bytes: of training and evaluation, see `memory.peak_memory_bytes`
    is_interrupted: stopped by Ctrl-C or SIGTERM after saving; resuming goes on from there
    """

    steps: int
    best_step: int
    best_metrics: Mapping[str, float]
    train_seconds: float
    evaluate_seconds: float
    peak_memory_bytes: int
    is_stopped_early: bool
    is_interrupted: bool


def fit(
    *,
    fabric: Fabric,
    model: nn.Module,
    criterion: LossFunction,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    train_batches: Iterable[AnyBatch],
    evaluate: Callable[[], Mapping[str, float]] | None,
    keep_best: Callable[[int, Mapping[str, float]], None],
    log: RunLog,
    checkpoint_path: Path,
    settings: LoopSettings,
    resume: Checkpoint | None = None,
    on_evaluation: Callable[[int, Mapping[str, float]], None] | None = None,
    called: nn.Module | None = None,
    data: Mapping[str, Any] | None = None,
) -> FitResult:
    """Train the trainable parameters of `model`, in place, and leave the last step's values in it.

    train_batches: at least `accumulate` batches for each step that is still to do; a resumed run's begin where the
        checkpoint's step left off
    evaluate: returns metrics of the model, equal in every process; None: no evaluation, the last weights are kept
    keep_best: called in the first process with step and metrics while the model holds the weights to keep
    on_evaluation: called with step and metrics after each evaluation, when all is saved; an error in it ends the run
    called: module that contains the model and is called on the batches in its place: the tail, if they are features
    data: plain values that checkpoints keep, by which a resumed run recognises its data
    """
    module, stepper = fabric.setup(LossModule(model if called is None else called, criterion), optimizer)
    peft.train_mode(model, update_statistics=settings.update_statistics)
    loop = _Loop(
        fabric=fabric,
        model=model,
        module=module,
        optimizer=optimizer,
        stepper=stepper,
        schedule=schedule,
        evaluate=evaluate,
        keep_best=keep_best,
        log=log,
        checkpoint_path=checkpoint_path,
        settings=settings,
        counters=Counters(),
        ema=None if settings.ema_decay is None else Ema(model, settings.ema_decay),
        on_evaluation=on_evaluation,
        data=dict(data or {}),
    )
    if resume is not None:
        loop.restore(resume)
    reset_peak_memory(fabric.device)
    with interruptible() as interrupt, repeatable(fabric.device):
        with preserved_rng(fabric.device):
            batches = _started(train_batches) if loop.counters.step < settings.steps else iter(())
        if resume is not None:
            set_rng_state(resume.rng[fabric.global_rank], fabric.device)
        loop.run(batches, interrupt)
    return loop.result(interrupt)


def _started(batches: Iterable[AnyBatch]) -> Iterator[AnyBatch]:
    """Return the same batches, the first loaded already: so loader processes, which draw a seed, have started."""
    iterator = iter(batches)
    return itertools.chain(list(itertools.islice(iterator, 1)), iterator)


@dataclass
class _Loop:
    """One session of a run. stepper: Fabric's wrapper of the optimizer."""

    fabric: Fabric
    model: nn.Module
    module: Any
    optimizer: torch.optim.Optimizer
    stepper: Any
    schedule: Schedule
    evaluate: Callable[[], Mapping[str, float]] | None
    keep_best: Callable[[int, Mapping[str, float]], None]
    log: RunLog
    checkpoint_path: Path
    settings: LoopSettings
    counters: Counters
    ema: Ema | None
    on_evaluation: Callable[[int, Mapping[str, float]], None] | None
    data: dict[str, Any]

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the state of a checkpoint; the caller restores the random generators."""
        if len(checkpoint.rng) != self.fabric.world_size:
            raise CheckpointError(
                f"A run must go on with as many processes as it began with, {len(checkpoint.rng)}, "
                f"but has {self.fabric.world_size}."
            )
        if (checkpoint.ema is None) != (self.ema is None):
            raise CheckpointError("`train.ema` must be set as when the run began, but is not.")
        restore_tensors(self.model, checkpoint.tensors)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.fabric.strategy.precision.load_state_dict(checkpoint.precision)
        if self.ema is not None and checkpoint.ema is not None:
            self.ema.load_state_dict(checkpoint.ema)
        self.counters = checkpoint.counters
        if self.evaluate is not None and self.counters.lacks_score and not self.counters.best_metrics:
            # kept without a score: scored now, they count as an evaluation like any other
            self.counters.best_step, self.counters.is_evaluation_due = -1, True

    def save(self) -> None:
        """Write the checkpoint; every process calls this."""
        self._note_peak()
        rng = gather_objects(self.fabric, rng_state(self.fabric.device))
        if self.fabric.is_global_zero:
            checkpoint = Checkpoint(
                counters=self.counters,
                tensors=trained_tensors(self.model),
                optimizer=self.optimizer.state_dict(),
                precision=self.fabric.strategy.precision.state_dict(),
                ema=None if self.ema is None else self.ema.state_dict(),
                rng=rng,
                data=self.data,
            )
            save_checkpoint(self.checkpoint_path, checkpoint)

    def run(self, batches: Iterator[AnyBatch], interrupt: Interrupt) -> None:
        """Step, evaluate and save until the run is over or a stop is asked for."""
        counters, settings = self.counters, self.settings
        with open_progress(
            "train", settings.steps, start=counters.step, is_shown=self.fabric.is_global_zero
        ) as progress:
            self._evaluate_if_due(progress, interrupt)
            while counters.step < settings.steps and not self.is_stopped_early and not self._must_stop(interrupt):
                self._step(batches, progress)
                counters.is_evaluation_due = self._is_evaluation_step()
                was_evaluated = self._evaluate_if_due(progress, interrupt)
                if not was_evaluated and _is_multiple(counters.step, settings.checkpoint_every):
                    self.save()
        if counters.step >= settings.steps and not counters.has_checked_gradients:
            warn_of_no_instances()
        if self._must_stop(interrupt):
            self.save()

    @property
    def is_stopped_early(self) -> bool:
        """Tell whether `patience` evaluations in a row brought no improvement."""
        patience = self.settings.patience
        return patience is not None and self.counters.evaluations_since_best >= patience

    def result(self, interrupt: Interrupt) -> FitResult:
        """Return the result of the run."""
        self._note_peak()
        counters = self.counters
        is_over = counters.step >= self.settings.steps or self.is_stopped_early
        return FitResult(
            steps=counters.step,
            best_step=counters.best_step,
            best_metrics=dict(counters.best_metrics),
            train_seconds=counters.train_seconds,
            evaluate_seconds=counters.evaluate_seconds,
            peak_memory_bytes=counters.peak_memory_bytes,
            is_stopped_early=self.is_stopped_early and counters.step < self.settings.steps,
            is_interrupted=interrupt.is_requested and (not is_over or counters.is_evaluation_due),
        )

    def _step(self, batches: Iterator[AnyBatch], progress: ProgressReport) -> None:
        began = time.monotonic()
        counters, settings = self.counters, self.settings
        self.schedule.apply(self.optimizer, counters.step)
        passes = [self._pass(batches, is_last=i == settings.accumulate - 1) for i in range(settings.accumulate)]
        if not counters.has_checked_gradients and any(one.has_targets for one in passes):
            check_gradients(self.model, may_rest=settings.may_rest)
            counters.has_checked_gradients = True
        max_norm = math.inf if settings.clip_norm is None else settings.clip_norm
        norm = self.fabric.clip_gradients(self.module, self.stepper, max_norm=max_norm, error_if_nonfinite=False)
        figures = self._checked_figures(passes, torch.as_tensor(norm))
        self.stepper.step()
        self.stepper.zero_grad()
        if self.ema is not None:
            self.ema.update()
        counters.step += 1
        counters.train_seconds += time.monotonic() - began
        self._report(figures, progress)

    def _pass(self, batches: Iterator[AnyBatch], *, is_last: bool) -> _Pass:
        """Run one batch forward and backward."""
        batch = next(batches, None)
        if batch is None:
            raise TrainingError(
                f"There must be batches for {self.settings.steps} steps, but they end in step {self.counters.step + 1}."
                " Has `data.train` fewer images than `train.batch_size`?"
            )
        with self.fabric.no_backward_sync(self.module, enabled=not is_last):
            losses: dict[str, Tensor] = self.module(SealedBatch(batch.to(self.fabric.device)))
            self.fabric.backward(torch.stack(list(losses.values())).sum() / self.settings.accumulate)
        return _Pass(
            file_names=tuple(meta.file_name for meta in batch.metas),
            names=tuple(losses),
            values=torch.stack([loss.detach() for loss in losses.values()]),
            has_targets=any(len(targets) for targets in batch.targets),
        )

    def _checked_figures(self, passes: list[_Pass], grad_norm: Tensor) -> dict[str, float]:
        """Return mean losses over a step's passes and the gradient norm, in one transfer; refuse non-finite ones."""
        values = iter(torch.cat([*(one.values for one in passes), grad_norm.detach().reshape(1)]).tolist())
        batches = [BatchLosses(one.file_names, {name: next(values) for name in one.names}) for one in passes]
        norm = next(values)
        lr = max(group["lr"] for group in self.optimizer.param_groups)
        self.counters.num_skipped = 0 if math.isfinite(norm) else self.counters.num_skipped + 1
        may_skip = uses_loss_scaling(self.fabric) and self.counters.num_skipped < _MOST_SKIPPED
        check_finite(batches, norm, step=self.counters.step + 1, lr=lr, may_skip=may_skip)
        figures = {"loss": sum(sum(batch.losses.values()) for batch in batches) / len(batches)}
        for batch in batches:
            for name, value in batch.losses.items():
                figures[f"loss_{name}"] = figures.get(f"loss_{name}", 0.0) + value / len(batches)
        return {**figures, "grad_norm": norm}

    def _report(self, figures: dict[str, float], progress: ProgressReport) -> None:
        """Show a step's losses and gradient norm, and log their means when that is due."""
        counters, step = self.counters, self.counters.step
        for name, value in figures.items():
            counters.loss_sums[name] = counters.loss_sums.get(name, 0.0) + value
        counters.num_summed += 1
        memory = format_bytes(memory_bytes(self.fabric.device))
        progress.update(step, "  ".join([*(f"{n.removeprefix('loss_')} {v:.3g}" for n, v in figures.items()), memory]))
        if step % self.settings.log_every == 0 or step == self.settings.steps:
            means = {name: total / counters.num_summed for name, total in counters.loss_sums.items()}
            rates = {f"lr_{g['name']}": g["lr"] for g in self.optimizer.param_groups if "/" not in g["name"]}
            self.log.write(step, "train", {**means, **rates})
            counters.loss_sums, counters.num_summed = {}, 0

    def _is_evaluation_step(self) -> bool:
        step = self.counters.step
        return step == self.settings.steps or _is_multiple(step, self.settings.eval_every)

    def _evaluate_if_due(self, progress: ProgressReport, interrupt: Interrupt) -> bool:
        """Evaluate, keep the best and save; after a request to stop it stays due. Returns True if evaluated."""
        if not self.counters.is_evaluation_due or self._must_stop(interrupt):
            return False
        # evaluating takes memory and time: if it fails, the steps are not lost
        self.save()
        began = time.monotonic()
        average = contextlib.nullcontext() if self.ema is None else self.ema.swapped_in()
        with progress.paused(), average, self._evaluating():
            try:
                with interrupt.breaks():
                    metrics = self._metrics()
            except KeyboardInterrupt:
                return False
            self._take(metrics)
        self.counters.evaluate_seconds += time.monotonic() - began
        self.counters.is_evaluation_due = False
        self.save()
        if metrics and self.on_evaluation is not None:
            self.on_evaluation(self.counters.step, metrics)
        return True

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Set eval mode in the `with` block, and restore train mode and the random generators after it."""
        with preserved_rng(self.fabric.device):
            self.model.eval()
            try:
                yield
            finally:
                peft.train_mode(self.model, update_statistics=self.settings.update_statistics)

    def _metrics(self) -> dict[str, float]:
        if self.evaluate is None:
            return {}
        metrics = dict(self.evaluate())
        if self.settings.metric not in metrics:
            raise TrainingError(f"An evaluation must give `{self.settings.metric}`, but gives {sorted(metrics)}.")
        return metrics

    def _take(self, metrics: dict[str, float]) -> None:
        """Log an evaluation, and keep its weights if they are better than the best so far."""
        counters, metric = self.counters, self.settings.metric
        if metrics:
            self.log.write(counters.step, "val", metrics)
        # a figure that is not a number is never better
        if counters.best_step < 0 or not metrics or metrics[metric] > counters.best_metrics[metric]:
            counters.best_step, counters.best_metrics = counters.step, metrics
            counters.evaluations_since_best = 0
            if self.fabric.is_global_zero:
                self.keep_best(counters.step, metrics)
        else:
            counters.evaluations_since_best += 1

    def _must_stop(self, interrupt: Interrupt) -> bool:
        """Tell whether any process was asked to stop."""
        if self.fabric.world_size > 1:
            asked = torch.tensor(float(interrupt.is_requested), device=self.fabric.device)
            total = self.fabric.all_reduce(asked, reduce_op="sum")
            interrupt.is_requested = bool(torch.as_tensor(total) > 0)
        return interrupt.is_requested

    def _note_peak(self) -> None:
        self.counters.peak_memory_bytes = max(self.counters.peak_memory_bytes, peak_memory_bytes(self.fabric.device))


@dataclass(frozen=True)
class _Pass:
    """One forward and backward pass. values: [number of loss parts] float32, on the device."""

    file_names: tuple[str, ...]
    names: tuple[str, ...]
    values: Tensor
    has_targets: bool


def _is_multiple(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
