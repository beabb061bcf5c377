"""Files and folders that may not be read or written: one error that names them and the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vispeft.data.converters import convert_labelme, convert_masks, convert_yolo
from vispeft.data.reading.check import check_dataset, write_fixed
from vispeft.data.reading.panoptic import read_panoptic
from vispeft.data.reading.semantic import read_semantic
from vispeft.data.split import split_coco
from vispeft.errors import DataError

Forbid = Callable[[Path], None]


def test_check_dataset__tells_an_image_that_may_not_be_read(
    write: Any, folder: Path, document: dict[str, Any], forbid: Forbid
) -> None:
    path = write(document)
    forbid(folder / "b.png")
    (problem,) = check_dataset(path, folder).problems
    assert problem.kind == "unreadable-image"
    assert problem.message.startswith("b.png (cannot be read (Permission denied)) [")


def test_check_dataset__tells_an_image_folder_that_may_not_be_read(
    write: Any, folder: Path, document: dict[str, Any], forbid: Forbid
) -> None:
    path = write(document)
    forbid(folder)
    (problem,) = check_dataset(path, folder).problems
    assert problem.kind == "no-image-folder"
    assert f"{folder} cannot be read (Permission denied)" in problem.message


def test_check_dataset__passes_over_other_folders_that_may_not_be_read(
    write: Any, folder: Path, document: dict[str, Any], forbid: Forbid
) -> None:
    (folder / "lost+found").mkdir()
    document["images"][1]["file_name"] = "B.PNG"
    path = write(document)
    forbid(folder / "lost+found")
    (problem,) = check_dataset(path, folder).problems
    assert "`b.png` is there" in problem.message


@pytest.mark.parametrize("call", [write_fixed, split_coco])
def test_write_fixed_and_split__tell_a_place_that_may_not_be_read(
    write: Any, folder: Path, document: dict[str, Any], forbid: Forbid, call: Callable[..., Any]
) -> None:
    path, closed = write(document), folder.parent / "closed"
    closed.mkdir()
    forbid(closed)
    with pytest.raises(DataError, match=r"closed.*cannot be written: Permission denied"):
        call(path, folder, closed / "out.json")


@pytest.mark.parametrize("read", [read_semantic, read_panoptic])
def test_read_semantic_and_panoptic__tell_a_folder_that_may_not_be_read(
    write: Any, folder: Path, document: dict[str, Any], forbid: Forbid, read: Callable[..., Any]
) -> None:
    document["annotations"] = [{"image_id": 1, "file_name": "a.png", "segments_info": []}]
    path = write(document)
    forbid(folder.parent / "closed")
    with pytest.raises(DataError, match=r"closed.maps cannot be read: Permission denied"):
        read(path, folder, folder.parent / "closed" / "maps")


def _convert(name: str, root: Path) -> Any:
    images, out = root / "images", root / "out.json"
    match name:
        case "yolo":
            return convert_yolo(images, root / "labels", out, names=["cell"])
        case "labelme":
            return convert_labelme(root / "labels", out, images=images)
    return convert_masks(images, root / "labels", out, names=["cell"])


@pytest.mark.parametrize("name", ["yolo", "labelme", "masks"])
@pytest.mark.parametrize("closed", ["images", "labels", "images/more", "labels/more", "file"])
def test_convert__tells_what_may_not_be_read(folder: Path, forbid: Forbid, name: str, closed: str) -> None:
    labels = folder.parent / "labels"
    labels.mkdir()
    (labels / "a.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    shape = {"label": "cell", "points": [[1, 1], [9, 1], [9, 9]]}
    (labels / "a.json").write_text(json.dumps({"imagePath": "a.png", "shapes": [shape]}))
    Image.fromarray(np.eye(32, 48, dtype=np.uint8)).save(labels / "a.png")
    for place in (folder, labels):
        (place / "more").mkdir()
    place = labels / {"yolo": "a.txt", "labelme": "a.json", "masks": "a.png"}[name]
    if closed != "file":
        place = folder.parent / closed
    forbid(place)
    with pytest.raises(DataError, match=r"cannot be read.*Permission denied") as caught:
        _convert(name, folder.parent)
    assert str(place) in str(caught.value)
    assert "Errno" not in str(caught.value)
    assert not (folder.parent / "out.json").exists()
