"""A whole run: from a configuration to the files of its directory."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from torch import nn

from vispeft import peft
from vispeft.coco.results import write_results
from vispeft.config import Config
from vispeft.engine.attach import attach
from vispeft.engine.build import build_base, check_backbone, complete, describe_base, with_class_head_rates
from vispeft.engine.choice import choose
from vispeft.engine.data_warnings import warn_of_crowded_images
from vispeft.engine.exchange import fit_exchange
from vispeft.engine.features import KeptFeatures, keep_features
from vispeft.engine.kept_classes import PinnedRows
from vispeft.engine.loaders import DataSets, Share, image_size, read_sets, train_loader, val_loader
from vispeft.engine.resume import as_begun, checkpoint_to_continue, describe_data, finished_summary
from vispeft.engine.run_directory import RunDirectory, describe_environment
from vispeft.engine.scoring import flat_metrics, predict_split
from vispeft.engine.settings import (
    check_compilation,
    criterion_of,
    fabric_of,
    loop_settings_of,
    naming_training_keys,
    optimizer_of,
    schedule_of,
)
from vispeft.engine.tasks.registry import TASKS
from vispeft.errors import TrainingError
from vispeft.evaluation import Metrics
from vispeft.io.json_files import read_json, write_json
from vispeft.models import FollowsProgress, SegmentationModel
from vispeft.models.registry import family_of
from vispeft.peft.checkpoint import check_base
from vispeft.peft.registry import known_methods
from vispeft.report import write_report
from vispeft.structures import AnyBatch
from vispeft.training.arguments import FitResult, Outputs, Task
from vispeft.training.callbacks.base import Callback
from vispeft.training.devices import describe_device, leave_cores_to_workers
from vispeft.training.feature_cache.store import FeatureMemory
from vispeft.training.interrupt import interruptible
from vispeft.training.logs import RunLog
from vispeft.training.seeds import seed_everything
from vispeft.training.state import Checkpoint
from vispeft.training.trainer import fit


@dataclass(frozen=True)
class RunResult:
    """Result of a run.

    summary: content of summary.json, or None where the run was interrupted
    was_finished: the run had ended before, and all files are unchanged
    """

    directory: Path
    step: int
    summary: Mapping[str, Any] | None
    was_finished: bool = False


@dataclass(frozen=True)
class _Run:
    """Configuration, data, model and state of one run."""

    config: Config
    directory: RunDirectory
    fabric: Fabric
    sets: DataSets
    model: SegmentationModel
    data: Mapping[str, Any]
    checkpoint: Checkpoint | None = None
    pinned: PinnedRows | None = None
    features: KeptFeatures | None = None

    @property
    def start_step(self) -> int:
        return 0 if self.checkpoint is None else self.checkpoint.counters.step

    @property
    def evaluates_while_training(self) -> bool:
        """True unless the only evaluation is that of the end, which `_finish` does anyway."""
        steps = self.config.train.steps or 0
        has_kept = self.checkpoint is not None and self.checkpoint.counters.best_step >= 0
        return (self.config.train.eval_every or 0) < steps or (has_kept and self.start_step < steps)

    @property
    def share(self) -> Share:
        return Share(self.fabric.global_rank, self.fabric.world_size)

    def training(self) -> tuple[nn.Module | None, Iterable[AnyBatch]]:
        """Return the tail that takes kept features, if they are used, and the batches from `start_step` on."""
        if self.features is not None and self.features.train is not None:
            return self.features.tail_of(self.model), self.features.train
        loader = train_loader(self.config, self.sets.train, self.model, self.share, start_step=self.start_step)
        return None, loader

    def scored(self, model: SegmentationModel) -> tuple[nn.Module, Iterable[AnyBatch]]:
        """Return the module that evaluates `model` and the batches of all validation images."""
        if self.features is not None:
            return self.features.tail_of(model), self.features.val
        return model, val_loader(self.config, self.sets.val, model, self.share)


def train_run(
    config: Config,
    directory: RunDirectory,
    *,
    resume: bool = False,
    sets: DataSets | None = None,
    memory: FeatureMemory | None = None,
    callbacks: Sequence[Callback] = (),
) -> RunResult:
    """Train, keep the best adapter, score it on the validation set and write the run directory.

    sets: the result of `read_sets` for the same configuration, where several runs share it
    memory: holds the features that `train.feature_cache: memory` keeps, where several runs share them
    callbacks: reactions to steps and to evaluations while training; an exception in one ends the run, which can be
        resumed from there
    """
    if sets is None:
        check_backbone(config)
        sets = read_sets(config)
    config = complete(as_begun(config, directory) if resume else config, len(sets.train))
    config = with_class_head_rates(config, sets.train.class_names)
    data = describe_data(sets)
    checkpoint = checkpoint_to_continue(config, directory, data) if resume else None
    if checkpoint is not None:
        summary = finished_summary(config, directory, checkpoint)
        if summary is not None:
            return RunResult(directory.root, checkpoint.counters.step, summary, was_finished=True)
    run = _set_up(config, directory, sets, data, checkpoint)
    try:
        run = replace(run, features=_features(run, memory or FeatureMemory()))
    except KeyboardInterrupt:
        return RunResult(directory.root, run.start_step, None)
    result = _fit(run, callbacks)
    summary = None if result.is_interrupted else _finish(run, result)
    return RunResult(directory.root, result.steps, summary)


def _set_up(
    config: Config, directory: RunDirectory, sets: DataSets, data: Mapping[str, Any], checkpoint: Checkpoint | None
) -> _Run:
    """Prepare processes and model of a run, check its deltas and begin its directory."""
    train = config.train
    fabric = fabric_of(train)
    # the processes after the first have not reserved the directory that they name
    directory = RunDirectory(fabric.broadcast(directory.root))
    check_compilation(train, fabric.device)
    if fabric.device.type == "cpu" and train.workers:
        leave_cores_to_workers(train.workers * fabric.world_size)
    model = build_base(config, len(sets.train.categories), class_names=sets.train.class_names)
    seed_everything(train.seed, rank=fabric.global_rank)
    attach(model, config)
    pinned = None if sets.train.labelled is None else PinnedRows.of(model, sets.train.labelled)
    choose(config, fabric, sets.train, model, checkpoint)
    if checkpoint is not None and directory.adapter.is_file():
        check_base(model, directory.adapter)
    warn_of_crowded_images(
        sets.train,
        sets.val,
        num_queries=model.num_queries,
        max_detections=config.eval.max_detections,
        is_tiled=config.model.tile is not None,
    )
    run = _Run(config, directory, fabric, sets, model, data, checkpoint, pinned)
    _check_deltas(run)
    if fabric.is_global_zero:
        environment = describe_environment(describe_device(fabric), train.seed)
        directory.begin(config, environment, TASKS[config.task].annotations(sets.val))
    fabric.barrier()
    return run


def _check_deltas(run: _Run) -> None:
    """Run one forward pass before any training; a delta that never runs is an error."""
    if not run.config.peft.deltas:
        return
    alone = run.config.model_copy(update={"train": run.config.train.model_copy(update={"workers": 0})})
    batch = next(iter(val_loader(alone, run.sets.train.subset([0]), run.model, Share())))
    with run.fabric.autocast():
        peft.check(run.model, batch.images)
        if isinstance(run.model, FollowsProgress):
            # such a model computes something else in train mode
            peft.check(run.model, batch.images, training=True)


def _features(run: _Run, memory: FeatureMemory) -> KeptFeatures | None:
    """Return the features for the remaining steps; Ctrl-C stops at once and keeps the features computed so far."""
    with interruptible() as interrupt, interrupt.breaks():
        return keep_features(run.config, run.fabric, run.sets, run.model, start_step=run.start_step, memory=memory)


def _fit(run: _Run, callbacks: Sequence[Callback]) -> FitResult:
    config, model, checkpoint = run.config, run.model, run.checkpoint
    tail, batches = run.training()
    callbacks = [Callback(on_step=partial(peft.update_schedules, model)), *_progress_of(run), *callbacks]
    if run.pinned is not None:
        callbacks.append(Callback(on_step=run.pinned.restore))
    optimizer, schedule = optimizer_of(config.train, model), schedule_of(config.train)
    criterion = criterion_of(config, model, run.sets.train.labelled)
    fit_exchange(config, run.fabric, run.sets.train, model, criterion)
    log = RunLog(
        run.directory.root,
        start_step=run.start_step,
        repeats_evaluation=checkpoint is not None and checkpoint.counters.lacks_score,
        is_enabled=run.fabric.is_global_zero,
    )
    with log, naming_training_keys():
        return fit(
            Task(model, criterion, optimizer, schedule, tail),
            batches,
            loop_settings_of(config.train, TASKS[config.task].metric),
            Outputs(log, run.directory.checkpoint, partial(_keep, run), run.data),
            fabric=run.fabric,
            evaluate=partial(_evaluate, run, run.scored(model)) if run.evaluates_while_training else None,
            resume=checkpoint,
            callbacks=callbacks,
        )


def _progress_of(run: _Run) -> list[Callback]:
    """Tell the progress to a model that follows it; return the callback that does so after every step."""
    if not isinstance(run.model, FollowsProgress):
        return []
    run.model.on_progress(run.start_step, run.config.train.steps or 0)
    return [Callback(on_step=run.model.on_progress)]


def _evaluate(run: _Run, scored: tuple[nn.Module, Iterable[AnyBatch]]) -> Mapping[str, float]:
    """Return the metrics of the current model, by their names in metrics.jsonl."""
    results = predict_split(run.config, run.fabric, run.sets.val, run.model, *scored)
    return flat_metrics(_metrics(run, TASKS[run.config.task].annotations(run.sets.val), results))


def _metrics(run: _Run, annotations: Any, results: Any) -> Metrics:
    return TASKS[run.config.task].evaluate(annotations, results, run.config.eval)


def _keep(run: _Run, step: int, metrics: Mapping[str, float]) -> None:
    """Write the adapter file with its metadata."""
    metadata = {
        "class_names": run.sets.train.class_names,
        "image_size": image_size(run.config),
        "pixel_mean": run.model.pixel_mean,
        "pixel_std": run.model.pixel_std,
        "base": describe_base(run.model, run.config.model),
        "step": step,
        "metrics": dict(metrics),
    }
    peft.save_adapter(run.model, run.directory.adapter, metadata=metadata)


def _finish(run: _Run, result: FitResult) -> Mapping[str, Any]:
    """Evaluate the best adapter, read from its file into a fresh base, and write the summary."""
    classes = run.sets.train.class_names
    best = build_base(run.config, len(classes), class_names=classes)
    peft.load_adapter(best, run.directory.adapter)
    best.to(run.fabric.device)
    began = time.monotonic()
    results = predict_split(run.config, run.fabric, run.sets.val, best, *run.scored(best))
    if run.fabric.is_global_zero:
        write_results(run.directory.predictions, results)
        # from the files as written, so that scoring them again gives the same metrics
        metrics = _metrics(run, run.directory.annotations, run.directory.predictions)
        result = replace(result, evaluate_seconds=result.evaluate_seconds + time.monotonic() - began)
        if not run.evaluates_while_training:
            with RunLog(run.directory.root, start_step=result.steps, repeats_evaluation=True) as log:
                log.write(result.steps, "val", flat_metrics(metrics))
        # an old report must not stand beside a new summary, nor what an old adapter changed beside a new one
        for old in (run.directory.report, run.directory.inspection):
            old.unlink(missing_ok=True)
        write_json(run.directory.summary, _summary(run, result, metrics), raises=TrainingError, indent=1)
        write_report(run.directory.root)
    run.fabric.barrier()
    summary: Mapping[str, Any] = read_json(run.directory.summary)
    return summary


def _merged_form(config: Config, methods: Iterable[str]) -> str | None:
    """Return what `vispeft merge` can write of a run, "file" or "directory"; None for methods that never merge."""
    kinds = known_methods()
    if not all(kinds[name].merges for name in methods):
        return None
    return "directory" if family_of(config.model.name).reads_weights else "file"


def _summary(run: _Run, result: FitResult, metrics: Metrics) -> dict[str, Any]:
    counted = peft.count(run.model)
    return {
        "model": describe_base(run.model, run.config.model),
        "methods": [*counted.deltas, *(["full"] if counted.full else [])],
        "merges_into": _merged_form(run.config, counted.deltas),
        "trainable_params": counted.trainable,
        "total_params": counted.total,
        "trainable_percent": counted.percent,
        "adapter_bytes": run.directory.adapter.stat().st_size,
        "steps": result.steps,
        "best_step": result.best_step,
        "train_seconds": result.train_seconds,
        "evaluate_seconds": result.evaluate_seconds,
        "peak_memory_bytes": result.peak_memory_bytes,
        "device": describe_device(run.fabric),
        **({} if run.features is None else {"feature_cache": run.features.describe()}),
        **metrics.to_dict(),
    }
