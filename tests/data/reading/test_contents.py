"""What makes two data sets the same, and how differences are told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vispeft.data import read_coco
from vispeft.data.reading.contents import SetContents, changes, contents_of


def _document() -> dict[str, Any]:
    def square(number: int, image: int, category: int) -> dict[str, Any]:
        side = [4, 4, 20, 4, 20, 20, 4, 20]
        return {
            "id": number,
            "image_id": image,
            "category_id": category,
            "iscrowd": 0,
            "segmentation": [side],
            "bbox": [4, 4, 16, 16],
            "area": 256,
        }

    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 32, "width": 32} for i in (1, 2, 3)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [square(1, 1, 1), square(2, 1, 2), square(3, 2, 1), square(4, 3, 2)],
    }


def _contents(document: dict[str, Any], path: Path, **layout: Any) -> SetContents:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, **layout))
    return SetContents.from_dict(json.loads(json.dumps(contents_of(read_coco(path, None)).to_dict())))


def _drop_image(document: dict[str, Any]) -> None:
    document["images"] = document["images"][:1]
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] == 1]


def _swap_ids(document: dict[str, Any]) -> None:
    document["categories"] = [{"id": 2, "name": "cat"}, {"id": 1, "name": "dog"}]


def _add_class(document: dict[str, Any]) -> None:
    document["categories"].append({"id": 3, "name": "cow"})


def _renumber_classes(document: dict[str, Any]) -> None:
    for entry in document["categories"]:
        entry["id"] += 10
    for annotation in document["annotations"]:
        annotation["category_id"] += 10


def _rename_image(document: dict[str, Any]) -> None:
    document["images"][1]["file_name"] = "other.png"


def _reorder_images(document: dict[str, Any]) -> None:
    document["images"].reverse()


def _move_corner(document: dict[str, Any]) -> None:
    document["annotations"][0]["segmentation"][0][0] = 5


def _make_crowd(document: dict[str, Any]) -> None:
    document["annotations"][0]["iscrowd"] = 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_drop_image, ["images 3 -> 1", "instances 4 -> 2"]),
        (_swap_ids, ["order of classes [cat, dog] -> [dog, cat]", "category ids `cat` 1 -> 2, `dog` 2 -> 1"]),
        (_add_class, ["classes 2 -> 3 (with `cow`)"]),
        (_renumber_classes, ["category ids `cat` 1 -> 11, `dog` 2 -> 12"]),
        (_rename_image, ["other names, ids, sizes or order of images"]),
        (_reorder_images, ["other names, ids, sizes or order of images"]),
        (_move_corner, ["other masks, boxes or classes of instances"]),
        (_make_crowd, ["instances 4 -> 3", "crowd regions 0 -> 1"]),
    ],
)
def test_changes__tells_what_is_different(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], told: list[str]
) -> None:
    before = _contents(_document(), tmp_path / "a.json")
    document = _document()
    change(document)
    found = changes(before, _contents(document, tmp_path / "b.json"))
    assert set(told) <= set(found)


def test_changes__place_and_layout_of_a_file_do_not_count(tmp_path: Path) -> None:
    before = _contents(_document(), tmp_path / "a.json")
    document = dict(reversed(_document().items()))
    for annotation in document["annotations"]:
        annotation["area"] = float(annotation["area"])
    document["info"] = {"year": 2020}
    assert changes(before, _contents(document, tmp_path / "elsewhere" / "b.json", indent=3)) == []
