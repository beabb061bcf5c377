from __future__ import annotations

import base64
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from vispeft.data import read_coco
from vispeft.data.converters import convert_labelme
from vispeft.errors import DataError

AddPictures = Callable[..., None]
Areas = Callable[[], dict[str, list[float]]]

SQUARE = [[10, 10], [20, 10], [20, 20], [10, 20]]


def shape(label: Any = "cow", points: Any = SQUARE, kind: str = "polygon", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, **more}


def write(path: Path, *shapes: Any, image: Any = "a.jpg", encoding: str = "utf-8", **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"imagePath": image, "shapes": list(shapes), **more}), encoding=encoding)


def encoded(mask: np.ndarray[Any, Any]) -> str:
    file = BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


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


@pytest.mark.parametrize(
    ("drawn", "area"),
    [
        (shape(points=[[24, 16], [34, 16]], kind="circle"), np.pi * 100),
        (shape(points=[[24, 6], [34, 16], [24, 26], [14, 16]], kind="oriented_rectangle"), 200),
        (shape(points=[[24, 6], [34, 16], [24, 26], [14, 16]], kind="rotation"), 200),
        (shape(points=[[24, 6], [34, 16], [24, 26], [14, 16]], kind="rectangle"), 200),
    ],
    ids=["circle", "oriented", "rotation", "rectangle-of-four"],
)
def test_convert_labelme__reads_every_shape_with_an_area(
    images: Path, out: Path, add_pictures: AddPictures, areas: Areas, drawn: dict[str, Any], area: float
) -> None:
    add_pictures("a.jpg")
    write(images / "a.json", drawn)
    assert convert_labelme(images, out) == ()
    assert areas()["a.jpg"] == [pytest.approx(area, rel=0.06)]


def test_convert_labelme__reads_masks_of_the_ai_tool(images: Path, out: Path, add_pictures: AddPictures) -> None:
    add_pictures("a.jpg")
    mask = np.zeros((6, 11), bool)
    mask[1:3, :4] = True
    beyond = np.ones((5, 5), bool)
    write(
        images / "a.json",
        shape(points=[[20, 10], [30, 15]], kind="mask", mask=encoded(mask)),
        shape(points=[[45.0, 30.0], [49.0, 34.0]], kind="mask", mask=encoded(beyond)),
        shape(points=[[-2, -3], [2, 1]], kind="mask", mask=encoded(beyond)),
    )
    assert convert_labelme(images, out) == ()
    boxes = [annotation["bbox"] for annotation in json.loads(out.read_text())["annotations"]]
    assert boxes == [[20, 11, 4, 2], [45, 30, 3, 2], [0, 0, 3, 2]]


@pytest.mark.parametrize(
    "broken",
    [
        shape("pipe", [[20, 10], [30, 15]], "mask", mask="!!"),
        shape("pipe", [[20, 10], [30, 15]], "mask"),
        shape("pipe", [[20, 10], [40, 15]], "mask", mask=encoded(np.ones((6, 11), bool))),
        shape("pipe", [[20, 10]], "point"),
        shape("pipe", [[20, 10], [30, 10]], "line"),
        shape("pipe", SQUARE, "linestrip"),
        shape("pipe", SQUARE[:2]),
        shape("pipe", [[20, 10], [None, 1], [3, 3]]),
        shape("pipe", [[200, 200], [210, 200], [210, 210]]),
    ],
    ids=["no-png", "no-mask", "other-size", "point", "line", "linestrip", "two-points", "null", "outside"],
)
def test_convert_labelme__leaves_shapes_without_an_area_out(
    images: Path, out: Path, add_pictures: AddPictures, areas: Areas, broken: dict[str, Any]
) -> None:
    add_pictures("a.jpg")
    write(images / "a.json", broken, shape())
    (problem,) = convert_labelme(images, out)
    assert "pipe" in problem.message
    assert "a.json" in problem.message
    assert areas() == {"a.jpg": [100]}


# both leave the image on the left, the second with two arms: their outlines must not bend along the edge
PAST_THE_EDGE = {
    "triangle": [[-20, 4], [30, 16], [-20, 28]],
    "two arms": [[-10, 2], [30, 2], [30, 28], [-10, 28], [-10, 20], [10, 16], [-10, 10]],
}


