"""Masks of polygons are the same together and one by one."""

import numpy as np
import pytest

from vispeft.coco.polygon_batch import polygon_rles
from vispeft.coco.rle import to_rle

SQUARE = [1.0, 2.0, 9.0, 2.0, 9.0, 12.0, 1.0, 12.0]


def test_polygon_rles__are_those_of_to_rle() -> None:
    generator = np.random.default_rng(0)
    segmentations = [
        [generator.uniform(-5, 40, 2 * generator.integers(3, 9)).tolist() for _ in range(generator.integers(1, 5))]
        for _ in range(200)
    ]
    segmentations[3] = [[0, 0, 7, 0, 7, 7]]
    sizes = [(30, 20 + index % 3) for index in range(200)]
    found = polygon_rles(segmentations, sizes)
    assert found == {index: to_rle(one, *sizes[index]) for index, one in enumerate(segmentations)}


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        [],
        {"size": [30, 20], "counts": [600]},
        [[]],
        [[1, 2, 3, 4]],
        [SQUARE, SQUARE[:7]],
        [[float("nan"), 0, 5, 5, 0, 5]],
        [[1e7, 0, 5, 5, 0, 5]],
        [[0, 0, 1, 1, 0, 1]] * 3,
        [SQUARE, "text"],
    ],
    ids=["none", "empty", "rle", "no-points", "line", "odd", "nan", "long", "dense-mask", "text"],
)
def test_polygon_rles__leaves_others_out(segmentation: object) -> None:
    assert list(polygon_rles([segmentation, [SQUARE]], [(30, 20), (30, 20)])) == [1]


@pytest.mark.parametrize("number", ["1", True, 10**400, None], ids=["text", "bool", "huge", "null"])
def test_polygon_rles__leaves_all_out_for_values_that_are_no_numbers(number: object) -> None:
    assert polygon_rles([[[*SQUARE[:7], number]], [SQUARE]], [(30, 20), (30, 20)]) == {}


def test_polygon_rles__of_unknown_images_and_of_nothing() -> None:
    assert polygon_rles([[SQUARE]], [None]) == {}
    assert polygon_rles([], []) == {}
