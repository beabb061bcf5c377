import contextlib

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from vispeft.coco.rle import boxes_of, check_counts, decode_columns, encode_region, encode_regions, run_lengths, to_rle


def _encoded(mask):
    rle = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode()}


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 0.98, 1.0])
@pytest.mark.parametrize(
    ("height", "width", "top", "left", "rows", "columns"),
    [
        (9, 7, 0, 0, 9, 7),
        (9, 7, 2, 3, 4, 2),
        (9, 7, 0, 5, 9, 2),
        (1, 13, 0, 4, 1, 9),
        (13, 1, 12, 0, 1, 1),
        (5, 5, 4, 4, 1, 1),
    ],
)
def test_encode_region__equals_pycocotools_on_the_whole_mask(density, height, width, top, left, rows, columns):
    region = np.random.default_rng(0).random((rows, columns)) < density
    mask = np.zeros((height, width), dtype=bool)
    mask[top : top + rows, left : left + columns] = region
    assert encode_region(region, top, left, height, width) == _encoded(mask)


def test_encode_region__a_thousand_random_regions():
    generator = np.random.default_rng(1)
    for _ in range(1000):
        height, width = (int(side) for side in generator.integers(1, 40, 2))
        rows, columns = int(generator.integers(1, height + 1)), int(generator.integers(1, width + 1))
        top, left = int(generator.integers(0, height - rows + 1)), int(generator.integers(0, width - columns + 1))
        region = generator.random((rows, columns)) < generator.random()
        mask = np.zeros((height, width), dtype=bool)
        mask[top : top + rows, left : left + columns] = region
        rle = encode_region(region, top, left, height, width)
        assert rle == _encoded(mask)
        check_counts(rle["counts"], height * width)


def test_encode_regions__each_equals_its_single_encoding():
    generator = np.random.default_rng(2)
    for density in (0.02, 0.5, 1.0):
        # of several sizes in one array; regions may reach beyond the mask where they are false, and some are empty
        regions = generator.random((7, 6, 8)) < density
        tops, lefts = generator.integers(0, 10, 7), generator.integers(0, 9, 7)
        columns, rows = np.minimum(generator.integers(0, 7, 7), 9 - lefts), np.minimum([8, 8, 3, 8, 1, 0, 8], 10 - tops)
        masks = np.zeros((7, 10, 9), dtype=bool)
        for region, mask, top, left, width, height in zip(regions, masks, tops, lefts, columns, rows, strict=True):
            region[width:], region[:, height:] = False, False
            mask[top : top + height, left : left + width] = region[:width, :height].T
        assert encode_regions(regions, tops, lefts, 10, 9) == [_encoded(mask) for mask in masks]
    assert encode_regions(np.zeros((0, 3, 3), dtype=bool), np.zeros(0, int), np.zeros(0, int), 10, 9) == []


def test_to_rle__polygons_lists_and_strings_say_the_same():
    polygon = [[2.0, 2.0, 8.0, 2.0, 8.0, 6.0, 2.0, 6.0]]
    rle = to_rle(polygon, 10, 12)
    mask = mask_utils.decode(rle)
    runs = np.diff(np.flatnonzero(np.diff(mask.T.ravel(), prepend=2, append=2)))
    assert to_rle({"size": [10, 12], "counts": runs.tolist()}, 10, 12) == rle == to_rle(rle, 10, 12)


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ("", "characters"),
        ("zzz\x01", "characters"),
        ("üñ", "characters"),
        ("PPPPPPPPPPPP0", "too large"),
        ("P", "cut off"),
        ("5", "do not add up"),
        ("0O", "do not add up"),
        ([3, 4], "do not add up"),
        ([-1, 25], "do not add up"),
        ([2**40], "no `counts`"),
        ([12.0, 12.0], "no `counts`"),
        ([True] * 24, "no `counts`"),
        (None, "no `counts`"),
        ({}, "no `counts`"),
    ],
)
def test_to_rle__counts_that_would_crash_pycocotools_are_refused(counts, reason):
    with pytest.raises(ValueError, match=reason):
        to_rle({"size": [4, 6], "counts": counts}, 4, 6)


@pytest.mark.parametrize("size", [None, [4], [4, 6, 1], [4.0, 6], [0, 24], "46", [6, 4]])
def test_to_rle__size_must_be_the_image(size):
    with pytest.raises(ValueError, match="size"):
        to_rle({"size": size, "counts": [24]}, 4, 6)


@pytest.mark.parametrize(
    "polygons",
    [
        "triangle",
        [],
        [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        [[]],
        [[1.0, 2.0]],
        [[1.0, 1.0, 3.0, 3.0]],
        [[1.0, 1.0, 3.0, 3.0, 5.0]],
        [[1.0, 1.0, float("nan"), 3.0, 5.0, 5.0]],
        [[1.0, 1.0, float("inf"), 3.0, 5.0, 5.0]],
        [[1.0, 1.0, "3", 3.0, 5.0, 5.0]],
        [[0.0, 0.0, 1e12, 0.0, 0.0, 1e12]],
        [[1, 1, 3, 3, 10**30, 5]],
    ],
)
def test_to_rle__polygons_that_would_crash_pycocotools_are_refused(polygons):
    with pytest.raises(ValueError, match="polygon"):
        to_rle(polygons, 10, 10)


def test_to_rle__a_polygon_past_the_edge_is_clipped():
    rle = to_rle([[5.0, 5.0, 30.0, 5.0, 30.0, 30.0, 5.0, 30.0]], 10, 12)
    mask = mask_utils.decode(rle)
    assert mask.shape == (10, 12)
    assert mask[5:, 5:].all()
    assert mask.sum() == 5 * 7


def test_run_lengths__never_trusts_its_text() -> None:
    generator = np.random.default_rng(0)
    num_read = 0
    for _ in range(2000):
        text = bytes(generator.integers(32, 127, generator.integers(1, 12)).astype(np.uint8)).decode()
        with contextlib.suppress(ValueError):
            num_read += run_lengths(text).dtype == np.int64
    assert 100 < num_read < 1900


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (40, 33)])
def test_run_lengths__of_text_and_of_a_list_give_pycocotools_mask(size: tuple[int, int]) -> None:
    mask = (np.random.default_rng(0).random(size) < 0.4).astype(np.uint8)
    runs = run_lengths(_encoded(mask)["counts"])
    np.testing.assert_array_equal(run_lengths(runs.tolist()), runs)
    for left in range(size[1]):
        np.testing.assert_array_equal(decode_columns(runs, size[0], left, size[1]), mask[:, left:])


def test_boxes_of__enclose_the_masks():
    mask = np.zeros((9, 7), dtype=bool)
    mask[2:5, 3], mask[4, 5] = True, True
    boxes = boxes_of([_encoded(mask), _encoded(np.zeros((9, 7), dtype=bool))])
    assert boxes.dtype == np.float32
    assert boxes.tolist() == [[3, 2, 6, 5], [0, 0, 0, 0]]
    assert boxes_of([]).shape == (0, 4)