@pytest.mark.parametrize("points", PAST_THE_EDGE.values(), ids=PAST_THE_EDGE)
def test_convert_labelme__cuts_outlines_at_the_edge(
    images: Path, out: Path, add_pictures: AddPictures, areas: Areas, points: list[list[float]]
) -> None:
    add_pictures("a.jpg")
    far = shape(points=[[47, 31], [47, 31]], kind="mask", mask=encoded(np.ones((1, 1), bool)), group_id=1)
    write(images / "a.json", shape(points=points), shape(points=points, group_id=1), far)
    assert convert_labelme(images, out) == ()
    # drawn whole, on a canvas that is wider by 40 pixels
    moved = np.add(points, (40.0, 0.0)).reshape(-1)
    inside = int(coco_mask.decode(coco_mask.frPyObjects([moved], 32, 88))[:, 40:].sum())
    assert areas()["a.jpg"] == [pytest.approx(inside, rel=0.01), pytest.approx(inside + 1, rel=0.01)]
    (numbers,) = json.loads(out.read_text())["annotations"][0]["segmentation"]
    assert min(numbers) == 0


def test_convert_labelme__joins_shapes_of_one_label_and_group(
    images: Path, out: Path, add_pictures: AddPictures, areas: Areas
) -> None:
    add_pictures("a.jpg", "b.jpg")
    other = [[30, 10], [34, 10], [34, 20], [30, 20]]
    mask = shape(points=[[30, 10], [33, 14]], kind="mask", mask=encoded(np.ones((5, 4), bool)), group_id=2)
    write(
        images / "a.json",
        shape(group_id=0),
        shape(points=other, group_id=0),
        shape("pig", points=other, group_id=0),
        shape(group_id=2),
        mask,
        shape(group_id=None),
        shape(),
    )
    write(images / "b.json", shape(group_id=0), image="b.jpg")
    assert convert_labelme(images, out) == ()
    assert areas() == {"a.jpg": [140, 40, 120, 100, 100], "b.jpg": [100]}


def test_convert_labelme__reads_images_from_a_sibling_folder(
    tmp_path: Path, images: Path, out: Path, add_pictures: AddPictures, areas: Areas
) -> None:
    add_pictures("a.jpg")
    write(tmp_path / "labels" / "a.json", shape(), image="..\\pictures\\a.jpg")
    with pytest.raises(DataError, match=r"outside the folder; give --images .*pictures"):
        convert_labelme(tmp_path / "labels", out)
    convert_labelme(tmp_path / "labels", out, images=images)
    assert areas() == {"a.jpg": [100]}


@pytest.mark.parametrize("image", ["C:\\Users\\me\\a.jpg", "/home/me/a.jpg", "a.JPG", "sub/../a.jpg"])
def test_convert_labelme__finds_the_image_by_its_name(
    images: Path, out: Path, add_pictures: AddPictures, areas: Areas, image: str
) -> None:
    add_pictures("a.jpg")
    write(images / "x.json", shape(), image=image)
    assert convert_labelme(images, out) == ()
    assert areas() == {"a.jpg": [100]}


def test_convert_labelme__keeps_images_apart_that_differ_in_letter_case(
    images: Path, out: Path, add_pictures: AddPictures, areas: Areas
) -> None:
    add_pictures("a.jpg", "A.jpg")
    if len(list(images.iterdir())) < 2:
        pytest.skip("the disk does not keep letter case apart")
    write(images / "1.json", shape(), shape())
    write(images / "2.json", shape(), image="A.jpg")
    convert_labelme(images, out)
    assert areas() == {"a.jpg": [100, 100], "A.jpg": [100]}


def test_convert_labelme__warns_when_it_uses_the_image_with_the_files_name(
    images: Path, out: Path, add_pictures: AddPictures, areas: Areas
) -> None:
    add_pictures("a.jpg")
    write(images / "a.json", shape(), image="IMG_7.png")
    (problem,) = convert_labelme(images, out)
    assert problem.kind == "image-by-name"
    assert areas() == {"a.jpg": [100]}


@pytest.mark.parametrize(("data", "named"), [(None, "give --images"), ("/9j/4AAQ", "imageData")])
def test_convert_labelme__names_a_missing_image(
    images: Path, out: Path, add_pictures: AddPictures, data: str | None, named: str
) -> None:
    add_pictures("other.jpg")
    write(images / "a.json", shape(), imageData=data)
    with pytest.raises(DataError, match=rf"a\.json \(imagePath a\.jpg\): .*{named}"):
        convert_labelme(images, out)


def test_convert_labelme__ignores_other_json_files(images: Path, add_pictures: AddPictures) -> None:
    add_pictures("a.jpg", "b.jpg")
    write(images / "a.json", shape(), encoding="utf-8-sig")
    (images / "coco.json").write_text('{"images": [], "annotations": []}')
    (images / "list.json").write_text("[1]")
    (images / "._a.json").write_bytes(b"attributes")
    out = images / "out.json"
    first = convert_labelme(images, out)
    assert {problem.kind: problem.subjects for problem in first} == {
        "other-json": ("coco.json", "list.json"),
        "no-labelme-file": ("b.jpg",),
    }
    # the output of the first run is in the same folder
    assert convert_labelme(images, out) == first


