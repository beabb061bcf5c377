"""A check of the samples of a set, and files that may not be read."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vispeft.coco.sets import CocoSet
from vispeft.data import EvalTransform, InstanceDataset, TrainTransform


@pytest.fixture
def forbid(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Return a function that lets a file, or a folder with all in it, be one that nobody may read.

    Permissions of the file system would not keep an administrator from reading.
    """

    def forbidden(path: Path) -> None:
        for module, name in ((os, "stat"), (os, "scandir"), (io, "open")):
            call = getattr(module, name)

            def attempt(place: Any, *args: Any, call: Any = call, name: str = name, **options: Any) -> Any:
                text = os.fspath(place) if isinstance(place, str | Path) else ""
                if text.startswith(f"{path}{os.sep}") or (text == str(path) and name != "stat"):
                    raise PermissionError(errno.EACCES, "Permission denied", text)
                return call(place, *args, **options)

            monkeypatch.setattr(module, name, attempt)

    return forbidden


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
