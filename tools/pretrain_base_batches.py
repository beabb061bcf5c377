"""Batches of `pretrain_base.py`: photographs with named classes, copy-paste scenes, synthetic scenes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pretrain_base_recipe import (
    CUT_FROM,
    FROM_ABOVE,
    MAX_OBJECTS,
    MIN_SIDE,
    OBJECT_SHARE,
    PASTED_SHARE,
    PHOTOGRAPH_SHARE,
    PHOTOGRAPHS,
    SEED,
    SIZES,
)
from pretrain_base_scenes import CutOuts, photographs_for_cutting
from torch import Tensor

from vispeft.coco.sets import CocoSet
from vispeft.data import Draw, InstanceDataset, TrainTransform, read_coco
from vispeft.models import SegmentationModel
from vispeft.models.class_head import ANY_OBJECT, normalised
from vispeft.structures import Targets
from vispeft.synthetic import Scene, render_scene


@dataclass(frozen=True)
class TrainingBatch:
    """Images [S, S, 3] uint8 with their targets. labelled: the classes that the images are labelled for"""

    images: list[np.ndarray]
    targets: list[Targets]
    labelled: tuple[int, ...]


class Photographs:
    """Training images of several COCO sets under one list of classes, "object" first."""

    def __init__(self, folder: Path) -> None:
        self.sets: list[CocoSet] = [read_coco(folder / n / "train.json", folder / n / "images") for n in PHOTOGRAPHS]
        self.class_names = [ANY_OBJECT]
        self.indices: list[np.ndarray] = []
        for coco_set in self.sets:
            names = [normalised(name) for name in coco_set.class_names]
            self.class_names += [name for name in names if name not in self.class_names]
            self.indices.append(np.array([self.class_names.index(name) for name in names], dtype=np.int64))
        self.datasets: dict[tuple[int, int], InstanceDataset] = {}

    def dataset(self, number: int, side: int) -> InstanceDataset:
        """Return a set at one image size."""
        if (number, side) not in self.datasets:
            turn = 0.5 if list(PHOTOGRAPHS)[number] in FROM_ABOVE else 0.0
            transform = TrainTransform(side, scale=(0.6, 2.0), vertical_flip=turn, quarter_turn=turn)
            self.datasets[number, side] = InstanceDataset(self.sets[number], transform, seed=SEED, cache_bytes=2**27)
        return self.datasets[number, side]

    def batch(self, rng: np.random.Generator, side: int, count: int) -> TrainingBatch:
        """Return a batch of one of the sets, in some batches with all its objects as "object"."""
        number = int(rng.choice(len(self.sets), p=list(PHOTOGRAPHS.values())))
        dataset = self.dataset(number, side)
        as_objects = rng.random() < OBJECT_SHARE
        images: list[np.ndarray] = []
        targets: list[Targets] = []
        while len(images) < count:
            sample = dataset[Draw(int(rng.integers(len(dataset))), int(rng.integers(2**31)))]
            if not len(sample.masks):
                continue
            height, width = sample.image.shape[1:]
            image = np.full((side, side, 3), 127, dtype=np.uint8)
            image[:height, :width] = sample.image.permute(1, 2, 0).numpy()
            masks = np.zeros((len(sample.labels), side, side), dtype=bool)
            masks[:, :height, :width] = sample.masks.numpy()
            kept = rng.permutation(len(masks))[:MAX_OBJECTS]
            labels = sample.labels.numpy()[kept]
            labels = np.zeros_like(labels) if as_objects else self.indices[number][labels]
            images.append(image)
            targets.append(to_targets(labels, masks[kept]))
        labelled = (0,) if as_objects else (0, *(int(i) for i in self.indices[number]))
        return TrainingBatch(images, targets, labelled)


def to_targets(labels: np.ndarray, masks: np.ndarray) -> Targets:
    """Return targets with the boxes of the masks. labels: [T]; masks: [T, H, W] bool"""
    height, width = masks.shape[1:]
    boxes = np.zeros((len(masks), 4), dtype=np.float32)
    for i, mask in enumerate(masks):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x0, x1, y0, y1 = columns[0] / width, (columns[-1] + 1) / width, rows[0] / height, (rows[-1] + 1) / height
        boxes[i] = ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)
    return Targets(torch.from_numpy(labels), torch.from_numpy(boxes), torch.from_numpy(masks))


def scene_for(rng: np.random.Generator, side: int) -> Scene:
    """Draw a broad synthetic scene with objects that are few and large enough."""
    while True:
        scene = render_scene(rng, side)
        typical = float(np.median(np.sqrt(scene.masks.sum((1, 2)))))
        if len(scene.labels) <= MAX_OBJECTS and typical >= MIN_SIDE:
            return scene


class Batches:
    """Endless batches for one process. A batch depends on seed, step and rank alone."""

    def __init__(self, photographs: Photographs, cutouts: Path, backgrounds: Path) -> None:
        self.photographs = photographs
        sets = dict(zip(PHOTOGRAPHS, photographs.sets, strict=True))
        self.cutouts = CutOuts(cutouts, backgrounds, photographs_for_cutting([sets[name] for name in CUT_FROM]))

    def at(self, step: int, rank: int) -> TrainingBatch:
        """Return the batch of a step."""
        # all processes have images of one size, so that none waits
        side = int(np.random.default_rng((SEED, step)).choice(list(SIZES), p=[share for _, share in SIZES.values()]))
        count = SIZES[side][0]
        # a trailing zero would make the same numbers as the seed without it
        rng = np.random.default_rng((SEED, step, rank + 1))
        kind = rng.random()
        if kind < PHOTOGRAPH_SHARE:
            return self.photographs.batch(rng, side, count)
        is_pasted = kind < PHOTOGRAPH_SHARE + PASTED_SHARE
        scenes = [self.cutouts.scene(rng, side) if is_pasted else scene_for(rng, side) for _ in range(count)]
        targets = [to_targets(np.zeros_like(scene.labels), scene.masks) for scene in scenes]
        return TrainingBatch([scene.image for scene in scenes], targets, (0,))

    def from_step(self, step: int, rank: int) -> Iterator[TrainingBatch]:
        """Yield the batches from a step on."""
        while True:
            yield self.at(step, rank)
            step += 1


def normalise(images: list[np.ndarray], model: SegmentationModel) -> Tensor:
    """Return images normalised by the model's pixel statistics: [B, 3, H, W] float32."""
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    return (stacked - torch.tensor(model.pixel_mean)[:, None, None]) / torch.tensor(model.pixel_std)[:, None, None]
