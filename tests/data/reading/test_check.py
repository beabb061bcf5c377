from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vispeft.coco.sets import to_annotations
from vispeft.data import read_coco
from vispeft.data.reading.check import check_dataset, write_fixed
from vispeft.errors import DataError


def damaged(document: dict[str, Any]) -> dict[str, Any]:
    document["info"] = {"year": 2020}
    document["images"][0] |= {"height": None, "width": None, "date_captured": "today"}
    document["images"] += [
        {"id": 3, "file_name": "../a.png", "height": 5, "width": 5},
        {"id": 4, "file_name": "gone.png", "height": 5, "width": 5},
        {"file_name": "no-id.png"},
        {"id": 5, "file_name": "b.png", "height": 99, "width": 48},
    ]
    document["categories"].append({"id": 9, "name": "box"})
    good = document["annotations"][0]
    document["annotations"] += [
        {**good, "id": 1, "bbox": None},
        {**good, "id": 11, "category_id": 99},
        {**good, "id": 12, "segmentation": [[1, 2, 3, 4]]},
        {**good, "id": 13, "image_id": 77},
        {**good, "id": 14, "category_id": 9},
        {**good, "id": 15, "iscrowd": "no"},
        None,
    ]
    return document


def test_check_dataset__tells_everything_at_once(write: Any, folder: Path, document: dict[str, Any]) -> None:
    report = check_dataset(write(damaged(document)), folder)
    assert {p.kind for p in report.refusals} == {
        "bad-image-id",
        "path-outside",
        "image-size",
        "duplicate-category-name",
        "unknown-category",
    }
    assert {p.kind for p in report.warnings} >= {
        "missing-image",
        "no-size-in-json",
        "short-polygon",
        "unknown-image",
        "bad-iscrowd",
        "bad-annotation",
        "duplicate-annotation-id",
        "same-file-twice",
    }
    assert report.refused


def test_check_dataset__refuses_exactly_what_training_refuses(
    write: Any, folder: Path, document: dict[str, Any]
) -> None:
    path = write(document)
    assert not check_dataset(path, folder).refused
    read_coco(path, folder)
    document["annotations"] = []
    path = write(document)
    assert check_dataset(path, folder).refused
    with pytest.raises(DataError):
        read_coco(path, folder)


def test_check_dataset__counts_many_and_names_the_first(write: Any, folder: Path, document: dict[str, Any]) -> None:
    bad = {"image_id": 1, "category_id": 7, "segmentation": []}
    document["annotations"] += [{**bad, "id": identifier} for identifier in range(100, 130)]
    (problem,) = check_dataset(write(document), folder).problems
    assert problem.count == 30
    assert "annotation 100, annotation 101" in problem.message
    assert "25 more (30 in all)" in problem.message
    assert "annotation 120" not in problem.message


def test_write_fixed__gives_a_file_without_a_problem(write: Any, folder: Path, document: dict[str, Any]) -> None:
    out = folder.parent / "new" / "fixed.json"
    report = write_fixed(write(damaged(document)), folder, out)
    assert not report.refused
    again = check_dataset(out, folder)
    assert {p.kind for p in again.problems} <= {"exact-duplicate"}
    fixed = json.loads(out.read_text())
    assert fixed["info"] == {"year": 2020}
    assert fixed["images"][0]["date_captured"] == "today"
    assert (fixed["images"][0]["height"], fixed["images"][0]["width"]) == (32, 48)
    assert {c["name"] for c in fixed["categories"]} == {"pair", "box 7", "box 9"}
    ids = [a["id"] for a in fixed["annotations"]]
    assert ids == sorted(set(ids))
    assert again.num_instances == 5


def test_write_fixed__keeps_further_keys_of_annotations(write: Any, folder: Path, document: dict[str, Any]) -> None:
    good = document["annotations"][0]
    # the second is left out, and ids occur twice
    others = [good, {**good, "segmentation": [[1, 2, 3, 4]]}, {**good, "iscrowd": 1}, {**good, "id": None}]
    document["annotations"] = [
        {**other, "score": number / 4, "attributes": {"number": number}} for number, other in enumerate(others)
    ]
    out = folder.parent / "fixed.json"
    write_fixed(write(document), folder, out)
    fixed = json.loads(out.read_text())["annotations"]
    assert {(a["score"], a["attributes"]["number"], a["iscrowd"]) for a in fixed} == {
        (0, 0, 0),
        (0.5, 2, 1),
        (0.75, 3, 0),
    }
    assert len({a["id"] for a in fixed}) == 3


def test_write_fixed__gives_text_ids_numbers(write: Any, folder: Path, document: dict[str, Any]) -> None:
    for entry in document["images"]:
        entry |= {"id": f"img-{entry['id']}", "license": 2}
    for entry in document["annotations"]:
        entry["image_id"] = f"img-{entry['image_id']}"
    out = folder.parent / "fixed.json"
    write_fixed(write(document), folder, out)
    assert read_coco(out, folder).num_instances == 3
    assert [image["license"] for image in json.loads(out.read_text())["images"]] == [2, 2]


@pytest.mark.parametrize(("key", "reference"), [("images", "image_id"), ("categories", "category_id")])
@pytest.mark.parametrize("both", [True, False], ids=["both", "references only"])
def test_write_fixed__reads_ids_that_are_digits_in_quotes(
    write: Any, folder: Path, document: dict[str, Any], key: str, reference: str, both: bool
) -> None:
    wanted = read_coco(write(document), folder)
    for entry in document["annotations"]:
        entry[reference] = str(entry[reference])
    for entry in document[key] if both else ():
        entry["id"] = str(entry["id"])
    out = folder.parent / "fixed.json"
    report = write_fixed(write(document), folder, out)
    assert report.warnings
    assert to_annotations(read_coco(out, folder)) == to_annotations(wanted)


def test_write_fixed__mends_boxes_in_another_form(write: Any, folder: Path, document: dict[str, Any]) -> None:
    document["annotations"][0]["bbox"] = [20, 5, 40, 25]
    out = folder.parent / "fixed.json"
    write_fixed(write(document), folder, out)
    assert json.loads(out.read_text())["annotations"][0]["bbox"] == [20, 5, 20, 20]
    assert check_dataset(out, folder).problems == ()


def test_write_fixed__does_not_guess_or_overwrite(write: Any, folder: Path, document: dict[str, Any]) -> None:
    document["images"][1]["id"] = 1
    path = write(document)
    with pytest.raises(DataError, match="image id 1"):
        write_fixed(path, folder, folder.parent / "fixed.json")
    assert not (folder.parent / "fixed.json").exists()
    with pytest.raises(DataError, match="another one"):
        write_fixed(path, folder, path)
