"""Pairs that are left out without decoding could not have reached the IoU."""

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from vispeft.coco.masks import Masks, measured_masks
from vispeft.evaluation.metrics import overlaps
from vispeft.evaluation.metrics.detections import Detections, Objects, rank_detections
from vispeft.evaluation.metrics.overlaps import overlapping_pairs

SIZE = (20, 30)
NUM_IMAGES, NUM_CATEGORIES = 3, 2


def rectangles(generator: np.random.Generator, number: int) -> tuple[Masks, list[dict[str, object]]]:
    """Return masks of rectangles, a few of them empty, and the same as RLEs of pycocotools."""
    pixels = np.zeros((*SIZE, number), dtype=np.uint8, order="F")
    for index in range(number):
        top, left = generator.integers(0, 18), generator.integers(0, 28)
        height, width = generator.integers(0, 9, 2)
        pixels[top : top + height, left : left + width, index] = 1
    rles = mask_utils.encode(pixels)
    return measured_masks(np.array([SIZE] * number), [rle["counts"].decode() for rle in rles]), rles


def indices(generator: np.random.Generator, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return generator.integers(0, NUM_IMAGES, number), generator.integers(0, NUM_CATEGORIES, number)


@pytest.mark.parametrize("is_within_category", [True, False])
@pytest.mark.parametrize("least_iou", [0.1, 0.5])
@pytest.mark.parametrize("num_together", [1, 7, 2**18])
def test_overlapping_pairs__are_all_pairs_that_reach_the_iou(
    monkeypatch: pytest.MonkeyPatch, num_together: int, least_iou: float, is_within_category: bool
) -> None:
    monkeypatch.setattr(overlaps, "_NUM_TOGETHER", num_together)
    generator = np.random.default_rng(3)
    (masks, rles), (other_masks, other_rles) = rectangles(generator, 300), rectangles(generator, 60)
    is_crowd = generator.random(60) < 0.2
    area = np.zeros(60)
    objects = Objects(*indices(generator, 60), area, is_crowd, other_masks)
    detections = Detections(*indices(generator, 300), masks.measures.area, generator.random(300), masks)
    ranked = rank_detections(detections.image_idx, detections.category_idx, detections.score, NUM_IMAGES)
    pairs = overlapping_pairs(objects, detections, ranked, least_iou=least_iou, is_within_category=is_within_category)
    iou = mask_utils.iou(rles, other_rles, is_crowd.astype(np.uint8))
    is_same = detections.image_idx[:, None] == objects.image_idx
    if is_within_category:
        is_same &= detections.category_idx[:, None] == objects.category_idx
    row, object_idx = np.nonzero(is_same & (iou >= least_iou))
    expected = sorted(zip(row.tolist(), object_idx.tolist(), iou[row, object_idx].tolist(), strict=True))
    found = ranked.row[pairs.detection_idx].tolist(), pairs.object_idx.tolist(), pairs.iou.tolist()
    assert sorted(zip(*found, strict=True)) == expected
    assert len(expected) >= 8


def test_overlapping_pairs__at_the_very_ratio_of_the_areas() -> None:
    # 7 of 70 pixels: 0.1 * 70 is more than 7 in floating-point numbers, 7 / 70 is 0.1
    pixels = np.zeros((10, 10, 2), dtype=np.uint8, order="F")
    pixels[:, :7, 0] = pixels[:7, 0, 1] = 1
    rles = mask_utils.encode(pixels)
    masks = [measured_masks(np.array([[10, 10]]), [rle["counts"].decode()]) for rle in rles]
    zero = np.zeros(1, dtype=np.int64)
    objects = Objects(zero, zero, np.array([70.0]), np.array([False]), masks[0])
    detections = Detections(zero, zero, np.array([7.0]), np.array([0.5]), masks[1])
    ranked = rank_detections(zero, zero, detections.score, 1)
    assert overlapping_pairs(objects, detections, ranked, least_iou=0.1).iou.tolist() == [0.1]
