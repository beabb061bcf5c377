"""Files with boxes alone, and mixed files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vispeft.data.reading.boxes import read_boxes
from vispeft.data.reading.dataset import InstanceDataset
from vispeft.data.transforms.augmentation import EvalTransform
from vispeft.errors import DataError

Writer = Callable[[dict[str, Any]], Path]


def test_read_boxes__needs_no_masks(document: dict[str, Any], folder: Path, write: Writer) -> None:
    document["annotations"] = [
        {"id": 1, "image_id": 1, "category_id": 7, "bbox": [4.5, 5, 20.25, 10]},
        # a mask is ignored
        {**document["annotations"][1], "id": 2, "bbox": [30, 2, 10, 12]},
        {"id": 3, "image_id": 2, "category_id": 7, "bbox": [0, 0, 48, 32], "iscrowd": 1},
        {"id": 4, "image_id": 2, "category_id": 3, "bbox": [1, 1, 0, 4], "segmentation": [[1, 1, 9, 1, 9, 9]]},
        {"id": 5, "image_id": 2, "category_id": 3},
    ]
    coco_set = read_boxes(write(document), folder)
    assert [a.bbox for a in coco_set.annotations[0]] == [(4.5, 5.0, 20.25, 10.0), (30.0, 2.0, 10.0, 12.0)]
    assert coco_set.annotations[0][0].area == 202.5
    assert [len(group) for group in coco_set.crowds] == [0, 1]
    (warning,) = [problem for problem in coco_set.report.warnings if problem.kind == "no-bbox"]
    assert warning.count == 2
    assert "annotations[3] (id 4)" in warning.message
    sample = InstanceDataset(coco_set, EvalTransform(96))[0]
    # twice the size, in whole pixels
    assert sample.boxes_xyxy.flatten().tolist() == pytest.approx([9, 10, 49.5, 30, 60, 4, 80, 28], abs=0.5)


def test_read_boxes__refuses_a_file_without_boxes(document: dict[str, Any], folder: Path, write: Writer) -> None:
    for item in document["annotations"]:
        item.pop("bbox", None)
    with pytest.raises(DataError, match="no annotation is left that can be trained on"):
        read_boxes(write(document), folder)
