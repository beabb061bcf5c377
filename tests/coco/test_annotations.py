from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from vispeft.data.reading.check import check_dataset, write_fixed
from vispeft.errors import DataError

PAIRS = [[20, 5], [40, 5], [40, 25], [20, 25]]


def box_rle(size: tuple[int, int] = (32, 48)) -> dict[str, Any]:
    mask = np.zeros((32, 48), np.uint8)
    mask[5:25, 20:40] = 1
    packed = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(size), "counts": packed["counts"].decode()}


def fixed(path: Path, folder: Path) -> dict[str, Any]:
    out = folder.parent / "fixed.json"
    write_fixed(path, folder, out)
    assert not check_dataset(out, folder).refused
    content: dict[str, Any] = json.loads(out.read_text())
    return content


def mask_of(annotation: dict[str, Any]) -> Any:
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, 32, 48))
    return coco_mask.decode(segmentation)


@pytest.mark.parametrize(
    ("segmentation", "kind"),
    [
        ([20, 5, 40, 5, 40, 25, 20, 25], "flat-polygon"),
        (PAIRS, "point-pairs"),
        ([PAIRS], "point-pairs"),
        ([[[20, 5, 40, 5, 40, 25, 20, 25]]], "nested-polygon"),
        ([["20", "5", "40", "5", "40", "25", "20", "25"]], "text-numbers"),
        ("[[20, 5, 40, 5, 40, 25, 20, 25]]", "text-segmentation"),
        (box_rle() | {"counts": str(box_rle()["counts"].encode())}, "bytes-counts"),
        (box_rle((48, 32)), "turned-rle-size"),
    ],
)
def test_read_annotations__refuses_a_wrong_form_by_name_and_mends_it(
    write: Any, folder: Path, document: dict[str, Any], segmentation: Any, kind: str
) -> None:
    before = mask_of(document["annotations"][0])
    document["annotations"][0]["segmentation"] = segmentation
    path = write(document)
    (problem,) = check_dataset(path, folder).problems
    assert (problem.severity, problem.kind, problem.subjects) == ("refuse", kind, ("annotation 1",))
    np.testing.assert_array_equal(mask_of(fixed(path, folder)["annotations"][0]), before)


def test_read_annotations__does_not_guess_the_order_of_a_turned_rle(
    write: Any, folder: Path, document: dict[str, Any]
) -> None:
    document["annotations"][0] |= {"segmentation": box_rle((48, 32)), "bbox": [5, 20, 20, 20]}
    (problem,) = check_dataset(write(document), folder).problems
    assert (problem.severity, problem.kind) == ("warn", "turned-rle")


def relative(document: dict[str, Any], count: int) -> dict[str, Any]:
    """The document with polygons alone, `count` of them in 0..1 with box and area like them."""
    document["annotations"] = [a for a in document["annotations"] if isinstance(a["segmentation"], list)][:2]
    for annotation in document["annotations"][:count]:
        annotation["segmentation"] = [
            [v / (32 if i % 2 else 48) for i, v in enumerate(part)] for part in annotation["segmentation"]
        ]
        x, y, width, height = annotation["bbox"]
        annotation |= {"bbox": [x / 48, y / 32, width / 48, height / 32], "area": 0.1}
    return document


def test_read_annotations__multiplies_relative_coordinates(write: Any, folder: Path, document: dict[str, Any]) -> None:
    before = [mask_of(a) for a in document["annotations"][:2]]
    path = write(relative(document, 2))
    (problem,) = check_dataset(path, folder).problems
    assert (problem.kind, problem.count) == ("relative-coordinates", 2)
    content = fixed(path, folder)
    for annotation, mask in zip(content["annotations"], before, strict=True):
        np.testing.assert_array_equal(mask_of(annotation), mask)
        assert annotation["area"] == mask.sum()


def test_read_annotations__leaves_small_coordinates_beside_large_ones(
    write: Any, folder: Path, document: dict[str, Any]
) -> None:
    report = check_dataset(write(relative(document, 1)), folder)
    assert "relative-coordinates" not in {problem.kind for problem in report.problems}


def test_read_annotations__tells_every_defect_of_an_entry(write: Any, folder: Path, document: dict[str, Any]) -> None:
    changes = {"image_id": "1", "category_id": None, "segmentation": [20, 5, 40, 5, 40, 25], "iscrowd": "0"}
    document["annotations"][0] |= changes
    report = check_dataset(write(document), folder)
    assert {p.kind for p in report.refusals} == {"bad-image-id", "no-category-id", "flat-polygon", "text-iscrowd"}
    assert "`image_id` is text; write the integer id of its image, without quotes" in " ".join(
        p.message for p in report.refusals
    )


