from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from vispeft.data import Draw, EvalTransform, InstanceDataset, Sample, TrainTransform, read_coco
from vispeft.errors import DataError


def equal(left: Sample, right: Sample) -> bool:
    return left.image.shape == right.image.shape and all(
        torch.equal(getattr(left, name), getattr(right, name)) for name in ("image", "labels", "boxes_xyxy", "masks")
    )


def test_dataset__depends_on_seed_and_draw_alone(write: Any, folder: Path, document: dict[str, Any]) -> None:
    coco_set = read_coco(write(document), folder)
    first = InstanceDataset(coco_set, TrainTransform(40), seed=1)
    second = InstanceDataset(coco_set, TrainTransform(40), seed=1, cache_bytes=0)
    draws = [Draw(index, number) for number in range(4) for index in range(2)]
    samples = {draw: first[draw] for draw in draws}
    assert all(equal(samples[draw], second[draw]) for draw in reversed(draws))
    assert not equal(samples[Draw(0, 0)], samples[Draw(0, 1)])
    other = InstanceDataset(coco_set, TrainTransform(40), seed=2)
    assert not all(equal(samples[draw], other[draw]) for draw in draws)


def test_dataset__tells_where_a_sample_came_from(write: Any, folder: Path, document: dict[str, Any]) -> None:
    dataset = InstanceDataset(read_coco(write(document), folder), EvalTransform(96))
    meta = dataset[1].meta
    assert (meta.image_id, meta.file_name, meta.height, meta.width) == (2, "b.png", 32, 48)
    assert (meta.input_height, meta.input_width) == (64, 96) == tuple(dataset[1].image.shape[1:])
    assert len(dataset) == 2
    with pytest.raises(IndexError):
        dataset[2]


def test_dataset__leaves_crowd_regions_out(write: Any, folder: Path, document: dict[str, Any]) -> None:
    dataset = InstanceDataset(read_coco(write(document), folder), EvalTransform(48))
    assert [len(sample.labels) for sample in dataset] == [2, 1]
    assert dataset[0].labels.tolist() == [1, 0]


def test_dataset__keeps_its_cache_within_bounds_and_to_itself(
    write: Any, folder: Path, document: dict[str, Any]
) -> None:
    coco_set = read_coco(write(document), folder)
    dataset = InstanceDataset(coco_set, EvalTransform(48), cache_bytes=32 * 48 * 3)
    kept = [dataset[0], dataset[1]]
    for path in folder.iterdir():
        path.unlink()
    assert equal(dataset[0], kept[0])
    for lost in (lambda: dataset[1], lambda: pickle.loads(pickle.dumps(dataset))[0]):
        with pytest.raises(DataError, match="does not exist"):
            lost()


def test_dataset__needs_an_image_folder(write: Any, document: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="without an image folder"):
        InstanceDataset(read_coco(write(document), None), EvalTransform(48))[0]
