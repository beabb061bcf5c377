"""A check of the samples of a set."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from vispeft.coco.sets import CocoSet
from vispeft.data import EvalTransform, InstanceDataset, TrainTransform


@pytest.fixture(scope="session")
def take_every_sample() -> Callable[[CocoSet], None]:
    return _take_every_sample


def _take_every_sample(coco_set: CocoSet) -> None:
    """Take every sample of a set as training and evaluation do, and look for what must never reach a loss."""
    for transform in (EvalTransform(64), TrainTransform(64, quarter_turn=0.5)):
        dataset = InstanceDataset(coco_set, transform)
        for index in range(len(dataset)):
            sample = dataset[index]
            assert min(sample.image.shape) >= 1
            assert max(sample.image.shape) <= 64
            assert torch.isfinite(sample.boxes_xyxy).all()
            assert (sample.boxes_xyxy[:, 2:] > sample.boxes_xyxy[:, :2]).all()
            assert sample.masks.flatten(1).any(1).all()
            assert set(sample.labels.tolist()) <= set(range(len(coco_set.categories)))
