from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from vispeft.coco.segmentation import (
    Flaw,
    Polygons,
    Rle,
    clip_polygon,
    encode_segmentation,
    parse_segmentation,
    rasterize,
)

RNG = np.random.default_rng(3)


def random_mask(height: int, width: int) -> Any:
    mask = RNG.random((height, width)) < 0.3
    mask[: height // 2, : width // 2] |= True
    return mask.astype(np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (1, 63), (48, 64), (31, 7)])
def test_parse_segmentation__reads_compressed_and_plain_counts_alike(size: tuple[int, int]) -> None:
    for mask in (random_mask(*size), np.zeros(size, np.uint8), np.ones(size, np.uint8)):
        packed = coco_mask.encode(np.asfortranarray(mask))
        text = {"size": list(size), "counts": packed["counts"].decode()}
        rle = parse_segmentation(text, *size)
        assert isinstance(rle, Rle)
        plain = parse_segmentation({"size": list(size), "counts": rle.runs.tolist()}, *size)
        assert isinstance(plain, Rle)
        for one in (rle, plain):
            np.testing.assert_array_equal(one.crop(0, size[1]), mask)
            assert encode_segmentation(one, *size) == packed
        columns = np.flatnonzero(mask.any(0))
        assert rle.columns == ((columns[0], columns[-1] + 1) if len(columns) else (0, 0))


def test_rle_crop__is_a_slice_of_columns() -> None:
    mask = random_mask(33, 40)
    rle = parse_segmentation(
        {"size": [33, 40], "counts": coco_mask.encode(np.asfortranarray(mask))["counts"].decode()}, 33, 40
    )
    assert isinstance(rle, Rle)
    np.testing.assert_array_equal(rle.crop(7, 29), mask[:, 7:29])


BOX = [0.0, 0.0, 10.0, 0.0, 10.0, 10.0, 0.0, 10.0]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "missing-segmentation"),
        ([], "missing-segmentation"),
        ({}, "missing-segmentation"),
        (5, "bad-segmentation"),
        ("text", "bad-segmentation"),
        ([[]], "short-polygon"),
        ([BOX[:4]], "short-polygon"),
        ([BOX[:7]], "odd-polygon"),
        (BOX, "bad-polygon"),
        ([[BOX]], "bad-polygon"),
        ([[*BOX[:7], float("nan")]], "bad-polygon"),
        ([[*BOX[:7], "1"]], "bad-polygon"),
        ([[*BOX[:7], True]], "bad-polygon"),
        ([[*BOX[:7], 10**400]], "bad-polygon"),
        ([BOX, None], "bad-polygon"),
        ({"size": [20, 20]}, "bad-rle"),
        ({"counts": [400]}, "bad-rle"),
        ({"size": "20", "counts": [400]}, "bad-rle"),
        ({"size": [20, 20], "counts": [-1, 401]}, "bad-rle"),
        ({"size": [20, 20], "counts": [1.5, 398.5]}, "bad-rle"),
        ({"size": [20, 20], "counts": [399]}, "rle-sum"),
        ({"size": [20, 20], "counts": []}, "bad-rle"),
        ({"size": [20, 20], "counts": "\u00ff\u00ff"}, "bad-rle"),
        ({"size": [20, 20], "counts": "ooooooooooooooo"}, "bad-rle"),
        ({"size": [20, 20], "counts": [0] * 10_000 + [400]}, "bad-rle"),
        ({"size": [10, 40], "counts": [400]}, "rle-size"),
    ],
)
def test_parse_segmentation__tells_what_is_wrong(value: Any, kind: str) -> None:
    flaw = parse_segmentation(value, 20, 20)
    assert isinstance(flaw, Flaw)
    assert flaw.kind == kind


def test_parse_segmentation__keeps_good_parts_beside_a_stub() -> None:
    polygons = parse_segmentation([BOX, [1, 1, 2, 2]], 20, 20)
    assert isinstance(polygons, Polygons)
    assert len(polygons.parts) == 1


def test_to_rle__equals_pycocotools_on_polygons() -> None:
    for _ in range(20):
        flats = [(RNG.random(12) * 70 - 10).tolist() for _ in range(2)]
        polygons = parse_segmentation(flats, 48, 64)
        assert isinstance(polygons, Polygons)
        expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(flats, 48, 64)))
        np.testing.assert_array_equal(coco_mask.decode(encode_segmentation(polygons, 48, 64)), expected)


def test_to_rle__equals_pycocotools_on_polygons_that_reach_far() -> None:
    flats = [[-300.0, 10.2, 500.5, -90.0, 420.0, 200.0, 10.0, 300.0]]
    polygons = parse_segmentation(flats, 48, 64)
    assert isinstance(polygons, Polygons)
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(flats, 48, 64)))
    assert (coco_mask.decode(encode_segmentation(polygons, 48, 64)) != expected).mean() < 0.02


def test_rasterize__equals_pycocotools_inside_the_frame() -> None:
    for _ in range(20):
        flats = [(RNG.random(12) * 44 + 2) for _ in range(2)]
        out = np.zeros((48, 64), np.uint8)
        assert rasterize([flat.reshape(-1, 2) for flat in flats], 48, 64, out)
        expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([f.tolist() for f in flats], 48, 64)))
        np.testing.assert_array_equal(out, expected)


def test_rasterize__clips_and_never_wraps() -> None:
    out = np.zeros((20, 30), np.uint8)
    rasterize([np.array([[25.0, 5], [1e6, 5], [1e6, 10], [25, 10]])], 20, 30, out)
    expected = np.zeros((20, 30), np.uint8)
    expected[5:10, 25:] = 1
    np.testing.assert_array_equal(out, expected)
    assert not rasterize([np.array([[40.0, 5], [50, 5], [50, 10]])], 20, 30, np.zeros((20, 30), np.uint8))


def test_clip_polygon__cuts_a_square_to_a_window() -> None:
    square = np.array([[0.0, 0], [10, 0], [10, 10], [0, 10]])
    cut = clip_polygon(square, (5, -5), (50, 4))
    assert {tuple(point) for point in cut} == {(5, 0), (10, 0), (10, 4), (5, 4)}
    assert len(clip_polygon(square, (20, 20), (30, 30))) == 0
