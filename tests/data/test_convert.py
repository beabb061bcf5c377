from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vispeft.data import read_coco
from vispeft.data.convert import convert_labelme, convert_masks, convert_yolo
from vispeft.errors import ConfigError, DataError


def test_convert_yolo__reads_lines_and_names(folder: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "a.txt").write_text("1 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n\n")
    (tmp_path / "data.yaml").write_text("names: {0: cat, 1: dog}")
    convert_yolo(folder, labels, tmp_path / "out.json", names=tmp_path / "data.yaml")
    coco_set = read_coco(tmp_path / "out.json", folder)
    assert coco_set.report.problems == ()
    assert coco_set.class_names == ("cat", "dog")
    assert [len(group) for group in coco_set.annotations] == [1, 0]
    assert coco_set.annotations[0][0].bbox == (12, 8, 24, 16)
    assert coco_set.annotations[0][0].category_idx == 1


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("0 0.5 0.5 0.1 0.1", "three points"),
        ("0 a b c d e f", "numbers"),
        ("5 0.1 0.1 0.2 0.1 0.2 0.2", "class 5"),
        ("0.5 0.1 0.1 0.2 0.1 0.2 0.2", "class 0.5"),
        ("0 10 10 20 10 20 20", "0..1"),
        ("0 nan 0.1 0.2 0.1 0.2 0.2", "three points"),
    ],
)
def test_convert_yolo__names_the_line(folder: Path, tmp_path: Path, line: str, named: str) -> None:
    (tmp_path / "a.txt").write_text(f"0 0.1 0.1 0.2 0.1 0.2 0.2\n{line}\n")
    with pytest.raises(DataError, match=named) as caught:
        convert_yolo(folder, tmp_path, tmp_path / "out.json", names=["cat", "dog"])
    assert "a.txt, line 2" in str(caught.value)


def test_convert_labelme__reads_polygons_and_rectangles(folder: Path, tmp_path: Path) -> None:
    shapes = [
        {"label": "dog", "points": [[1, 1], [11, 1], [11, 6], [1, 6]], "shape_type": "polygon"},
        {"label": "cat", "points": [[30, 20], [20, 10]], "shape_type": "rectangle"},
    ]
    (folder / "a.json").write_text(json.dumps({"imagePath": "..\\x\\a.png", "shapes": shapes}))
    convert_labelme(folder, tmp_path / "out.json")
    coco_set = read_coco(tmp_path / "out.json", folder)
    assert coco_set.class_names == ("cat", "dog")
    assert [(a.category_idx, a.bbox) for a in coco_set.annotations[0]] == [(1, (1, 1, 10, 5)), (0, (20, 10, 10, 10))]


@pytest.mark.parametrize(
    "shape", [{"label": "a", "points": [[1, 1]]}, {"label": "a", "points": None}, {"shape_type": "circle"}, 5]
)
def test_convert_labelme__names_a_bad_file(folder: Path, tmp_path: Path, shape: Any) -> None:
    (folder / "a.json").write_text(json.dumps({"imagePath": "a.png", "shapes": [shape]}))
    with pytest.raises(DataError, match=r"a\.json"):
        convert_labelme(folder, tmp_path / "out.json")


def two_squares() -> np.ndarray[Any, Any]:
    values = np.zeros((32, 48), np.uint16)
    values[2:8, 2:12] = 1
    values[20:30, 30:40] = 700
    return values


def test_convert_masks__reads_values_and_folders(folder: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    (masks / "b").mkdir(parents=True)
    Image.fromarray(two_squares()).save(masks / "a.png")
    Image.fromarray(((two_squares() > 1) * 255).astype(np.uint8)).save(masks / "b" / "0.png")
    convert_masks(folder, masks, tmp_path / "out.json", names=["cell"])
    coco_set = read_coco(tmp_path / "out.json", folder)
    assert [[a.area for a in group] for group in coco_set.annotations] == [[60, 100], [100]]
    assert coco_set.annotations[1][0].bbox == (30, 20, 10, 10)


def test_convert_masks__takes_classes_and_leaves_unlabelled_out(folder: Path, tmp_path: Path) -> None:
    objects, kinds = (tmp_path / name for name in ("objects", "kinds"))
    for target, large in ((objects, 2), (kinds, 2)):
        target.mkdir()
        values = np.where(two_squares() == 700, large, two_squares()).astype(np.uint8)
        values[0] = 255
        for name in ("a.png", "b.png"):
            image = Image.fromarray(values, "P")
            image.putpalette([value for value in range(256) for _ in range(3)])
            image.save(target / name)
    convert_masks(folder, objects, tmp_path / "out.json", names=["cat", "dog"], classes=kinds)
    coco_set = read_coco(tmp_path / "out.json", folder)
    assert [[a.category_idx for a in group] for group in coco_set.annotations] == [[0, 1], [0, 1]]
    with pytest.raises(ConfigError, match="`names`"):
        convert_masks(folder, objects, tmp_path / "out.json", names=["cat", "dog"])


def test_convert_masks__names_a_mask_of_another_size(folder: Path, tmp_path: Path) -> None:
    Image.fromarray(np.ones((5, 5), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="5x5, but its image 48x32"):
        convert_masks(folder, tmp_path, tmp_path / "out.json", names=["cell"])
