"""Kept features of a run, made from its configuration, or the reason why there are none."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from vispeft import peft
from vispeft.config import Config
from vispeft.data import InstanceDataset
from vispeft.data.loading.sampling import Draws
from vispeft.engine.feature_keys import EntryKeys, prefix_fingerprint, set_digest
from vispeft.engine.loaders import (
    DataSets,
    Share,
    drawn_for_scoring,
    drawn_for_training,
    image_size,
    loader_of,
    train_dataset,
    val_dataset,
    val_loader,
)
from vispeft.models import SegmentationModel
from vispeft.models.modes import evaluating
from vispeft.models.split import FrozenPrefix, SplitPointError, Tail
from vispeft.training.devices import choose_precision
from vispeft.training.feature_cache.loader import FeatureLoader, FillReport, NoRoomError, fill
from vispeft.training.feature_cache.store import DirectoryStore, FeatureMemory, FeatureStore

OFF = "off"
MEMORY = "memory"


@dataclass(frozen=True)
class KeptFeatures:
    """Features on which a run trains and evaluates instead of images.

    train: None if every draw is augmented anew
    """

    prefix: FrozenPrefix
    train: FeatureLoader | None
    val: FeatureLoader
    report: FillReport

    def tail_of(self, model: SegmentationModel) -> Tail:
        """Return the tail of `model`, which takes these features. Its frozen prefix must be the one that made them.

        The prefix runs once: deltas of the tail may need the sizes of its maps, which hooks record.
        """
        images = torch.zeros(1, model.num_channels, *self.prefix.padded_size, device=next(model.parameters()).device)
        with evaluating(model):
            self.prefix(model, images)
        return Tail(model, self.prefix)

    def describe(self) -> dict[str, Any]:
        """Return the entry of summary.json: last module before the split point, data splits, counts of this session."""
        return {
            "behind": self.prefix.point.name,
            "splits": ["val"] if self.train is None else ["train", "val"],
            "computed": self.report.num_computed,
            "reused": self.report.num_reused,
            "bytes": self.report.num_bytes,
            "seconds": self.report.seconds,
        }


def keep_features(
    config: Config, fabric: Fabric, sets: DataSets, model: SegmentationModel, *, start_step: int, memory: FeatureMemory
) -> KeptFeatures | None:
    """Return the features that `train.feature_cache` asks for; compute those that are missing.

    None if it is `off`, and, with a warning that gives the reason, if there is nothing to keep or no room for it. The
    model, to which the plan has been applied, is moved to the run's device and put in train mode.

    start_step: first step of this session of the run
    memory: store of the features if `train.feature_cache` is `memory`
    """
    if config.train.feature_cache == OFF:
        return None
    try:
        return _kept(config, fabric, sets, model, start_step=start_step, memory=memory)
    except (SplitPointError, NoRoomError) as reason:
        warnings.warn(f"`train.feature_cache` is off for this run: {reason}.", stacklevel=2)
        return None


def _kept(
    config: Config, fabric: Fabric, sets: DataSets, model: SegmentationModel, *, start_step: int, memory: FeatureMemory
) -> KeptFeatures:
    if config.model.tile is not None:
        raise SplitPointError("images are cut into tiles (`model.tile`)")
    if fabric.world_size > 1:
        raise SplitPointError("several processes train one model")
    model.to(fabric.device)
    peft.train_mode(model)
    memory.begin_run()
    prefix, kind = _frozen_prefix(config, fabric, sets, model), fabric.device.type
    arithmetic = f"{kind} {choose_precision(kind, config.train.precision)}"
    fingerprint = prefix_fingerprint(config, model, prefix, arithmetic=arithmetic)
    keeper = _Keeper(config, fabric, model, prefix, fingerprint, memory)
    augment = config.data.augment
    train, report = None, FillReport()
    if augment.variants is None:
        warnings.warn(
            "`train.feature_cache` keeps features of validation images only: training images are augmented anew each "
            "time. Set `data.augment.variants` to train on fixed variants of each image.",
            stacklevel=3,
        )
    else:
        draws = drawn_for_training(config, sets.train, Share(), start_step=start_step)
        settings = augment.model_dump(mode="json", exclude={"variants"})
        if augment.copy_paste:
            # a sample then depends on other images too
            settings["pasted_from"] = set_digest(sets.train)
        dataset = train_dataset(config, sets.train)
        train, report = keeper.keep(dataset, draws, settings, config.train.batch_size, "training")
    draws = drawn_for_scoring(config, sets.val, Share())
    val, val_report = keeper.keep(val_dataset(config, sets.val), draws, {}, config.eval.batch_size, "validation")
    return KeptFeatures(prefix, train, val, report + val_report)


def _frozen_prefix(config: Config, fabric: Fabric, sets: DataSets, model: SegmentationModel) -> FrozenPrefix:
    """Return the model's frozen prefix, verified on one image."""
    alone = config.model_copy(update={"train": config.train.model_copy(update={"workers": 0})})
    batch = next(iter(val_loader(alone, sets.train.subset([0]), model, Share())))
    images = batch.images.to(fabric.device)
    with fabric.autocast():
        return FrozenPrefix(model, model.split(images), images)


@dataclass(frozen=True)
class _Keeper:
    """Model, settings and stores that turn images into kept features."""

    config: Config
    fabric: Fabric
    model: SegmentationModel
    prefix: FrozenPrefix
    fingerprint: str
    memory: FeatureMemory

    def keep(
        self, dataset: InstanceDataset, draws: Draws, settings: dict[str, Any], batch_size: int, split: str
    ) -> tuple[FeatureLoader, FillReport]:
        """Compute missing features of `draws`; return their loader and a report. settings: of the augmentation"""
        keys = EntryKeys(dataset.coco_set, {"image_size": image_size(self.config), **settings})
        store = self._store(batch_size)
        loader = FeatureLoader(store, draws, keys, dataset.coco_set.images, self.prefix.padded_size)
        report = fill(
            store,
            loader.needed(),
            load_batches=lambda batches: loader_of(self.config, dataset, batches, self.model),
            prefix=self._features,
            batch_size=batch_size,
            bytes_per_image=self.prefix.bytes_per_image,
            device=self.fabric.device,
            description=f"{split} features",
        )
        return loader, report

    def _features(self, images: Tensor) -> Sequence[Tensor]:
        with self.fabric.autocast():
            return self.prefix(self.model, images)

    def _store(self, batch_size: int) -> FeatureStore:
        # the last bit may depend on the batch size with which the prefix runs
        name = f"{self.fingerprint}-{batch_size}"
        place = self.config.train.feature_cache
        return self.memory.store(name) if place == MEMORY else DirectoryStore(Path(place).expanduser() / name)
