"""Panoptic files: their segments, and errors that name file and key."""

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
from vispeft.data.reading.coco import read_coco
from vispeft.data.reading.panoptic import read_panoptic
from vispeft.errors import DataError

Writer = Callable[[dict[str, Any]], Path]


def _ids() -> NDArray[np.int64]:
    """Return the segments of a 32 x 48 image: two boxes, a crowd, two parts of sky, and unlabelled pixels."""
    ids = np.zeros((32, 48), np.int64)
    ids[:8] = 70_000
    ids[28:] = 5
    ids[10:20, 4:14] = 300
    ids[10:20, 20:30] = 301
    ids[10:20, 34:44] = 302
    return ids


@pytest.fixture
def panoptic(folder: Path) -> dict[str, Any]:
    """A panoptic document of one image, with its PNG file in the folder `annotations`."""
    segments = folder.parent / "annotations"
    segments.mkdir()
    Image.fromarray(colour_of_id(_ids())).save(segments / "a.png")
    kinds = {70_000: 3, 5: 3, 300: 7, 301: 7, 302: 7}
    infos = [{"id": value, "category_id": kind, "iscrowd": int(value == 302)} for value, kind in kinds.items()]
    return {
        "images": [{"id": 1, "file_name": "a.png", "height": 32, "width": 48}],
        "categories": [{"id": 7, "name": "box", "isthing": 1}, {"id": 3, "name": "sky", "isthing": 0}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": infos}],
    }


def test_read_panoptic__gives_things_one_by_one_and_stuff_by_class(
    panoptic: dict[str, Any], folder: Path, write: Writer
) -> None:
    coco_set = read_panoptic(write(panoptic), folder)
    assert [(kind.id, kind.is_thing) for kind in coco_set.categories] == [(3, False), (7, True)]
    ids = _ids()
    found = [(a.category_idx, mask_of(encode_segmentation(a.segmentation, 32, 48))) for a in coco_set.annotations[0]]
    expected = [(0, (ids == 70_000) | (ids == 5)), (1, ids == 300), (1, ids == 301)]
    assert [label for label, _ in found] == [label for label, _ in expected]
    for (_, mask), (_, other) in zip(found, expected, strict=True):
        assert (mask == other).all()
    (crowd,) = coco_set.crowds[0]
    assert crowd.area == (ids == 302).sum()
    assert coco_set.annotations[0][1].bbox == (4.0, 10.0, 10.0, 10.0)


def _break(document: dict[str, Any], path: Path, fault: str) -> None:
    annotation = document["annotations"][0]
    infos = annotation["segments_info"]
    ids = _ids()
    match fault:
        case "unlisted":
            infos.pop(2)
        case "twice":
            infos.append(dict(infos[0]))
        case "category":
            infos[2]["category_id"] = 9
        case "isthing":
            del document["categories"][0]["isthing"]
        case "image":
            annotation["image_id"] = 8
        case "images":
            document["annotations"].append(dict(annotation))
        case "size":
            Image.fromarray(colour_of_id(ids[:30])).save(path / "a.png")
        case "grey":
            Image.fromarray(np.minimum(ids, 255).astype(np.uint8)).save(path / "a.png")
        case "missing":
            (path / "a.png").unlink()
        case "cut":
            content = (path / "a.png").read_bytes()
            (path / "a.png").write_bytes(content[: len(content) // 2])
        case "info":
            annotation["segments_info"] = {}
        case "crowd":
            infos[1]["iscrowd"] = 2
        case "long":
            annotation["file_name"] = "x" * 300
        case "outside":
            annotation["file_name"] = "../annotations/a.png"
        case "folder":
            (path / "a.png").unlink()
            path.rmdir()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("unlisted", r"a\.png \(id 300\): the PNG has pixels of ids that `segments_info` does not list"),
        ("twice", r"segment 70000 of annotations\[0\] \(image_id 1\): the id occurs twice in `segments_info`"),
        ("category", r"segment 300 of .* \(category_id 9\): its `category_id` is not among `categories`"),
        ("isthing", r"categories\[0\] \(id 7\): `isthing` must be 1 for a class with instances, else 0"),
        ("image", r"annotations\[0\] \(image_id 8\): its `image_id` is not among `images`"),
        ("images", r"annotations\[1\] \(image_id 1\): a second annotation of the same image"),
        ("size", r"\(a\.png 48x30, image 48x32\): the PNG of segments has another size than its image"),
        ("grey", r"a\.png must be an RGB image of 8 bits"),
        ("missing", r"a\.png does not exist"),
        ("cut", r"cannot be read: .*a\.png"),
        ("info", r"must have a list `segments_info` and a `file_name`"),
        ("crowd", r"segment 5 of .* \(2\): `iscrowd` must be 0 or 1"),
        ("long", r"annotations\[0\] \(image_id 1\): cannot be read: `x+\.\.\.` cannot be looked up"),
        ("outside", r"annotations\[0\] \(image_id 1\): its `file_name` leads out of the folder of PNG files"),
        ("folder", r"the folder of its PNG files, .*annotations, does not exist \(`segments`\)"),
    ],
    ids=lambda value: value if value.isalpha() else "told",
)
def test_read_panoptic__names_the_fault(
    panoptic: dict[str, Any], folder: Path, write: Writer, fault: str, message: str
) -> None:
    _break(panoptic, folder.parent / "annotations", fault)
    with pytest.raises(DataError, match=message):
        read_panoptic(write(panoptic), folder)


def test_read_panoptic__leaves_out_a_segment_without_pixels(
    panoptic: dict[str, Any], folder: Path, write: Writer
) -> None:
    panoptic["annotations"][0]["segments_info"].append({"id": 99, "category_id": 7, "iscrowd": 0})
    coco_set = read_panoptic(write(panoptic), folder)
    assert len(coco_set.annotations[0]) == 3
    assert "segment 99" in coco_set.report.warnings[0].message


def test_read_panoptic__takes_the_folder_by_name(panoptic: dict[str, Any], folder: Path, write: Writer) -> None:
    moved = (folder.parent / "annotations").rename(folder.parent / "elsewhere")
    assert len(read_panoptic(write(panoptic), folder, moved).annotations[0]) == 3


def test_read_panoptic__refuses_an_instance_file(document: dict[str, Any], folder: Path, write: Writer) -> None:
    with pytest.raises(DataError, match="holds no `segments_info`"):
        read_panoptic(write(document), folder)


def test_read_coco__points_to_the_panoptic_task(panoptic: dict[str, Any], folder: Path, write: Writer) -> None:
    with pytest.raises(DataError, match="set `task: panoptic`"):
        read_coco(write(panoptic), folder)
