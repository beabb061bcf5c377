"""Semantic sets: one mask for each class, from instances, panoptic segments and label maps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vispeft.coco.label_maps import colour_of_id, mask_of
from vispeft.coco.segmentation import encode_segmentation
from vispeft.coco.sets import CocoSet
from vispeft.data.reading.semantic import read_semantic
from vispeft.errors import DataError

Writer = Callable[[dict[str, Any]], Path]


def _map(coco_set: CocoSet, place: int = 0) -> NDArray[np.int64]:
    """Return the category id of each pixel of an image, -1 where there is none; masks must not overlap."""
    values = np.full((32, 48), -1)
    labels = [a.category_idx for a in coco_set.annotations[place]]
    assert len(set(labels)) == len(labels)
    for annotation in coco_set.annotations[place]:
        mask = mask_of(encode_segmentation(annotation.segmentation, 32, 48))
        assert (values[mask] == -1).all()
        values[mask] = coco_set.category_ids[annotation.category_idx]
        assert annotation.area == mask.sum()
    return values


def _box(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def test_read_semantic__unites_the_instances_of_a_class(document: dict[str, Any], folder: Path, write: Writer) -> None:
    document["annotations"] = [
        {"id": 1, "image_id": 1, "category_id": 7, "segmentation": _box(2, 2, 12, 12)},
        # the first in the file keeps the shared pixels
        {"id": 2, "image_id": 1, "category_id": 3, "segmentation": _box(8, 2, 20, 12)},
        {"id": 3, "image_id": 1, "category_id": 7, "segmentation": _box(30, 2, 40, 12)},
        {"id": 4, "image_id": 1, "category_id": 7, "segmentation": _box(18, 2, 24, 30), "iscrowd": 1},
        {"id": 5, "image_id": 2, "category_id": 7, "segmentation": _box(0, 0, 48, 32)},
    ]
    coco_set = read_semantic(write(document), folder)
    assert [(kind.id, kind.name) for kind in coco_set.categories] == [(0, "background"), (3, "pair"), (7, "box")]
    expected = np.zeros((32, 48), np.int64)
    expected[2:30, 18:24] = 7
    expected[2:12, 8:20] = 3
    expected[2:12, 2:12] = 7
    expected[2:12, 30:40] = 7
    assert (_map(coco_set) == expected).all()
    assert (_map(coco_set, 1) == 7).all()
    assert [len(group) for group in coco_set.crowds] == [0, 0]


@pytest.mark.parametrize(
    ("categories", "background"),
    [
        ([{"id": 0, "name": "box"}, {"id": 5, "name": "pair"}], 6),
        ([{"id": 5, "name": "box"}, {"id": 9, "name": "background"}], 9),
    ],
    ids=["taken", "given"],
)
def test_read_semantic__finds_an_id_for_the_background(
    document: dict[str, Any], folder: Path, write: Writer, categories: list[dict[str, Any]], background: int
) -> None:
    box = {"image_id": 1, "category_id": categories[0]["id"], "segmentation": _box(0, 0, 10, 10)}
    document |= {"categories": categories, "annotations": [{"id": 1, **box}, {"id": 2, **box, "image_id": 2}]}
    values = _map(read_semantic(write(document), folder))
    assert values[20, 20] == background
    assert values[5, 5] == categories[0]["id"]


def test_read_semantic__unites_panoptic_segments(folder: Path, write: Writer) -> None:
    segments = folder.parent / "annotations"
    segments.mkdir()
    ids = np.zeros((32, 48), np.int64)
    ids[:10], ids[10:20, :20], ids[10:20, 30:] = 1000, 2000, 3000
    Image.fromarray(colour_of_id(ids)).save(segments / "a.png")
    infos = [{"id": value, "category_id": kind} for value, kind in ((1000, 3), (2000, 7), (3000, 7))]
    document = {
        "images": [{"id": 1, "file_name": "a.png", "height": 32, "width": 48}],
        "categories": [{"id": 7, "name": "box", "isthing": 1}, {"id": 3, "name": "sky", "isthing": 0}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": infos}],
    }
    coco_set = read_semantic(write(document), folder)
    assert coco_set.class_names == ("sky", "box")
    expected = np.full((32, 48), -1)
    expected[:10], expected[10:20, :20], expected[10:20, 30:] = 3, 7, 7
    assert (_map(coco_set) == expected).all()


@pytest.fixture
def label_maps(document: dict[str, Any], folder: Path) -> tuple[dict[str, Any], Path]:
    """A document of images and categories, and the folder of their label maps."""
    maps = folder.parent / "maps"
    maps.mkdir()
    values = np.full((32, 48), 255, np.uint8)
    values[:10], values[10:20] = 3, 7
    for name in ("a.png", "b.png"):
        Image.fromarray(values).save(maps / name)
    del document["annotations"]
    return document, maps


def test_read_semantic__reads_label_maps(label_maps: tuple[dict[str, Any], Path], folder: Path, write: Writer) -> None:
    document, maps = label_maps
    coco_set = read_semantic(write(document), folder, maps)
    assert coco_set.class_names == ("pair", "box")
    expected = np.full((32, 48), -1)
    expected[:10], expected[10:20] = 3, 7
    assert (_map(coco_set) == expected).all()


def test_read_semantic__takes_zero_for_a_class_with_that_id(
    label_maps: tuple[dict[str, Any], Path], folder: Path, write: Writer
) -> None:
    document, maps = label_maps
    document["categories"][0]["id"] = 0
    values = np.zeros((32, 48), np.uint8)
    values[:10] = 3
    for name in ("a.png", "b.png"):
        Image.fromarray(values).save(maps / name)
    assert (_map(read_semantic(write(document), folder, maps)) == values).all()


def test_read_semantic__leaves_out_an_image_whose_name_is_the_folder(
    label_maps: tuple[dict[str, Any], Path], folder: Path, write: Writer
) -> None:
    document, maps = label_maps
    document["images"][0]["file_name"] = "."
    coco_set = read_semantic(write(document), folder, maps)
    assert [image.id for image in coco_set.images] == [2]
    assert [problem.kind for problem in coco_set.report.warnings] == ["unreadable-image"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document["images"][0].update(file_name=""), "image 1 .*must have a `file_name`"),
        (
            lambda document: document["images"][0].update(file_name="x" * 300),
            r"image 1: .*`x+\.\.\.` cannot be looked up",
        ),
        (lambda document: document.update(annotations=True), "`annotations` must be a list, but is true"),
        (lambda document: document.update(annotations={"a": 1}), "`annotations` must be a list, but is {"),
    ],
    ids=["empty", "long", "true", "object"],
)
def test_read_semantic__names_the_key_that_is_no_name_and_no_list(
    label_maps: tuple[dict[str, Any], Path],
    folder: Path,
    write: Writer,
    change: Callable[[dict[str, Any]], None],
    message: str,
) -> None:
    document, maps = label_maps
    change(document)
    with pytest.raises(DataError, match=message):
        read_semantic(write(document), folder, maps)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("value", r"a\.png \(value 9\): the label map has a value that is no category id"),
        ("colour", r"a\.png must have one channel of whole numbers"),
        ("size", r"image 1 \(a\.png 48x30, image 48x32\): the PNG of segments has another size"),
        ("missing", r"image 1: cannot be read: .*a\.png does not exist"),
        ("folder", r"the folder of label maps, .*maps, does not exist \(`segments`\)"),
    ],
    ids=["value", "colour", "size", "missing", "folder"],
)
def test_read_semantic__names_the_fault(
    label_maps: tuple[dict[str, Any], Path], folder: Path, write: Writer, fault: str, message: str
) -> None:
    document, maps = label_maps
    pixels = {
        "value": np.full((32, 48), 9, np.uint8),
        "colour": np.full((32, 48, 3), 3, np.uint8),
        "size": np.full((30, 48), 3, np.uint8),
    }
    if fault in pixels:
        Image.fromarray(pixels[fault]).save(maps / "a.png")
    elif fault == "missing":
        (maps / "a.png").unlink()
    else:
        for path in [*maps.iterdir()]:
            path.unlink()
        maps.rmdir()
    with pytest.raises(DataError, match=message):
        read_semantic(write(document), folder, maps)
