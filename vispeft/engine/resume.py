"""Conditions for resuming a run: the configuration, data, base and processes with which it began."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vispeft.config import Config
from vispeft.data.reading.contents import SetContents, changes, contents_of
from vispeft.engine.loaders import DataSets
from vispeft.engine.run_directory import RunDirectory
from vispeft.errors import CheckpointError, ConfigError
from vispeft.io.json_files import read_object
from vispeft.training.checkpoint import load_checkpoint
from vispeft.training.devices import count_processes
from vispeft.training.state import Checkpoint

_DATA_KEYS = tuple(f"data.{split}.{key}" for split in ("train", "val") for key in ("annotations", "images", "segments"))


def describe_data(sets: DataSets) -> dict[str, Any]:
    """Return the contents of both sets as plain values, for the checkpoint."""
    return {"train": contents_of(sets.train).to_dict(), "val": contents_of(sets.val).to_dict()}


def as_begun(config: Config, directory: RunDirectory) -> Config:
    """Return `config` with the warm-up of the run that it resumes, unless it sets one: the default depends on steps."""
    if config.train.warmup is not None:
        return config
    warmup = directory.load_config().train.warmup
    return config.model_copy(update={"train": config.train.model_copy(update={"warmup": warmup})})


def checkpoint_to_continue(config: Config, directory: RunDirectory, data: Mapping[str, Any]) -> Checkpoint | None:
    """Return the checkpoint from which `config` may continue the run; None where the run ended before its first one.

    Raises one ConfigError that names every change that would make it another run.
    """
    checkpoint = load_checkpoint(directory.checkpoint) if directory.checkpoint.exists() else None
    if checkpoint is None:
        directory.check_continues(config)
        return None
    before = checkpoint.data
    directory.check_continues(
        config,
        # the data are compared by their contents
        may_move=_DATA_KEYS if before else (),
        others=[*_process_changes(config, checkpoint), *(_data_changes(config, before, data) if before else [])],
    )
    done = checkpoint.counters.step
    if done > (config.train.steps or 0):
        raise ConfigError(
            f"`train.steps` must be at least the {done} steps that `{directory.root}` has done, but is "
            f"{config.train.steps} (set, or as many as `train.epochs` makes). Name more steps, or train without "
            "--resume into another --out."
        )
    _check_kept(config, directory, checkpoint)
    return checkpoint


def _check_kept(config: Config, directory: RunDirectory, checkpoint: Checkpoint) -> None:
    """Refuse to go on if the adapter file with the best weights so far is missing."""
    counters = checkpoint.counters
    # weights that were kept without metrics are replaced by any later ones
    may_be_last = bool(counters.best_metrics) or counters.step >= (config.train.steps or 0)
    if counters.best_step >= 0 and may_be_last and not directory.adapter.is_file():
        raise CheckpointError(
            f"`{directory.adapter}` is not there, but holds the run's best weights, those of step "
            f"{counters.best_step}. Put it back, or delete `{directory.checkpoint}`: --resume then starts from the "
            "first step."
        )


def _process_changes(config: Config, checkpoint: Checkpoint) -> list[str]:
    began, now = len(checkpoint.rng), count_processes(config.train.devices, prefix="train.")
    return [] if began == now else [f"`train.devices` (processes) was {began} and is {now}"]


def _data_changes(config: Config, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    found = []
    for split, paths in (("train", config.data.train), ("val", config.data.val)):
        differences = changes(SetContents.from_dict(before[split]), SetContents.from_dict(now[split]))
        if differences:
            found.append(f"`data.{split}.annotations` ({paths.annotations}) holds other data: {', '.join(differences)}")
    return found


def finished_summary(config: Config, directory: RunDirectory, checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    """Return the summary of a finished run; None where something is left to do."""
    counters, train = checkpoint.counters, config.train
    is_over = counters.step >= (train.steps or 0) or counters.is_out_of_patience(train.patience)
    files = (directory.adapter, directory.predictions, directory.summary, directory.report)
    if not is_over or counters.is_evaluation_due or not all(path.is_file() for path in files):
        return None
    summary = read_object(directory.summary)
    return summary if summary.get("steps") == counters.step else None
