from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vispeft.config import parse_config
from vispeft.data import Draw, InstanceDataset, TrainTransform, read_coco
from vispeft.data.transforms.augmentation import Example
from vispeft.data.transforms.copy_paste import paste
from vispeft.errors import ConfigError
from vispeft.synthetic import write_coco


def example(height: int, width: int, boxes: list[tuple[int, int, int, int]], value: int) -> Example:
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    image = torch.full((3, height, width), value, dtype=torch.uint8)
    return Example(image, torch.full((len(boxes),), value), torch.tensor(boxes, dtype=torch.float32), masks)


def rng_that_takes(*chosen: bool) -> np.random.Generator:
    """A generator that takes these instances of the source."""
    seeds = (np.random.default_rng(seed) for seed in range(1000))
    return next(
        np.random.default_rng(seed) for seed, rng in enumerate(seeds) if tuple(rng.random(len(chosen)) < 0.5) == chosen
    )


def test_paste__covers_what_lies_below() -> None:
    below = example(40, 40, [(0, 0, 20, 20), (10, 10, 14, 14)], 1)
    above = example(40, 40, [(10, 10, 30, 30), (0, 30, 5, 35)], 2)
    pasted = paste(below, above, rng_that_takes(True, False), min_pixels=4)
    assert pasted.labels.tolist() == [1, 2]
    assert pasted.boxes_xyxy.tolist() == [[0, 0, 20, 20], [10, 10, 30, 30]]
    assert int(pasted.masks[0].sum()) == 400 - 100
    assert not (pasted.masks[0] & pasted.masks[1]).any()
    assert (pasted.image[:, pasted.masks[1]] == 2).all()
    assert (pasted.image[:, ~pasted.masks[1]] == 1).all()
    # what was given stays as it was
    assert int(below.masks.sum()) == 416
    assert (below.image == 1).all()


def test_paste__cuts_off_what_lies_outside() -> None:
    pasted = paste(
        example(20, 30, [], 1),
        example(30, 20, [(10, 10, 20, 30), (0, 22, 5, 30)], 2),
        rng_that_takes(True, True),
        min_pixels=4,
    )
    assert pasted.image.shape == (3, 20, 30)
    assert pasted.boxes_xyxy.tolist() == [[10, 10, 20, 20]]
    assert int(pasted.masks.sum()) == 100
    assert (pasted.image[:, pasted.masks[0]] == 2).all()
    assert (pasted.image[:, ~pasted.masks[0]] == 1).all()


def test_paste__gives_float_images_where_one_is() -> None:
    above = example(20, 20, [(0, 0, 5, 5)], 2)
    above = Example(above.image.float() + 0.5, above.labels, above.boxes_xyxy, above.masks)
    pasted = paste(example(20, 20, [], 1), above, rng_that_takes(True), min_pixels=4)
    assert pasted.image.dtype == torch.float32
    assert pasted.image[0, 0, 0] == 2.5
    assert pasted.image[0, 10, 10] == 1


@pytest.fixture
def dataset(tmp_path: Path) -> InstanceDataset:
    annotations = write_coco(tmp_path, num_images=4, size=64, seed=0)
    coco_set = read_coco(annotations, tmp_path / "images")
    return InstanceDataset(coco_set, TrainTransform(64), copy_paste=1.0)


def test_dataset__gives_the_same_sample_for_a_draw(dataset: InstanceDataset) -> None:
    first, second = dataset[Draw(1, 5)], dataset[Draw(1, 5)]
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.masks, second.masks)


def test_dataset__pastes_no_image_on_itself(dataset: InstanceDataset) -> None:
    alone = dataset.coco_set.subset([0])
    pasted = InstanceDataset(alone, dataset.transform, copy_paste=1.0)
    plain = InstanceDataset(alone, dataset.transform)
    assert torch.equal(pasted[Draw(0, 3)].image, plain[Draw(0, 3)].image)


def test_dataset__has_more_instances_with_copy_paste(dataset: InstanceDataset) -> None:
    plain = InstanceDataset(dataset.coco_set, dataset.transform)
    draws = [Draw(index, number) for index in range(4) for number in range(3)]
    assert sum(len(dataset[draw].labels) for draw in draws) > sum(len(plain[draw].labels) for draw in draws)


def test_config__refuses_copy_paste_for_other_tasks() -> None:
    with pytest.raises(ConfigError, match=r"`data\.augment\.copy_paste` must be 0 with `task: semantic`"):
        parse_config({"task": "semantic", "data": {"augment": {"copy_paste": 0.5}}})
