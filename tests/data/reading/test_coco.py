from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vispeft.coco.sets import CocoSet, match_categories, to_annotations
from vispeft.data import EvalTransform, InstanceDataset, TrainTransform, read_coco
from vispeft.errors import DataError


def hostile_values() -> list[Any]:
    return [None, "text", "", True, -1, 0, 3.7, 10**30, float("nan"), float("inf"), [], {}, [None], [[]], {"a": 1}]


def leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every value of a JSON document, containers included."""
    if path:
        yield path
    children = node.items() if isinstance(node, dict) else enumerate(node[:2]) if isinstance(node, list) else ()
    for key, child in children:
        yield from leaves(child, (*path, key))


def test_read_coco__survives_a_hostile_value_anywhere(
    tmp_path: Path, folder: Path, document: dict[str, Any], take_every_sample: Callable[[CocoSet], None]
) -> None:
    path = tmp_path / "annotations.json"
    refused = loaded = 0
    for place in leaves(document):
        for value in hostile_values():
            changed = copy.deepcopy(document)
            parent = changed
            for key in place[:-1]:
                parent = parent[key]
            parent[place[-1]] = value
            path.write_text(json.dumps(changed))
            try:
                coco_set = read_coco(path, folder)
            except DataError:
                refused += 1
                continue
            loaded += 1
            assert all(category.name for category in coco_set.categories)
            if loaded % 25 == 0:
                take_every_sample(coco_set)
                json.dumps(to_annotations(coco_set), allow_nan=False)
    assert refused > 100
    assert loaded > 100


@pytest.mark.parametrize(
    ("content", "named"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b" \n ", "empty", id="blank"),
        pytest.param(b"\x89PNG\r\n\x1a\n\x00\xff\xfe", "not valid JSON", id="binary"),
        pytest.param(b"[" * 100_000, "not valid JSON", id="deep"),
        pytest.param(b'{"images": ' + b"9" * 5000 + b"}", "not valid JSON", id="huge number"),
        pytest.param(b'[{"image_id": 1, "category_id": 1, "score": 0.5}]', "results file", id="results"),
        pytest.param(b'"text"', "top level", id="text"),
        pytest.param(b"{}", "`images`", id="no keys"),
        pytest.param(b'{"images": {}, "annotations": [], "categories": []}', "`images` must be a list", id="dict"),
    ],
)
def test_read_coco__refuses_what_is_no_coco_file(tmp_path: Path, content: bytes, named: str) -> None:
    path = tmp_path / "annotations.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=named) as caught:
        read_coco(path, None)
    assert str(path) in str(caught.value)


def test_read_coco__refuses_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_coco(tmp_path / "none.json", None)
    with pytest.raises(DataError, match="folder"):
        read_coco(tmp_path, None)


def test_read_coco__reads_a_byte_order_mark(tmp_path: Path, folder: Path, document: dict[str, Any]) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(document), encoding="utf-8-sig")
    assert read_coco(path, folder).num_instances == 3


def test_read_coco__tells_all_refusals_at_once(write: Any, folder: Path, document: dict[str, Any]) -> None:
    document["images"][0]["width"] = 64
    document["annotations"][2]["category_id"] = 50
    document["categories"].append({"id": 9, "name": "box"})
    with pytest.raises(DataError) as caught:
        read_coco(write(document), folder)
    for name in ("3 reasons", "a.png (JSON 64x32, file 48x32)", "annotation 3 (category_id 50)", "`box` (ids 7, 9)"):
        assert name in str(caught.value)


@pytest.mark.parametrize("name", ["/etc/hostname", "../outside.png", "x/../../outside.png", "C:\\outside.png"])
def test_read_coco__never_reads_outside_the_folder(
    write: Any, folder: Path, document: dict[str, Any], name: str
) -> None:
    (folder / "b.png").rename(folder.parent / "outside.png")
    document["images"][1]["file_name"] = name
    for check_images in (True, False):
        with pytest.raises(DataError, match="leaves the image folder") as caught:
            read_coco(write(document), folder, check_images=check_images)
        assert name in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\x89PNG\r\n\x1a\n", b"GIF89a"], ids=["empty", "text", "png", "gif"]
)
def test_read_coco__leaves_out_a_file_that_is_no_image(
    write: Any, folder: Path, document: dict[str, Any], content: bytes
) -> None:
    (folder / "b.png").write_bytes(content)
    coco_set = read_coco(write(document), folder)
    assert [image.file_name for image in coco_set.images] == ["a.png"]
    assert any("b.png" in problem.message for problem in coco_set.report.warnings)


def test_read_coco__refuses_where_no_image_is_there(write: Any, tmp_path: Path, document: dict[str, Any]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="none of the 2 images"):
        read_coco(write(document), empty)
    with pytest.raises(DataError, match="image folder"):
        read_coco(write(document), tmp_path / "nowhere")


def test_read_coco__refuses_without_a_usable_instance(write: Any, folder: Path, document: dict[str, Any]) -> None:
    document["annotations"] = [{**document["annotations"][0], "iscrowd": 1}]
    with pytest.raises(DataError, match="no annotation is left"):
        read_coco(write(document), folder)
    document["annotations"] = []
    with pytest.raises(DataError, match="lists no annotations"):
        read_coco(write(document), folder)


def test_read_coco__bounds_absurd_sizes_and_coordinates(write: Any, document: dict[str, Any]) -> None:
    document["images"][0] |= {"height": 10**9, "width": 10**9}
    document["annotations"][2]["segmentation"] = [[-1e6, -1e6, 1e6, -1e6, 1e6, 1e6, -1e6, 1e6]]
    coco_set = read_coco(write(document), None)
    assert [image.id for image in coco_set.images] == [2]
    assert coco_set.annotations[0][0].area == 32 * 48


def test_read_coco__fills_in_missing_sizes_from_the_files(write: Any, folder: Path, document: dict[str, Any]) -> None:
    del document["images"][0]["height"], document["images"][0]["width"]
    coco_set = read_coco(write(document), folder)
    assert (coco_set.images[0].height, coco_set.images[0].width) == (32, 48)
    with pytest.raises(DataError, match="image 1"):
        read_coco(write(document), None)


def test_read_coco__gives_new_ids_only_where_the_old_cannot_stay(
    write: Any, folder: Path, document: dict[str, Any]
) -> None:
    for annotation, identifier in zip(document["annotations"], (0, 5, 5, "x"), strict=True):
        annotation["id"] = identifier
    coco_set = read_coco(write(document), folder)
    ids = [a["id"] for a in to_annotations(coco_set)["annotations"]]
    assert ids == [5, 6, 7, 8]
    assert {p.kind for p in coco_set.report.warnings} == {
        "annotation-id-zero",
        "duplicate-annotation-id",
        "no-annotation-id",
    }


def test_read_coco__warns_of_boxes_in_another_form(write: Any, folder: Path, document: dict[str, Any]) -> None:
    document["annotations"][0]["bbox"] = [20, 5, 40, 25]
    (problem,) = read_coco(write(document), folder).report.warnings
    assert problem.kind == "bbox-off"
    assert "annotation 1" in problem.message


def test_to_annotations__reads_back_as_itself(write: Any, folder: Path, document: dict[str, Any]) -> None:
    first = to_annotations(read_coco(write(document), folder))
    second = read_coco(write(first), folder)
    assert second.report.problems == ()
    assert to_annotations(second) == first
    assert [a["area"] for a in first["annotations"]] == [400, 160, 140, 400]
    assert first["annotations"][2]["bbox"] == [30, 4, 14, 10]


def test_match_categories__refuses_instances_of_unknown_classes(
    write: Any, folder: Path, document: dict[str, Any]
) -> None:
    val = read_coco(write(document), folder)
    document["categories"][0]["name"] = "crate"
    train = read_coco(write(document), folder)
    with pytest.raises(DataError, match="`box`"):
        match_categories(train, val)


def test_match_categories__gives_classes_that_val_lacks_an_id(
    write: Any, folder: Path, document: dict[str, Any]
) -> None:
    val = read_coco(write(document), folder)
    document["categories"].append({"id": 5, "name": "crate"})
    train = read_coco(write(document), folder)
    matched = match_categories(train, val)
    assert matched.class_names == ("pair", "crate", "box")
    assert matched.category_ids == (3, 8, 7)


def test_read_coco__refuses_a_key_with_two_values(tmp_path: Path, folder: Path, document: dict[str, Any]) -> None:
    path = tmp_path / "annotations.json"
    text = json.dumps(document)
    path.write_text(text.replace('"id": 2, "image_id": 1', '"id": 2, "image_id": 2, "image_id": 1'))
    with pytest.raises(DataError, match=r"`image_id` \(of id 2\): the key occurs twice"):
        read_coco(path, folder)
    path.write_text(text[:-1] + ', "annotations": []}')
    with pytest.raises(DataError, match="`annotations`: the key occurs twice"):
        read_coco(path, folder)
    path.write_text(text.replace('"category_id": 3', '"category_id": 3, "category_id": 3'))
    assert read_coco(path, folder).report.problems == ()


@pytest.mark.parametrize(
    ("end", "is_cut_off"),
    [("", False), ("}", False), ("[", False), (-1, True), (-2, True), (-5, True), (-60, True)],
)
def test_read_coco__tells_a_cut_off_file_from_a_wrong_one(
    tmp_path: Path, document: dict[str, Any], end: str | int, is_cut_off: bool
) -> None:
    path = tmp_path / "annotations.json"
    text = json.dumps(document)
    path.write_text(text[:end] if isinstance(end, int) else text[:-1] + "," + end + "}")
    with pytest.raises(DataError, match="not valid JSON") as caught:
        read_coco(path, None)
    assert ("cut off" in str(caught.value)) is is_cut_off


def test_read_coco__says_of_a_compressed_file_that_it_is_one(tmp_path: Path, document: dict[str, Any]) -> None:
    path = tmp_path / "annotations.json"
    path.write_bytes(gzip.compress(json.dumps(document).encode()))
    with pytest.raises(DataError, match="compressed"):
        read_coco(path, None)


def test_read_coco__shows_text_that_looks_like_a_number_in_quotes(
    write: Any, folder: Path, document: dict[str, Any]
) -> None:
    document["images"][0]["id"] = "1"
    with pytest.raises(DataError, match=r'id "1": image ids must be integers'):
        read_coco(write(document), folder)


def test_read_coco__takes_the_same_image_entry_twice_as_one(write: Any, folder: Path, document: dict[str, Any]) -> None:
    document["images"].append(dict(document["images"][0]))
    coco_set = read_coco(write(document), folder)
    assert [image.id for image in coco_set.images] == [1, 2]
    assert [p.kind for p in coco_set.report.problems] == ["same-image-twice"]
    document["images"][2]["width"] = 47
    with pytest.raises(DataError, match="image id 1"):
        read_coco(write(document), folder)


@pytest.mark.parametrize("name", ["a\ud800.png", "a\0.png", " "], ids=["surrogate", "null", "blank"])
def test_read_coco__refuses_what_no_file_can_be_called(
    write: Any, folder: Path, document: dict[str, Any], name: str
) -> None:
    document["images"][0]["file_name"] = name
    with pytest.raises(DataError, match=r"image 1 \(file_name .*\): must have a `file_name`"):
        read_coco(write(document), folder)


def test_read_coco__warns_of_an_rle_that_was_taken_row_by_row(
    write: Any, folder: Path, document: dict[str, Any]
) -> None:
    mask = np.zeros((32, 48), int)
    mask[4:14, 30:44] = 1
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.reshape(-1), [0]])))
    counts = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
    document["annotations"][2]["bbox"] = [30, 4, 14, 10]
    assert read_coco(write(document), folder).report.problems == ()
    document["annotations"][2]["segmentation"]["counts"] = counts
    (problem,) = read_coco(write(document), folder).report.warnings
    assert problem.kind == "bbox-off"
    assert "annotation 3" in problem.message
    assert "row by row" in problem.message


@pytest.mark.filterwarnings("error")
def test_read_coco__takes_the_masks_box_for_an_absurd_one(write: Any, folder: Path, document: dict[str, Any]) -> None:
    document["annotations"][0]["bbox"] = [20, 5, 1e300, 1e300]
    coco_set = read_coco(write(document), folder)
    assert coco_set.annotations[0][0].bbox == (20, 5, 20, 20)
    assert [p.kind for p in coco_set.report.problems] == ["bad-bbox"]


def test_read_coco__warns_of_a_stack_of_pictures(write: Any, folder: Path, document: dict[str, Any]) -> None:
    frames = [Image.fromarray(np.full((32, 48), value, np.uint8)) for value in (10, 200)]
    frames[0].save(folder / "b.tif", save_all=True, append_images=frames[1:])
    document["images"][1]["file_name"] = "b.tif"
    coco_set = read_coco(write(document), folder)
    (problem,) = coco_set.report.warnings
    assert "b.tif: several pictures" in problem.message
    assert int(InstanceDataset(coco_set, EvalTransform(48))[1].image.max()) == 10


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)], ids=str)
def test_dataset__takes_images_one_pixel_wide(
    write: Any, folder: Path, document: dict[str, Any], size: tuple[int, int]
) -> None:
    height, width = size
    Image.new("RGB", (width, height)).save(folder / "b.png")
    document["images"][1] |= {"height": height, "width": width}
    document["annotations"][2]["segmentation"] = [[0, 0, width, 0, width, height, 0, height]]
    coco_set = read_coco(write(document), folder).subset([1])
    sample = InstanceDataset(coco_set, EvalTransform(1))[0]
    assert (tuple(sample.image.shape), tuple(sample.masks.shape)) == ((3, 1, 1), (1, 1, 1))
    sample = InstanceDataset(coco_set, TrainTransform(64, scale=(1, 1), flip=1, vertical_flip=1, quarter_turn=1))[0]
    assert min(sample.image.shape) >= 1
    assert len(sample.masks) == 1
    assert sample.masks.all()
