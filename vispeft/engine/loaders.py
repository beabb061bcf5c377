"""Data sets and loaders of a configuration."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from vispeft.coco.sets import CocoSet, match_categories
from vispeft.config import Config, SplitConfig
from vispeft.data import (
    EvalTransform,
    InstanceDataset,
    Loader,
    TrainTransform,
    draw_loader,
    eval_draws,
    train_draws,
)
from vispeft.data.loading.sampling import Draws, TileBatches
from vispeft.data.reading.channels import RGB
from vispeft.data.reading.dataset import CACHE_BYTES
from vispeft.data.transforms.augmentation import TileTransform
from vispeft.data.transforms.tiles import Tiling
from vispeft.engine.build import complete, kept_class_names, num_channels_of
from vispeft.engine.data_warnings import warn_of_tiny_objects
from vispeft.engine.kept_classes import with_kept_classes
from vispeft.engine.tasks.registry import TASKS
from vispeft.errors import ConfigError
from vispeft.models import SegmentationModel

TILED_CACHE_BYTES = 2**30
"""Decoded pictures that training keeps, in all loader processes together, where it draws windows of large images."""


@dataclass(frozen=True)
class DataSets:
    """Training and validation sets of a run; `val` has the class indices of `train`."""

    train: CocoSet
    val: CocoSet


@dataclass(frozen=True)
class Share:
    """Rank of this process and the number of processes."""

    rank: int = 0
    world_size: int = 1


def read_sets(config: Config) -> DataSets:
    """Read and check both data sets; warn of all that was left out."""
    channels = num_channels_of(config.model)
    train = read_split(config.data.train, "data.train", channels, task=config.task)
    val = read_split(config.data.val, "data.val", channels, task=config.task)
    _warn_of_untaught_classes(train)
    if config.model.keep_classes:
        train = with_kept_classes(train, kept_class_names(config.model))
    size = image_size(complete(config, len(train)))
    warn_of_tiny_objects(train, size, config.data.augment.min_pixels, tile=config.model.tile)
    return DataSets(train, match_categories(train, val))


def _warn_of_untaught_classes(train: CocoSet) -> None:
    untaught = set(range(len(train.categories)))
    for group in train.annotations:
        untaught -= {annotation.category_idx for annotation in group}
        if not untaught:
            return
    names = [f"`{train.class_names[idx]}`" for idx in sorted(untaught)]
    named = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    warnings.warn(f"{train.annotations_path}: no instance to learn these classes from: {named}.", stacklevel=3)


def check_named(split: SplitConfig, key: str) -> None:
    """Raise ConfigError where the configuration does not name annotations and images. key: see `read_split`"""
    _required(split.annotations, f"{key}.annotations")
    _required(split.images, f"{key}.images")


def read_split(split: SplitConfig, key: str, num_channels: int = RGB, *, task: str = "instance") -> CocoSet:
    """Read one data set for a task and warn of its problems. key: its configuration key, for errors"""
    annotations, images = _required(split.annotations, f"{key}.annotations"), _required(split.images, f"{key}.images")
    found = TASKS[task].read(annotations, images, split.segments, num_channels=num_channels)
    for problem in found.report.warnings:
        warnings.warn(f"{split.annotations}: {problem.message}", stacklevel=2)
    return found


def train_loader(
    config: Config, coco_set: CocoSet, model: SegmentationModel, share: Share, *, start_step: int = 0
) -> Loader:
    """Return batches for the steps from `start_step` on."""
    draws = drawn_for_training(config, coco_set, share, start_step=start_step)
    return loader_of(config, train_dataset(config, coco_set), draws, model)


def val_loader(config: Config, coco_set: CocoSet, model: SegmentationModel, share: Share) -> Loader:
    """Return batches of every image of a set once, whole."""
    return loader_of(config, val_dataset(config, coco_set), drawn_for_scoring(config, coco_set, share), model)


def drawn_for_training(config: Config, coco_set: CocoSet, share: Share, *, start_step: int = 0) -> Draws:
    """Return the draws of the steps from `start_step` on."""
    train = config.train
    return train_draws(
        coco_set,
        batch_size=train.batch_size,
        seed=train.seed,
        steps=(train.steps or 0) * train.accumulate,
        start_step=start_step * train.accumulate,
        variants=config.data.augment.variants,
        sampler=config.data.sampler,
        rank=share.rank,
        world_size=share.world_size,
    )


def drawn_for_scoring(config: Config, coco_set: CocoSet, share: Share) -> Draws:
    """Return draws of every image of a set once, or of its tiles."""
    tiling = tiling_of(config)
    if tiling is not None:
        counts = tuple(len(tiling.tiles(image.height, image.width)) for image in coco_set.images)
        return TileBatches(counts, config.eval.batch_size, share.rank, share.world_size)
    return eval_draws(coco_set, batch_size=config.eval.batch_size, rank=share.rank, world_size=share.world_size)


def train_dataset(config: Config, coco_set: CocoSet) -> InstanceDataset:
    """Return augmented samples. Fixed variants are the same for every `train.seed`."""
    augment = config.data.augment
    transform = TrainTransform(
        image_size(config),
        scale=augment.scale,
        flip=augment.flip,
        vertical_flip=augment.vertical_flip,
        quarter_turn=augment.quarter_turn,
        colour=augment.colour,
        min_pixels=augment.min_pixels,
        extra=tuple(augment.extra.items()),
        tile=config.model.tile,
    )
    cache_bytes = CACHE_BYTES if config.model.tile is None else TILED_CACHE_BYTES
    seed = config.train.seed if augment.variants is None else 0
    channels = num_channels_of(config.model)
    return InstanceDataset(
        coco_set,
        transform,
        seed=seed,
        cache_bytes=cache_bytes,
        num_channels=channels,
        copy_paste=augment.copy_paste,
    )


def val_dataset(config: Config, coco_set: CocoSet) -> InstanceDataset:
    """Return samples without augmentation: whole images, or tiles."""
    tiling, size = tiling_of(config), image_size(config)
    transform = EvalTransform(size) if tiling is None else TileTransform(size, tiling)
    return InstanceDataset(coco_set, transform, seed=config.train.seed, num_channels=num_channels_of(config.model))


def loader_of(config: Config, dataset: InstanceDataset, draws: Draws, model: SegmentationModel) -> Loader:
    """Return a loader of batches, normalised and padded for the model."""
    return draw_loader(
        dataset,
        draws,
        pixel_mean=model.pixel_mean,
        pixel_std=model.pixel_std,
        workers=config.train.workers or 0,
        seed=config.train.seed,
        size_divisor=model.size_divisor,
    )


def tiling_of(config: Config) -> Tiling | None:
    """Return the division of images into tiles; None for whole images."""
    return None if config.model.tile is None else Tiling(config.model.tile, config.model.tile_overlap)


def image_size(config: Config) -> int:
    """Longer side of the network input in pixels, of a configuration that `complete` has filled in."""
    if config.model.image_size is None:
        raise ConfigError("`model.image_size` must be set, but is empty.")
    return config.model.image_size


def _required(path: Path | None, key: str) -> Path:
    if path is None:
        raise ConfigError(f"`{key}` must be set, but is empty. Add it to the file, or set {key}=PATH.")
    return path
