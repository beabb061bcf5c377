"""The training loop: step, log, evaluate, select the best, save.

`fit` prepares a run and `_Trainer.run` is the loop.

On Ctrl-C or SIGTERM `interrupt.py` only records the request. The trainer then finishes the step in progress, or breaks
off the evaluation in progress, which stays due; it writes a checkpoint and returns. A second signal raises
KeyboardInterrupt at once. A run resumed from the checkpoint goes on as if it had never stopped.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lightning_fabric import Fabric

from vispeft import peft
from vispeft.errors import TrainingError
from vispeft.structures import AnyBatch
from vispeft.training.arguments import FitResult, LoopSettings, Outputs, Task
from vispeft.training.callbacks.base import Callback
from vispeft.training.callbacks.checkpoints import CheckpointWriter
from vispeft.training.callbacks.ema import Ema
from vispeft.training.callbacks.loss_log import LossLog, describe_losses
from vispeft.training.callbacks.selection import BestSelection
from vispeft.training.compilation import compile_blocks
from vispeft.training.evaluation_mode import evaluation_mode
from vispeft.training.guards import warn_of_no_instances
from vispeft.training.interrupt import Interrupt, interruptible
from vispeft.training.memory import reset_peak_memory
from vispeft.training.optimizer_step import OptimizerStep, wrap
from vispeft.training.progress import ProgressReport, open_progress
from vispeft.training.seeds import preserved_rng, repeatable, set_rng_state
from vispeft.training.state import Checkpoint, RunState


def fit(
    task: Task,
    batches: Iterable[AnyBatch],
    settings: LoopSettings,
    outputs: Outputs,
    *,
    fabric: Fabric,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    resume: Checkpoint | None = None,
    callbacks: Sequence[Callback] = (),
) -> FitResult:
    """Train the trainable parameters of the task's model, in place, and leave the last step's values in it.

    batches: at least `accumulate` for each remaining step; those of a resumed run begin after the checkpoint's step
    evaluate: returns metrics of the model, equal in every process; None: no evaluation, the last weights are kept
    resume: checkpoint from which the run goes on, to the bit
    callbacks: further reactions to steps and evaluations, called in this order
    """
    wrapped = wrap(fabric, task)
    if settings.compiles:
        compile_blocks(task.model)
    peft.train_mode(task.model, update_statistics=settings.update_statistics)
    ema = None if settings.ema_decay is None else Ema(task.model, settings.ema_decay)
    state = RunState(fabric, task.model, task.optimizer, ema, outputs.data)
    if resume is not None:
        state.restore(resume)
    reset_peak_memory(fabric.device)
    with interruptible() as interrupt, repeatable(fabric.device):
        step = OptimizerStep(fabric, task, wrapped, settings, state.counters)
        trainer = _Trainer(task, settings, outputs, state, step, evaluate, callbacks, interrupt)
        with preserved_rng(fabric.device):
            started = _started(batches) if state.counters.step < settings.steps else iter(())
        if resume is not None:
            set_rng_state(resume.rng[fabric.global_rank], fabric.device)
        trainer.run(started)
        return trainer.result()


def _started(batches: Iterable[AnyBatch]) -> Iterator[AnyBatch]:
    """Return the same batches, the first loaded already: so loader processes, which draw a seed, have started."""
    iterator = iter(batches)
    return itertools.chain(list(itertools.islice(iterator, 1)), iterator)


@dataclass
class _Trainer:
    """One session of a run."""

    task: Task
    settings: LoopSettings
    outputs: Outputs
    state: RunState
    optimizer_step: OptimizerStep
    evaluate: Callable[[], Mapping[str, float]] | None
    callbacks: Sequence[Callback]
    interrupt: Interrupt

    def __post_init__(self) -> None:
        settings, outputs = self.settings, self.outputs
        self.fabric, self.counters = self.state.fabric, self.state.counters
        self.loss_log = LossLog(
            self.counters, self.task.optimizer, outputs.log, every=settings.log_every, last_step=settings.steps
        )
        self.selection = BestSelection(
            self.counters, settings.metric, outputs.keep_best if self.fabric.is_global_zero else None
        )
        self.checkpoints = CheckpointWriter(outputs.checkpoint_path, self.state, every=settings.checkpoint_every)

    def run(self, batches: Iterator[AnyBatch]) -> None:
        """Step, log, evaluate and save until the run is over or a stop is requested."""
        counters, steps = self.counters, self.settings.steps
        with open_progress("train", steps, start=counters.step, is_shown=self.fabric.is_global_zero) as progress:
            # an earlier session may have stopped between a step and its evaluation, or had no evaluation
            if self.evaluate is not None:
                counters.require_score_of_kept()
            self._evaluate_if_due(progress)
            while not self._is_over and not self.interrupt.must_stop(self.fabric):
                losses = self._step(batches)
                progress.update(counters.step, describe_losses(losses, self.fabric.device))
                self.loss_log.on_step(losses)
                counters.is_evaluation_due = self._is_evaluation_step
                was_evaluated = self._evaluate_if_due(progress)
                if not was_evaluated:
                    self.checkpoints.on_step()
        if counters.step >= steps and not counters.has_checked_gradients:
            warn_of_no_instances()
        if self.interrupt.must_stop(self.fabric):
            self.checkpoints.save()

    def result(self) -> FitResult:
        """Return the result of the run."""
        self.state.note_peak_memory()
        counters = self.counters
        return FitResult(
            steps=counters.step,
            best_step=counters.best_step,
            best_metrics=dict(counters.best_metrics),
            train_seconds=counters.train_seconds,
            evaluate_seconds=counters.evaluate_seconds,
            peak_memory_bytes=counters.peak_memory_bytes,
            is_stopped_early=self._is_over and counters.step < self.settings.steps,
            is_interrupted=self.interrupt.is_requested and (not self._is_over or counters.is_evaluation_due),
        )

    def _step(self, batches: Iterator[AnyBatch]) -> dict[str, float]:
        """Make one optimizer step; return its mean losses and the gradient norm."""
        began = time.monotonic()
        self.task.schedule.apply(self.task.optimizer, self.counters.step)
        losses = self.optimizer_step.compute_gradients(batches)
        self.optimizer_step.update_weights()
        self.counters.step += 1
        for callback in self.callbacks:
            if callback.on_step is not None:
                callback.on_step(self.counters.step, self.settings.steps)
        self.optimizer_step.clear_gradients()
        if self.state.ema is not None:
            self.state.ema.update()
        self.counters.train_seconds += time.monotonic() - began
        return losses

    def _evaluate_if_due(self, progress: ProgressReport) -> bool:
        """Evaluate, keep the best and save. Return False where nothing is due or a stop was requested."""
        if not self.counters.is_evaluation_due or self.interrupt.must_stop(self.fabric):
            return False
        # evaluating takes memory and time: if it fails, the steps are not lost
        self.checkpoints.save()
        began = time.monotonic()
        modes = {"update_statistics": self.settings.update_statistics, "compiles": self.settings.compiles}
        with progress.paused(), evaluation_mode(self.state, **modes):
            try:
                with self.interrupt.breaks():
                    metrics = self._metrics()
            except KeyboardInterrupt:
                return False
            if metrics:
                self.outputs.log.write(self.counters.step, "val", metrics)
            self.selection.on_evaluation(metrics)
        self.counters.evaluate_seconds += time.monotonic() - began
        self.counters.is_evaluation_due = False
        self.checkpoints.save()
        for callback in self.callbacks:
            if metrics and callback.on_evaluation is not None:
                callback.on_evaluation(self.counters.step, metrics)
        return True

    def _metrics(self) -> dict[str, float]:
        if self.evaluate is None:
            return {}
        metrics = dict(self.evaluate())
        if self.settings.metric not in metrics:
            raise TrainingError(f"An evaluation must give `{self.settings.metric}`, but gives {sorted(metrics)}.")
        return metrics

    @property
    def _is_over(self) -> bool:
        return self.counters.step >= self.settings.steps or self.counters.is_out_of_patience(self.settings.patience)

    @property
    def _is_evaluation_step(self) -> bool:
        step, every = self.counters.step, self.settings.eval_every
        return step == self.settings.steps or (every is not None and step % every == 0)
