"""Masks of results are read in every form that COCO has, and refused with a reason otherwise."""

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from vispeft.coco.result_columns import to_columns
from vispeft.coco.result_masks import result_masks
from vispeft.errors import DataError

RESULT = {"image_id": 1, "category_id": 2, "score": 0.5}
COMPRESSED = {"size": [4, 6], "counts": "0h0"}


def masks_of(*segmentations):
    columns = to_columns([RESULT | {"segmentation": one} for one in segmentations], "pred.json")
    return result_masks(columns, "pred.json", np.array([[4, 6]] * len(segmentations)))


def test_result_masks__refuses_relative_coordinates():
    polygons = [[[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]], [[0.0, 0.0, 1.0, 0.0, 1.0, 1.0]]]
    with pytest.raises(DataError, match=r"`pred\.json`.*0\.\.1; multiply x by the width"):
        masks_of(*polygons)
    assert masks_of(polygons[0], [[0.0, 0.0, 5.0, 0.0, 5.0, 4.0]]).measures.area[1] > 0


def test_result_masks__of_all_forms():
    masks = masks_of(COMPRESSED, {"size": [4, 6], "counts": [4, 12, 8]}, [[1.0, 0.0, 4.0, 0.0, 4.0, 4.0, 1.0, 4.0]])
    expected = [24, 12, 12]
    assert masks.measures.area.tolist() == expected
    assert [int(mask_utils.area(rle)) for rle in masks.rles(np.arange(3))] == expected


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [4, 6], "counts": "0g0"}, "do not add up to the 24 pixels"),
        ({"size": [6, 4], "counts": "0h0"}, "size 6x4 for an image of 4x6"),
        ({"size": [4, 6], "counts": "0h"}, "cut off"),
        ({"size": [4, 6], "counts": ""}, "characters that COCO does not use"),
        ({"size": [4, 6], "counts": "0é"}, "characters that COCO does not use"),
        ({"size": [4, 6], "counts": [4, 12]}, "do not add up"),
        ([[1, 2, 3]], "not a list of at least two points"),
        ("[[0, 0, 5, 0, 5, 4]]", "`segmentation` is text"),
    ],
)
def test_result_masks__names_the_result(segmentation, message):
    with pytest.raises(DataError, match=f"`pred.json`: result 1 .*for image id 1, cannot be scored.*{message}"):
        masks_of(COMPRESSED, segmentation)
