from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from vispeft.coco.segmentation import Polygons, encode_segmentation, parse_segmentation
from vispeft.data.reading.images import Picture
from vispeft.data.transforms.geometry import View, boxes_of, fit, jitter

HEIGHT, WIDTH = 60, 80
SHAPE = Polygons((np.array([[20.0, 10], [61, 14], [55, 50], [12, 40]]),))
MASK = coco_mask.decode(encode_segmentation(SHAPE, HEIGHT, WIDTH))
RLE = parse_segmentation(
    {"size": [HEIGHT, WIDTH], "counts": coco_mask.encode(np.asfortranarray(MASK))["counts"].decode()}, HEIGHT, WIDTH
)
WINDOWS = {
    "whole": fit(HEIGHT, WIDTH, 80),
    "smaller": fit(HEIGHT, WIDTH, 33),
    "larger": fit(HEIGHT, WIDTH, 200),
    "window": View(10, 5, 70, 45, 90, 60),
    "window smaller": View(10, 5, 70, 45, 30, 20),
}


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("flipped", [False, True])
def test_view__moves_pixels_polygons_and_rles_alike(window: str, turns: int, mirrored: bool, flipped: bool) -> None:
    base = WINDOWS[window]
    view = View(base.left, base.top, base.right, base.bottom, base.width, base.height, turns, mirrored, flipped)
    pixels = view.pixels(Picture(np.repeat(MASK[:, :, None] * 255, 3, 2)))
    from_pixels = pixels[:, :, 0] >= 128
    polygon, rle = view.masks([SHAPE, RLE]).astype(bool)
    assert from_pixels.shape == polygon.shape == rle.shape == view.size
    np.testing.assert_array_equal(from_pixels, rle)
    union, overlap = (polygon | rle).sum(), (polygon & rle).sum()
    # half a pixel of the contour is all that may differ
    assert overlap / union > (0.999 if window == "whole" and not (turns or mirrored or flipped) else 0.93)


def test_view__maps_a_reduced_picture_to_the_same_place() -> None:
    full = np.repeat(np.kron(MASK[::4, ::4], np.ones((8, 8), np.uint8))[:, :, None] * 255, 3, 2)
    view = fit(full.shape[0], full.shape[1], 40)
    half = view.pixels(Picture(full[::2, ::2], reduction=2))
    assert np.abs(half.astype(int) - view.pixels(Picture(full))).mean() < 3


@pytest.mark.parametrize("size", [(1, 1), (1, 20000), (20000, 3), (7, 5)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 2.0])
def test_jitter__keeps_every_side_between_one_and_the_image_size(size: tuple[int, int], scale: float) -> None:
    for view in (fit(*size, 64), jitter(*size, 64, scale, 0.0, 0.0), jitter(*size, 64, scale, 1.0, 1.0)):
        assert min(view.size) >= 1
        assert max(view.size) <= 64
        assert 0 <= view.left < view.right <= size[1]
        assert 0 <= view.top < view.bottom <= size[0]


def test_fit__brings_the_long_side_to_the_image_size() -> None:
    assert fit(600, 800, 512).size == (384, 512)


def test_boxes_of__surround_the_ones() -> None:
    masks = np.zeros((3, 20, 30), np.uint8)
    masks[0, 3:7, 10:12] = 1
    masks[1, 19, 29] = 1
    np.testing.assert_array_equal(boxes_of(masks), [[10, 3, 12, 7], [29, 19, 30, 20], [0, 0, 0, 0]])
    assert boxes_of(masks[:0]).shape == (0, 4)