def test_convert_labelme__never_overwrites_a_labelme_file(images: Path, add_pictures: AddPictures) -> None:
    add_pictures("a.jpg")
    write(images / "a.json", shape())
    before = (images / "a.json").read_bytes()
    with pytest.raises(DataError, match="would overwrite"):
        convert_labelme(images, images / "a.json")
    assert (images / "a.json").read_bytes() == before


@pytest.mark.parametrize("content", ['{"shapes": [', '{"shapes": null}', '{"shapes": [5]}'])
def test_convert_labelme__refuses_a_damaged_file(
    images: Path, out: Path, add_pictures: AddPictures, content: str
) -> None:
    add_pictures("a.jpg")
    write(images / "a.json", shape())
    (images / "b.json").write_text(content)
    with pytest.raises(DataError, match=r"b\.json is not a LabelMe file"):
        convert_labelme(images, out)


def test_convert_labelme__refuses_an_image_of_another_size(images: Path, out: Path, add_pictures: AddPictures) -> None:
    add_pictures("a.jpg")
    write(images / "a.json", shape(), imageWidth=96, imageHeight=64)
    with pytest.raises(DataError, match="labelled 96x64, file 48x32"):
        convert_labelme(images, out)


def test_convert_labelme__refuses_two_files_of_one_image(images: Path, out: Path, add_pictures: AddPictures) -> None:
    add_pictures("a.jpg")
    write(images / "a.json", shape())
    write(images / "copy.json", shape())
    with pytest.raises(DataError, match=r"a\.json and .*copy\.json"):
        convert_labelme(images, out)


def test_convert_labelme__checks_labels(images: Path, out: Path, add_pictures: AddPictures) -> None:
    add_pictures("a.jpg")
    write(images / "a.json", shape("cow"), shape("cow "), shape("Cow"), shape(7))
    problems = {problem.kind: problem.subjects for problem in convert_labelme(images, out)}
    assert problems == {"spaces": ('"cow " in a.json (shape 2)',), "labels-alike": ("Cow, cow",)}
    assert read_coco(out, images).class_names == ("7", "Cow", "cow")
    write(images / "a.json", shape("cow"), shape(None))
    with pytest.raises(DataError, match=r"a\.json \(shape 2\): shapes without a label"):
        convert_labelme(images, out)


def test_convert_labelme__keeps_images_without_shapes_as_background(
    images: Path, out: Path, add_pictures: AddPictures, areas: Areas
) -> None:
    add_pictures("a.jpg", "b.jpg")
    write(images / "a.json", shape())
    write(images / "b.json", image="b.jpg")
    assert convert_labelme(images, out) == ()
    assert areas() == {"a.jpg": [100], "b.jpg": []}


def test_convert_labelme__reads_masks_with_colours_and_alpha(
    images: Path, out: Path, add_pictures: AddPictures, areas: Areas
) -> None:
    add_pictures("a.jpg")
    mask = np.zeros((11, 11), np.uint8)
    mask[2:8, 3:8] = 255
    white, opaque = np.full_like(mask, 255), np.full_like(mask, 255)
    by_alpha, by_colour = np.dstack([white, white, white, mask]), np.dstack([mask * 0, mask * 0, mask, opaque])
    write(
        images / "a.json",
        shape(points=[[5, 5], [15, 15]], kind="mask", mask=encoded(by_alpha)),
        shape(points=[[15, 15], [5, 5]], kind="mask", mask=encoded(by_colour)),
    )
    convert_labelme(images, out)
    assert areas() == {"a.jpg": [30.0, 30.0]}


def test_convert_labelme__ignores_empty_groups_and_background_labels(
    images: Path, out: Path, add_pictures: AddPictures, areas: Areas
) -> None:
    add_pictures("a.jpg")
    write(
        images / "a.json",
        shape(group_id=""),
        shape(group_id=""),
        shape("__ignore__"),
        shape("_background_"),
        shape("dog", points=[[1, 1], [9, 1], [9, 9]], kind="rectangle"),
    )
    problems = convert_labelme(images, out)
    assert [problem.kind for problem in problems] == ["no-object", "no-outline"]
    assert len(areas()["a.jpg"]) == 2
    assert read_coco(out, images).class_names == ("cow",)


def test_convert_labelme__warns_of_instances_numbered_in_labels(
    images: Path, out: Path, add_pictures: AddPictures
) -> None:
    add_pictures("a.jpg")
    write(images / "a.json", shape("cow-1"), shape("cow-2"))
    (problem,) = convert_labelme(images, out)
    assert "cow-1, cow-2" in problem.message
    assert "group_id" in problem.message
