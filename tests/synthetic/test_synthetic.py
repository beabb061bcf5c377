from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from vispeft.errors import DataError
from vispeft.synthetic import DOMAINS, SHAPE_NAMES, render_scene, write_coco, write_splits
from vispeft.synthetic.canvas import Canvas, Material
from vispeft.synthetic.contours import BROAD_SHAPES, TARGET_SHAPES, placed
from vispeft.synthetic.textures import texture


def scenes(domain: str, count: int, size: int = 96):
    rng = np.random.default_rng(11)
    return [render_scene(rng, size, domain=domain) for _ in range(count)]


@pytest.mark.parametrize("domain", DOMAINS)
def test_render_scene__returns_arrays_of_the_documented_shapes_and_types(domain):
    scene = render_scene(np.random.default_rng(0), (80, 112), domain=domain)
    assert scene.image.shape == (80, 112, 3)
    assert scene.image.dtype == np.uint8
    assert scene.masks.shape == (len(scene.labels), 80, 112)
    assert scene.masks.dtype == np.bool_
    assert scene.labels.dtype == np.int64


@pytest.mark.parametrize("domain", DOMAINS)
def test_render_scene__is_the_same_for_the_same_generator(domain):
    first, again = scenes(domain, 3), scenes(domain, 3)
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a.image, b.image)
        assert np.array_equal(a.masks, b.masks)
        assert np.array_equal(a.labels, b.labels)
    assert not np.array_equal(first[0].image, first[1].image)


@pytest.mark.parametrize("domain", DOMAINS)
def test_render_scene__has_no_empty_and_no_overlapping_instances(domain):
    for scene in scenes(domain, 25):
        assert len(scene.labels) >= 1
        assert scene.masks.sum(axis=(1, 2)).min() >= 10
        assert scene.masks.sum(axis=0).max() == 1
        assert set(scene.labels.tolist()) <= set(range(len(DOMAINS[domain].class_names)))


def test_render_scene__broad_shows_every_class_few_and_many_instances():
    shown = scenes("broad", 120)
    counts = [len(scene.labels) for scene in shown]
    assert set(np.concatenate([scene.labels for scene in shown]).tolist()) == set(range(len(SHAPE_NAMES)))
    assert min(counts) <= 2
    assert 4 <= np.median(counts) <= 16
    assert max(counts) >= 40


@pytest.mark.parametrize("domain", [name for name in DOMAINS if name != "broad"])
def test_render_scene__targets_share_no_class_with_the_broad_domain(domain):
    assert set(DOMAINS[domain].class_names).isdisjoint(SHAPE_NAMES)
    assert all(1 <= len(scene.labels) <= 10 for scene in scenes(domain, 10))


@pytest.mark.parametrize("name", [*BROAD_SHAPES, *TARGET_SHAPES])
def test_canvas__pixels_of_an_instance_are_those_that_were_painted(name):
    rng = np.random.default_rng(3)
    make = (BROAD_SHAPES | TARGET_SHAPES)[name]
    canvas = Canvas(np.zeros((96, 96, 3), np.float32))
    canvas.add(
        rng, placed(make(rng), (48.0, 48.0), 40.0, 0.7), 0, Material(np.ones(3, np.float32), np.ones(3, np.float32))
    )
    assert np.array_equal(canvas.image[:, :, 0] > 0.5, canvas.ids == 1)
    assert canvas.full_areas == [int((canvas.ids == 1).sum())]


@pytest.mark.parametrize("radius", [3.0, 8.0, 30.0])
def test_canvas__a_disk_has_the_area_of_a_disk(radius):
    rng = np.random.default_rng(0)
    canvas = Canvas(np.zeros((96, 96, 3), np.float32))
    shape = canvas.stencil(placed(BROAD_SHAPES["disk"](rng), (48.3, 47.6), radius, 0.0))
    assert shape is not None
    assert shape.alpha.sum() / 255 == pytest.approx(np.pi * radius**2, rel=0.1)
    canvas.claim(shape, 0)
    rows, columns = np.nonzero(canvas.ids)
    assert columns.mean() + 0.5 == pytest.approx(48.3, abs=0.3)
    assert rows.mean() + 0.5 == pytest.approx(47.6, abs=0.3)


