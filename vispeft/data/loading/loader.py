"""Batches for training and evaluation, prepared ahead in worker processes and the same for any number of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vispeft.coco.sets import CocoSet
from vispeft.data.loading.collate import collate
from vispeft.data.loading.sampling import Draws, EvalBatches, TrainBatches, repeat_factors
from vispeft.data.reading.dataset import Draw, InstanceDataset, Sample
from vispeft.errors import ConfigError, DataError, VispeftError
from vispeft.structures import Batch

Sampler = Literal["shuffle", "class_balanced"]
PREFETCH = 2


@dataclass(frozen=True)
class _Failure:
    """An error passed from a worker to the main process without the worker's traceback."""

    message: str


class Loader:
    """Batches, and their number as `len`. Each iteration starts at the first batch, with the same worker processes."""

    def __init__(self, batches: Iterable[Batch | _Failure], num_batches: int) -> None:
        self._batches = batches
        self._num_batches = num_batches

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._batches:
            if isinstance(batch, _Failure):
                raise DataError(batch.message)
            yield batch


def train_draws(
    coco_set: CocoSet,
    *,
    batch_size: int,
    seed: int,
    steps: int,
    start_step: int = 0,
    variants: int | None = None,
    sampler: Sampler = "shuffle",
    balance_threshold: float | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> TrainBatches:
    """Return the batches of draws of steps `start_step` to `steps` of training.

    A run that resumes draws exactly what it would have drawn without the interruption.

    batch_size: images per process and step
    variants: fixed augmentations of each image that training draws from; None: every draw is augmented anew
    """
    for name, value, least in (("batch_size", batch_size, 1), ("start_step", start_step, 0)):
        if value < least:
            raise ConfigError(f"`{name}` must be at least {least}, but is {value}.")
    if sampler not in ("shuffle", "class_balanced"):
        raise ConfigError(f"`sampler` must be shuffle or class_balanced, but is {sampler}.")
    is_balanced = sampler == "class_balanced"
    factors = repeat_factors(coco_set, balance_threshold) if is_balanced else np.ones(len(coco_set))
    return TrainBatches(factors, batch_size, steps, start_step, seed, rank, world_size, variants)


def eval_draws(coco_set: CocoSet, *, batch_size: int, rank: int = 0, world_size: int = 1) -> EvalBatches:
    """Return batches that draw every image once, in order."""
    if batch_size < 1:
        raise ConfigError(f"`batch_size` must be at least 1, but is {batch_size}.")
    return EvalBatches(len(coco_set), batch_size, rank, world_size)


def draw_loader(
    dataset: InstanceDataset,
    batches: Draws,
    *,
    pixel_mean: Sequence[float],
    pixel_std: Sequence[float],
    workers: int = 0,
    seed: int = 0,
    size_divisor: int = 1,
) -> Loader:
    """Return a loader of these batches, padded to the transform's `image_size`.

    workers: processes that prepare batches ahead; 0 prepares them in this process
    """
    if workers < 0:
        raise ConfigError(f"`workers` must be at least 0, but is {workers}.")
    to_batch = partial(
        collate,
        pixel_mean=tuple(pixel_mean),
        pixel_std=tuple(pixel_std),
        image_size=dataset.transform.image_size,
        size_divisor=size_divisor,
    )
    return Loader(
        DataLoader(
            _Guarded(dataset),
            batch_sampler=batches,
            collate_fn=partial(_collate_or_fail, to_batch),
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=PREFETCH if workers else None,
            worker_init_fn=_start_worker if workers else None,
            # an own generator: the number of loaders must not move the global random state
            generator=torch.Generator().manual_seed(seed),
        ),
        len(batches),
    )


class _Guarded(Dataset[Sample | _Failure]):
    """Data set of samples, or of the error that prevents one."""

    def __init__(self, dataset: InstanceDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, draw: Draw) -> Sample | _Failure:
        try:
            return self.dataset[draw]
        except VispeftError as error:
            return _Failure(str(error))


def _collate_or_fail(
    to_batch: Callable[[Sequence[Sample]], Batch], samples: Sequence[Sample | _Failure]
) -> Batch | _Failure:
    for sample in samples:
        if isinstance(sample, _Failure):
            return sample
    try:
        return to_batch([sample for sample in samples if isinstance(sample, Sample)])
    except VispeftError as error:
        return _Failure(str(error))


def _start_worker(worker_idx: int) -> None:
    cv2.setNumThreads(0)
    info = torch.utils.data.get_worker_info()
    if info is not None and isinstance(info.dataset, _Guarded):
        info.dataset.dataset.cache_bytes //= info.num_workers
