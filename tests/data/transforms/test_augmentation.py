from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from vispeft.coco.segmentation import Polygons
from vispeft.coco.sets import Annotation
from vispeft.data.reading.images import Picture
from vispeft.data.transforms.augmentation import EvalTransform, Example, TrainTransform
from vispeft.errors import ConfigError

HEIGHT, WIDTH = 90, 120
BOXES = [(10, 10, 40, 30), (60, 50, 110, 80), (70, 12, 78, 20)]


def picture() -> Picture:
    pixels = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
    for place, (left, top, right, bottom) in enumerate(BOXES):
        pixels[top:bottom, left:right] = 0
        pixels[top:bottom, left:right, place] = 240
    return Picture(pixels)


def annotation(identifier: int, box: tuple[int, int, int, int]) -> Annotation:
    left, top, right, bottom = box
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], float)
    bbox = (float(left), float(top), float(right - left), float(bottom - top))
    return Annotation(identifier, 1, identifier, False, Polygons((corners,)), bbox, bbox[2] * bbox[3])


ANNOTATIONS = [annotation(place, box) for place, box in enumerate(BOXES)]


def apply(transform: Any, seed: int = 0, annotations: Any = ANNOTATIONS) -> Example:
    example: Example = transform(picture(), annotations, HEIGHT, WIDTH, np.random.default_rng(seed))
    return example


def assert_in_step(example: Example) -> None:
    """Each mask lies on its own colour, each box around its mask."""
    for label, box, mask in zip(example.labels.tolist(), example.boxes_xyxy, example.masks, strict=True):
        inside = example.image[:, mask].float().mean(1)
        assert int(inside.argmax()) == label
        y, x = torch.where(mask)
        assert box.tolist() == [int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1]


@pytest.mark.parametrize("seed", range(12))
def test_train_transform__keeps_instances_in_step(seed: int) -> None:
    transform = TrainTransform(96, scale=(0.4, 2.5), vertical_flip=0.5, quarter_turn=0.5, colour=0.2)
    example = apply(transform, seed)
    assert len(example.labels) >= 1
    assert max(example.image.shape[1:]) <= 96
    assert example.masks.shape[1:] == example.image.shape[1:]
    assert_in_step(example)


@pytest.mark.parametrize("seed", range(4))
def test_train_transform__keeps_step_under_an_extra_transform(seed: int) -> None:
    extra = [("ElasticTransform", {"alpha": 20, "sigma": 5, "p": 1.0}), ("GaussNoise", {"p": 1.0})]
    transform = TrainTransform(96, scale=(1, 1), colour=0, extra=extra)
    plain = TrainTransform(96, scale=(1, 1), colour=0)
    example = apply(transform, seed)
    assert_in_step(example)
    assert not torch.equal(example.image, apply(plain, seed).image)


def test_train_transform__is_repeatable_and_varied() -> None:
    transform = TrainTransform(96)
    first, again, other = apply(transform, 1), apply(transform, 1), apply(transform, 2)
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.masks, again.masks)
    assert first.image.shape != other.image.shape or not torch.equal(first.image, other.image)


def test_train_transform__drops_what_is_not_seen() -> None:
    example = apply(TrainTransform(96, scale=(4, 4), colour=0), seed=3)
    assert 1 <= len(example.labels) < 3
    tiny = TrainTransform(96, scale=(0.05, 0.05), colour=0, min_pixels=8)
    assert len(apply(tiny).labels) == 0


def test_train_transform__takes_an_image_without_instances() -> None:
    extra = [("HorizontalFlip", {"p": 1.0})]
    example = apply(TrainTransform(96, extra=extra), annotations=[])
    assert example.masks.shape == (0, *example.image.shape[1:])
    assert example.boxes_xyxy.shape == (0, 4)


def test_train_transform__without_randomness_is_the_eval_transform() -> None:
    transform = TrainTransform(60, scale=(1, 1), flip=0, colour=0, min_pixels=1)
    left, right = apply(transform), apply(EvalTransform(60))
    for name in ("image", "labels", "boxes_xyxy", "masks"):
        assert torch.equal(getattr(left, name), getattr(right, name))


def test_eval_transform__gives_exact_masks_at_the_same_size() -> None:
    example = apply(EvalTransform(120))
    np.testing.assert_array_equal(example.image.permute(1, 2, 0).numpy(), picture().pixels)
    assert example.boxes_xyxy.tolist() == [list(map(float, box)) for box in BOXES]
    assert example.masks.sum((1, 2)).tolist() == [600, 1500, 64]


def test_train_transform__refuses_an_extra_that_normalises() -> None:
    with pytest.raises(ConfigError, match="8 bits"):
        apply(TrainTransform(64, extra=[("Normalize", {})]))


def test_train_transform__names_an_extra_that_does_not_suit_an_image() -> None:
    transform = TrainTransform(32, extra=[("RandomCrop", {"height": 1000, "width": 1000})])
    with pytest.raises(ConfigError, match=r"`extra`.*fail on one of"):
        apply(transform)


def test_train_transform__survives_pickling() -> None:
    transform = TrainTransform(96)
    assert torch.equal(apply(pickle.loads(pickle.dumps(transform))).image, apply(transform).image)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"scale": (0, 1)}, "`scale`"),
        ({"scale": (2, 1)}, "`scale`"),
        ({"flip": 2}, "`flip`"),
        ({"colour": -1}, "`colour`"),
        ({"image_size": 0}, "`image_size`"),
        ({"extra": [("GausNoise", {})]}, "`GaussNoise`"),
        ({"extra": [("Rotate", {"limit": "far"})]}, "`Rotate`"),
        ({"extra": [("Blur", {"blurr": 3})]}, "`Blur`"),
    ],
)
def test_train_transform__refuses_bad_options(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        TrainTransform(**{"image_size": 64, **options})