def test_read_annotations__asks_for_the_class_where_none_is_given(
    write: Any, folder: Path, document: dict[str, Any]
) -> None:
    for annotation in document["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])
        del annotation["category_id"]
    path = write(document)
    assert {p.kind for p in check_dataset(path, folder).refusals} == {"no-category-id", "bad-image-id"}
    with pytest.raises(DataError, match="no annotation has a `category_id`"):
        write_fixed(path, folder, folder.parent / "fixed.json")


@pytest.mark.parametrize("value", [True, 1.5, [1], float("nan")])
def test_read_annotations__refuses_what_is_no_id(
    write: Any, folder: Path, document: dict[str, Any], value: Any
) -> None:
    document["annotations"][0] |= {"image_id": value, "category_id": value}
    path = write(document)
    assert {p.kind for p in check_dataset(path, folder).refusals} == {"bad-image-id", "bad-category-id"}
    assert len(fixed(path, folder)["annotations"]) == 3


def test_read_annotations__takes_whole_floats_and_booleans(write: Any, folder: Path, document: dict[str, Any]) -> None:
    for annotation in document["annotations"]:
        annotation |= {"image_id": float(annotation["image_id"]), "category_id": float(annotation["category_id"])}
        annotation["iscrowd"] = bool(annotation.get("iscrowd"))
    report = check_dataset(write(document), folder)
    assert (report.problems, report.num_instances, report.num_crowds) == ((), 3, 1)


def test_read_annotations__finds_ids_by_name(write: Any, folder: Path, document: dict[str, Any]) -> None:
    wanted = fixed(write(document), folder)["annotations"]
    for annotation in document["annotations"]:
        annotation["category_id"] = {7: "box", 3: "pair"}[annotation["category_id"]]
        annotation["image_id"] = {1: "a.png", 2: "b.png"}[annotation["image_id"]]
    assert fixed(write(document), folder)["annotations"] == wanted


@pytest.mark.parametrize("flag", [1, True, 1.0])
def test_tell_of_crowds__names_the_cause_where_all_are_crowds(
    write: Any, folder: Path, document: dict[str, Any], flag: Any
) -> None:
    for annotation in document["annotations"]:
        annotation["iscrowd"] = flag
    path = write(document)
    (problem,) = check_dataset(path, folder).problems
    assert "every annotation has `iscrowd` 1; set it to 0 where a mask is one object" in problem.message
    with pytest.raises(DataError, match="every annotation has `iscrowd` 1"):
        write_fixed(path, folder, folder.parent / "fixed.json")


def test_tell_of_crowds__warns_where_most_are(write: Any, folder: Path, document: dict[str, Any]) -> None:
    for annotation in document["annotations"][:2]:
        annotation["iscrowd"] = 1
    (problem,) = check_dataset(write(document), folder).problems
    assert (problem.severity, problem.message[:30]) == ("warn", "3 of 4 annotations have `iscro")


def test_read_annotations__reads_a_dense_mask(write: Any, folder: Path, document: dict[str, Any]) -> None:
    wanted = mask_of(document["annotations"][0])
    for rows in (wanted.tolist(), (wanted == 1).tolist(), (1 - wanted).tolist()):
        document["annotations"] = [{"id": 1, "image_id": 1, "category_id": 7, "segmentation": rows}]
        (problem,) = check_dataset(write(document), folder).problems
        assert (problem.severity, problem.kind) == ("refuse", "dense-mask")
        np.testing.assert_array_equal(mask_of(fixed(write(document), folder)["annotations"][0]), np.array(rows))


@pytest.mark.parametrize(("text", "is_crowd"), [("false", 0), ("0.0", 0), ("True", 1), (" 1 ", 1)])
def test_read_annotations__reads_a_flag_that_is_text(
    write: Any, folder: Path, document: dict[str, Any], text: str, is_crowd: int
) -> None:
    document["annotations"][0]["iscrowd"] = text
    (problem,) = check_dataset(write(document), folder).problems
    assert (problem.severity, problem.kind) == ("refuse", "text-iscrowd")
    assert fixed(write(document), folder)["annotations"][0]["iscrowd"] == is_crowd


@pytest.mark.parametrize("form", ["{}.0", "{:06}", "{}"])
def test_read_annotations__reads_ids_as_pandas_and_file_names_spell_them(
    write: Any, folder: Path, document: dict[str, Any], form: str
) -> None:
    wanted = fixed(write(document), folder)["annotations"]
    for annotation in document["annotations"]:
        annotation["category_id"] = form.format(annotation["category_id"])
        annotation["image_id"] = {1: "a", 2: "b"}[annotation["image_id"]]
    assert fixed(write(document), folder)["annotations"] == wanted


def test_read_annotations__does_not_guess_between_a_name_and_an_id(
    write: Any, folder: Path, document: dict[str, Any]
) -> None:
    document["categories"] = [{"id": 3, "name": "7"}, {"id": 7, "name": "3"}]
    document["annotations"][0]["category_id"] = "7"
    write_fixed(write(document), folder, folder.parent / "fixed.json")
    left = json.loads((folder.parent / "fixed.json").read_text())["annotations"]
    assert [annotation["id"] for annotation in left] == [2, 3, 4]


@pytest.mark.parametrize("shift", [-1, 1])
def test_read_annotations__refuses_category_ids_that_count_from_elsewhere(
    write: Any, folder: Path, document: dict[str, Any], shift: int
) -> None:
    document["categories"] = [{"id": 1, "name": "box"}, {"id": 2, "name": "pair"}]
    for annotation in document["annotations"]:
        annotation["category_id"] = {7: 1, 3: 2}[annotation["category_id"]] + shift
    path = write(document)
    (problem,) = check_dataset(path, folder).refusals
    assert problem.kind == "shifted-categories"
    assert "correct the ids" in problem.message
    with pytest.raises(DataError, match="every `category_id`"):
        write_fixed(path, folder, folder.parent / "fixed.json")


@pytest.mark.parametrize(("side", "kinds"), [(400, ["percent"]), (150, [])])
def test_read_annotations__warns_of_coordinates_in_percent(
    write: Any, folder: Path, document: dict[str, Any], side: int, kinds: list[str]
) -> None:
    polygon = [5.0, 5.0, 96.5, 5.0, 96.5, 40.0, 5.0, 40.0]
    document["images"] = [document["images"][0] | {"height": side, "width": side}]
    document["annotations"] = [
        {"id": place, "image_id": 1, "category_id": 7, "segmentation": [[number - place for number in polygon]]}
        for place in range(1, 5)
    ]
    Image.fromarray(np.zeros((side, side), np.uint8)).save(folder / "a.png")
    assert [problem.kind for problem in check_dataset(write(document), folder).problems] == kinds
