from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from vispeft.data import read_coco
from vispeft.data.converters import convert_masks
from vispeft.errors import ConfigError, DataError

AddPictures = Callable[..., None]
Areas = Callable[[], dict[str, list[float]]]
Array = np.ndarray[Any, Any]


def two_squares() -> Array:
    values = np.zeros((32, 48), np.uint16)
    values[2:8, 2:12] = 1
    values[20:30, 30:40] = 700
    return values


LABELS = np.where(two_squares() == 700, 2, two_squares()).astype(np.uint8)
BLACK_AND_WHITE = ((LABELS > 0) * 255).astype(np.uint8)


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    folder = tmp_path / "masks"
    folder.mkdir()
    return folder


def save(path: Path, values: Array, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)


def test_convert_masks__reads_values_and_folders(folder: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    (masks / "b").mkdir(parents=True)
    Image.fromarray(two_squares()).save(masks / "a.png")
    Image.fromarray(((two_squares() > 1) * 255).astype(np.uint8)).save(masks / "b" / "0.png")
    convert_masks(folder, masks, tmp_path / "out.json", names=["cell"])
    coco_set = read_coco(tmp_path / "out.json", folder)
    assert [[a.area for a in group] for group in coco_set.annotations] == [[60, 100], [100]]
    assert coco_set.annotations[1][0].bbox == (30, 20, 10, 10)


@pytest.mark.parametrize(
    ("pictures", "mask"), [(("a.jpg", "a.png"), "a.png"), (("a/0.jpg", "a.jpg"), "a/0.png")], ids=["name", "folder"]
)
def test_convert_masks__refuses_images_that_share_a_mask(
    images: Path, masks: Path, out: Path, add_pictures: AddPictures, pictures: tuple[str, ...], mask: str
) -> None:
    add_pictures(*pictures)
    save(masks / mask, BLACK_AND_WHITE)
    with pytest.raises(DataError, match=rf"{pictures[0]} and {pictures[1]}: images that share the mask .*{mask}"):
        convert_masks(images, masks, out, names=["cell"])
    assert not out.exists()


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
    with pytest.raises(DataError, match="5x5, but its image is 48x32"):
        convert_masks(folder, tmp_path, tmp_path / "out.json", names=["cell"])


@pytest.mark.parametrize(
    ("name", "values", "options"),
    [
        ("a.tif", two_squares(), {}),
        ("a.TIFF", two_squares().astype(np.int32) * 1000, {}),
        ("a.tif", two_squares().astype(np.float32), {}),
        ("a.png", LABELS, {"bits": 4}),
        ("a.bmp", LABELS, {}),
        ("a.png", np.dstack([LABELS * 90, LABELS * 3, LABELS * 0]), {}),
        ("a.png", np.dstack([LABELS, LABELS, LABELS, BLACK_AND_WHITE]), {}),
        ("a.png", np.dstack([LABELS + 9, LABELS, LABELS, BLACK_AND_WHITE]), {}),
        ("a.png", np.dstack([LABELS, LABELS, LABELS, LABELS * 0]), {}),
    ],
    ids=["uint16", "int32", "float", "4-bit", "bmp", "rgb", "rgba", "transparent-background", "alpha-of-0"],
)
def test_convert_masks__reads_label_images_of_every_kind(
    images: Path,
    masks: Path,
    out: Path,
    add_pictures: AddPictures,
    areas: Areas,
    name: str,
    values: Array,
    options: dict[str, Any],
) -> None:
    add_pictures("a.jpg")
    save(masks / name, values, **options)
    assert convert_masks(images, masks, out, names=["cell"]) == ()
    assert sorted(areas()["a.jpg"]) == [60, 100]


def blurred(values: Array) -> Array:
    return cv2.GaussianBlur(values, (5, 5), 0)


def enlarged(values: Array) -> Array:
    return cv2.resize(values[::4, ::4], (48, 32), interpolation=cv2.INTER_LINEAR)


@pytest.mark.parametrize("soften", [blurred, enlarged])
@pytest.mark.parametrize("name", ["a.png", "a/0.png"])
def test_convert_masks__refuses_soft_edges(
    images: Path, masks: Path, out: Path, add_pictures: AddPictures, soften: Callable[[Array], Array], name: str
) -> None:
    add_pictures("a.jpg")
    save(masks / name, soften(BLACK_AND_WHITE))
    with pytest.raises(DataError, match=r"soft edges.*Threshold"):
        convert_masks(images, masks, out, names=["cell"])


@pytest.mark.parametrize("quality", [50, 75, 90, 95])
def test_convert_masks__refuses_jpeg_artefacts(
    images: Path, masks: Path, out: Path, add_pictures: AddPictures, quality: int
) -> None:
    add_pictures("a.jpg")
    round_one = cv2.circle(np.zeros((32, 48), np.uint8), (20, 15), 9, 255, -1)
    save(masks / "a.jpg", round_one, quality=quality)
    with pytest.raises(DataError, match="saved as JPEG"):
        convert_masks(images, masks, out, names=["cell"])


def crowd_of_tiny_instances() -> Array:
    values = np.zeros((32, 48), np.uint8)
    for number in range(96):
        row, column = divmod(number, 12)
        values[row * 4 : row * 4 + 2, column * 4 : column * 4 + 2] = number + 1
    return values


def touching_instances() -> Array:
    seeds = np.random.default_rng(0).integers(0, (32, 48), (40, 2))
    rows, columns = np.mgrid[:32, :48]
    distance = (rows[..., None] - seeds[:, 0]) ** 2 + (columns[..., None] - seeds[:, 1]) ** 2
    return (distance.argmin(-1) + 1).astype(np.uint8)


def thin_instances() -> Array:
    values = np.zeros((32, 48), np.uint8)
    for number in range(1, 8):
        values[number * 4, 5:40] = number
    return values


@pytest.mark.parametrize("make", [crowd_of_tiny_instances, touching_instances, thin_instances])
def test_convert_masks__keeps_small_and_crowded_instances(
    images: Path, masks: Path, out: Path, add_pictures: AddPictures, areas: Areas, make: Callable[[], Array]
) -> None:
    add_pictures("a.jpg")
    save(masks / "a.png", make())
    convert_masks(images, masks, out, names=["cell"])
    assert len(areas()["a.jpg"]) == len(np.unique(make()[make() > 0]))


@pytest.mark.parametrize("values", [BLACK_AND_WHITE, BLACK_AND_WHITE > 0], ids=["255", "1-bit"])
def test_convert_masks__warns_of_a_value_with_several_parts(
    images: Path, masks: Path, out: Path, add_pictures: AddPictures, areas: Areas, values: Array
) -> None:
    add_pictures("a.jpg")
    save(masks / "a.png", values)
    (problem,) = convert_masks(images, masks, out, names=["cell"])
    assert problem.kind == "several-parts"
    assert "a.png (2 parts)" in problem.message
    assert "semantic" in problem.message
    assert areas() == {"a.jpg": [160]}


def test_convert_masks__warns_of_background_that_became_an_instance(
    images: Path, masks: Path, out: Path, add_pictures: AddPictures
) -> None:
    add_pictures("a.jpg", "b.jpg")
    save(masks / "a.png", 255 - BLACK_AND_WHITE)
    save(masks / "b.png", np.zeros((32, 48), np.uint8))
    problems = {problem.kind: problem.message for problem in convert_masks(images, masks, out, names=["cell"])}
    assert sorted(problems) == ["empty-mask", "like-background"]
    assert "b.png" in problems["empty-mask"]


@pytest.mark.parametrize("name", ["1_mask.png", "1-mask.png", "mask_1.png", "mask1.png", "1_labels.tif"])
def test_convert_masks__refuses_an_image_with_a_mask_of_a_similar_name(
    images: Path, masks: Path, out: Path, add_pictures: AddPictures, name: str
) -> None:
    add_pictures("1.jpg", "2.jpg")
    save(masks / name, LABELS)
    save(masks / "2.png", LABELS)
    with pytest.raises(DataError, match=rf"1\.jpg \({name}\)"):
        convert_masks(images, masks, out, names=["cell"])


def test_convert_masks__warns_of_images_without_masks_and_masks_without_images(
    images: Path, masks: Path, out: Path, add_pictures: AddPictures, areas: Areas
) -> None:
    add_pictures("1.jpg", "2.jpg", "3.jpg")
    for name in ("2.png", "11.png"):
        save(masks / name, LABELS)
    (masks / "3").mkdir()
    (masks / "._2.png").write_bytes(b"attributes")
    problems = {p.kind: p.subjects for p in convert_masks(images, masks, out, names=["cell"])}
    assert problems["no-mask"] == ("1.jpg",)
    assert problems["no-image-of-mask"] == ("11.png",)
    assert problems["empty-mask"] == (str(masks / "3"),)
    assert areas() == {"1.jpg": [], "2.jpg": [60, 100], "3.jpg": []}


@pytest.mark.parametrize("names", [["a_cp_masks.png", "b_cp_masks.png"], ["a.npy"], []])
def test_convert_masks__names_the_searched_paths(
    images: Path, masks: Path, out: Path, add_pictures: AddPictures, names: list[str]
) -> None:
    add_pictures("a.jpg", "b.jpg")
    for name in names:
        (masks / name).write_bytes(b"anything")
    held = names[0] if names else "no file"
    with pytest.raises(DataError, match=rf"any of the 2 images.*masks/a\.png.*masks/a/\*\.png.*contains {held}"):
        convert_masks(images, masks, out, names=["cell"])


def test_convert_masks__refuses_ambiguous_masks(
    images: Path, masks: Path, out: Path, add_pictures: AddPictures
) -> None:
    add_pictures("a.jpg")

    def refused(match: str) -> None:
        with pytest.raises(DataError, match=match):
            convert_masks(images, masks, out, names=["cell"])
        for path in masks.rglob("*.*"):
            path.unlink()

    save(masks / "a.tif", LABELS.astype(np.float32) / 3)
    refused("fractional")
    save(masks / "a.tif", LABELS.astype(np.int32) - 1)
    refused("value -1")
    save(masks / "a.tif", LABELS, save_all=True, append_images=[Image.fromarray(LABELS)])
    refused("several pages")
    save(masks / "a.tif", LABELS)
    save(masks / "a.png", LABELS)
    refused("masks of the same image")
    save(masks / "a" / "0.png", LABELS)
    refused("must be one instance")
    with pytest.raises(DataError, match="two folders"):
        convert_masks(images, images, out, names=["cell"])


def test_convert_masks__never_reads_a_mask_as_an_image(
    images: Path, out: Path, add_pictures: AddPictures, areas: Areas
) -> None:
    add_pictures("a.jpg")
    save(images / "masks" / "a.png", LABELS)
    assert convert_masks(images, images / "masks", out, names=["cell"]) == ()
    assert areas() == {"a.jpg": [60, 100]}


@pytest.mark.parametrize("quality", [75, 95])
def test_convert_masks__refuses_a_jpeg_with_block_artefacts(
    images: Path, masks: Path, out: Path, add_pictures: AddPictures, quality: int
) -> None:
    add_pictures("a.jpg")
    values = np.zeros((32, 48), np.uint8)
    values[5:15, 5:15] = values[18:28, 25:40] = 255
    Image.fromarray(values).save(masks / "a.jpg", quality=quality)
    with pytest.raises(DataError, match=r"saved as JPEG.*PNG"):
        convert_masks(images, masks, out, names=["cell"])


def test_convert_masks__takes_a_jpeg_of_two_values(
    images: Path, masks: Path, out: Path, add_pictures: AddPictures, areas: Areas
) -> None:
    add_pictures("a.jpg")
    values = np.zeros((32, 48), np.uint8)
    values[8:16, 16:40] = 255
    Image.fromarray(values).save(masks / "a.jpg", quality=100)
    convert_masks(images, masks, out, names=["cell"])
    assert areas() == {"a.jpg": [8.0 * 24]}


@pytest.mark.parametrize(("highest", "kinds"), [(2, ["value-255"]), (9, [])])
def test_convert_masks__warns_of_255_beside_instances_from_1_on(
    images: Path, masks: Path, out: Path, add_pictures: AddPictures, highest: int, kinds: list[str]
) -> None:
    add_pictures("a.jpg")
    values = np.zeros((32, 48), np.uint8)
    values[2:8, 2:8], values[2:8, 12:20], values[20:30, 2:10] = 1, highest, 255
    save(masks / "a.png", values)
    assert [problem.kind for problem in convert_masks(images, masks, out, names=["cell"])] == kinds
