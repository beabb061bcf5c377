"""Batches of `pretrain_base.py`: synthetic scenes, and images of a real set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from pretrain_base_stages import SEED, STAGES, Stage, stage_at
from torch import Tensor

from vispeft.data import Draw, InstanceDataset, TrainTransform, read_coco
from vispeft.models import MaskDINO
from vispeft.structures import Targets
from vispeft.synthetic import SHAPE_NAMES, Scene, render_scene


def to_targets(labels: np.ndarray, masks: np.ndarray) -> Targets:
    """Return targets with the boxes of the masks. labels: [T]; masks: [T, H, W] bool"""
    height, width = masks.shape[1:]
    boxes = np.zeros((len(masks), 4), dtype=np.float32)
    for i, mask in enumerate(masks):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x0, x1, y0, y1 = columns[0] / width, (columns[-1] + 1) / width, rows[0] / height, (rows[-1] + 1) / height
        boxes[i] = ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)
    return Targets(torch.from_numpy(labels), torch.from_numpy(boxes), torch.from_numpy(masks))


def scene_for(rng: np.random.Generator, stage: Stage) -> Scene:
    """Draw a broad scene with objects that are few and large enough for the stage."""
    while True:
        scene = render_scene(rng, stage.image_size)
        side = float(np.median(np.sqrt(scene.masks.sum((1, 2)))))
        if len(scene.labels) <= stage.max_objects and side >= stage.min_side:
            return scene


def synthetic_batch(rng: np.random.Generator, stage: Stage) -> tuple[list[np.ndarray], list[Targets]]:
    """Return images [H, W, 3] uint8 and their targets."""
    scenes = [scene_for(rng, stage) for _ in range(stage.batch)]
    return [s.image for s in scenes], [to_targets(s.labels, s.masks) for s in scenes]


class ExtraSet:
    """Random batches of a real COCO set, with all objects labelled as blobs."""

    def __init__(self, annotations: Path, images: Path) -> None:
        self.coco_set = read_coco(annotations, images)
        self.datasets: dict[int, InstanceDataset] = {}

    def batch(self, rng: np.random.Generator, stage: Stage) -> tuple[list[np.ndarray], list[Targets]]:
        """Return a batch like `synthetic_batch`: flipped, rotated, scaled and, with probability 0.5, inverted."""
        side = stage.image_size
        if side not in self.datasets:
            transform = TrainTransform(side, scale=(0.7, 2.5), vertical_flip=0.5, quarter_turn=0.5)
            self.datasets[side] = InstanceDataset(self.coco_set, transform, seed=SEED)
        images, targets = [], []
        for index in rng.integers(len(self.coco_set), size=stage.batch):
            sample = self.datasets[side][Draw(int(index), int(rng.integers(2**31)))]
            height, width = sample.image.shape[1:]
            image = np.zeros((side, side, 3), dtype=np.uint8)
            image[:height, :width] = sample.image.permute(1, 2, 0).numpy()
            images.append(255 - image if rng.random() < 0.5 else image)
            masks = np.zeros((len(sample.labels), side, side), dtype=bool)
            masks[:, :height, :width] = sample.masks.numpy()
            labels = np.full(len(masks), SHAPE_NAMES.index("blob"), dtype=np.int64)
            targets.append(to_targets(labels, masks))
        return images, targets


def batches(first: int, rank: int, extra: ExtraSet | None) -> Iterator[tuple[list[np.ndarray], list[Targets]]]:
    """Yield one batch per step from `first` on. A batch depends on seed, step and rank alone."""
    for step in range(first, sum(stage.steps for stage in STAGES)):
        stage, _ = stage_at(step)
        rng = np.random.default_rng((SEED, step, rank))
        if extra is not None and rng.random() < stage.extra:
            yield extra.batch(rng, stage)
        else:
            yield synthetic_batch(rng, stage)


def normalise(images: list[np.ndarray], model: MaskDINO) -> Tensor:
    """Return images normalised by the model's pixel statistics: [B, 3, H, W] float32."""
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    return (stacked - torch.tensor(model.pixel_mean)[:, None, None]) / torch.tensor(model.pixel_std)[:, None, None]