def test_canvas__a_later_instance_hides_an_earlier_one():
    rng = np.random.default_rng(0)
    canvas = Canvas(np.zeros((64, 64, 3), np.float32))
    white = Material(np.ones(3, np.float32), np.ones(3, np.float32))
    for centre in ((24.0, 32.0), (40.0, 32.0)):
        canvas.add(rng, placed(BROAD_SHAPES["disk"](rng), centre, 16.0, 0.0), 0, white)
    assert canvas.ids[32, 39] == 2
    assert canvas.ids[32, 25] in (1, 2)
    assert (canvas.ids == 1).sum() < canvas.full_areas[0]
    assert (canvas.ids == 2).sum() == canvas.full_areas[1]


def test_canvas__a_ring_has_a_hole():
    rng = np.random.default_rng(5)
    canvas = Canvas(np.zeros((96, 96, 3), np.float32))
    canvas.add(
        rng,
        placed(BROAD_SHAPES["ring"](rng), (48.0, 48.0), 40.0, 0.0),
        0,
        Material(np.ones(3, np.float32), np.ones(3, np.float32)),
    )
    mask = (canvas.ids == 1).astype(np.uint8)
    assert mask[48, 48] == 0
    _, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    assert (hierarchy[0, :, 3] >= 0).sum() == 1


def test_texture__lies_between_0_and_1_at_any_size():
    rng = np.random.default_rng(1)
    for height, width in ((2, 3), (40, 7), (300, 520)):
        tile = texture(rng, height, width)
        assert tile.shape == (height, width)
        assert tile.min() >= 0
        assert tile.max() <= 1


@pytest.mark.parametrize(("domain", "size", "word"), [("brod", 96, "domain"), ("broad", 8, "size")])
def test_render_scene__names_the_wrong_argument(domain, size, word):
    with pytest.raises(DataError, match=f"`{word}` must be"):
        render_scene(np.random.default_rng(0), size, domain=domain)


def test_write_coco__masks_are_exact_when_read_by_pycocotools(tmp_path: Path):
    path = write_coco(tmp_path, num_images=4, size=(64, 96), seed=2, domain="neon")
    coco = COCO(str(path))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(DOMAINS["neon"].class_names)
    assert len(coco.getImgIds()) == 4
    for image_id in coco.getImgIds():
        info = coco.loadImgs(image_id)[0]
        assert cv2.imread(str(tmp_path / "images" / info["file_name"])).shape == (64, 96, 3)
        masks = []
        for annotation in coco.loadAnns(coco.getAnnIds(image_id)):
            mask = coco.annToMask(annotation)
            rows, columns = np.nonzero(mask)
            assert annotation["area"] == mask.sum()
            left, top = columns.min(), rows.min()
            assert annotation["bbox"] == [left, top, columns.max() - left + 1, rows.max() - top + 1]
            masks.append(mask)
        assert 1 <= len(masks) <= 10
        assert np.sum(masks, axis=0).max() == 1


def test_write_splits__are_repeatable_and_differ_from_each_other(tmp_path: Path):
    sets = [write_splits(tmp_path / n, num_train=2, num_val=2, size=64, seed=5, domain="dotted") for n in "ab"]
    (train_a, val_a), (train_b, val_b) = sets
    assert train_a.read_bytes() == train_b.read_bytes()
    assert val_a.read_bytes() == val_b.read_bytes()
    assert json.loads(train_a.read_text())["annotations"] != json.loads(val_a.read_text())["annotations"]
    images = tmp_path / "a" / "images"
    assert (images / "train_00000.png").read_bytes() != (images / "val_00000.png").read_bytes()


def test_write_coco__refuses_zero_images(tmp_path: Path):
    with pytest.raises(DataError, match="`num_images` must be at least 1, but is 0"):
        write_coco(tmp_path, num_images=0, size=64, seed=0)


def test_write_coco__single_class_is_the_category_of_every_object(tmp_path: Path):
    path = write_coco(tmp_path, num_images=2, size=64, seed=5, domain="inverted", single_class="object")
    annotations = json.loads(path.read_text())
    assert [category["name"] for category in annotations["categories"]] == ["object"]
    assert {annotation["category_id"] for annotation in annotations["annotations"]} == {1}
