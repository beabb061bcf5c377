"""Tiles cover an image with the overlap that was asked for."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from vispeft.coco.segmentation import Polygons
from vispeft.coco.sets import Annotation
from vispeft.data.reading.images import Picture
from vispeft.data.transforms.augmentation import TrainTransform
from vispeft.data.transforms.tiles import Tiling, tile_view
from vispeft.errors import ConfigError


@pytest.mark.parametrize(("height", "width"), [(100, 100), (64, 64), (65, 63), (30, 500), (1, 1), (257, 129)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_tiles__cover_every_pixel_and_overlap(height: int, width: int, overlap: float) -> None:
    tiling = Tiling(64, overlap)
    covered = np.zeros((height, width), int)
    for tile in tiling.tiles(height, width):
        assert (tile.bottom - tile.top, tile.right - tile.left) == (min(64, height), min(64, width))
        covered[tile.top : tile.bottom, tile.left : tile.right] += 1
    assert covered.min() == 1
    lefts = sorted({tile.left for tile in tiling.tiles(height, width)})
    assert all(64 - (b - a) >= int(64 * overlap) - 1 for a, b in pairwise(lefts))


def test_tile_view__has_the_size_of_the_network_for_a_whole_tile() -> None:
    tiling = Tiling(64)
    assert tile_view(tiling.tiles(100, 100)[0], tiling, 128).size == (128, 128)
    assert tile_view(tiling.tiles(32, 100)[0], tiling, 128).size == (64, 128)


def test_train_transform__finds_the_only_object_of_a_large_image() -> None:
    outline = np.array([[901.0, 40.0], [909.0, 40.0], [909.0, 50.0], [901.0, 50.0]])
    annotation = Annotation(1, 1, 0, False, Polygons((outline,)), (901.0, 40.0, 8.0, 10.0), 80.0)
    transform = TrainTransform(64, tile=64, scale=(1.0, 1.0), colour=0)
    picture = Picture(np.zeros((1000, 1000, 3), np.uint8))
    for seed in range(10):
        example = transform(picture, (annotation,), 1000, 1000, np.random.default_rng(seed))
        assert example.image.shape == (3, 64, 64)
        assert len(example.labels) == 1


def test_tiling__refuses_sides_and_overlaps_that_leave_gaps() -> None:
    for side, overlap in ((0, 0.2), (10, 1.0), (10, -0.1)):
        with pytest.raises(ConfigError, match="side of at least 1 pixel"):
            Tiling(side, overlap)
