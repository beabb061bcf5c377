"""Faulty and odd COCO files, one kind each: loaded with what they hold, or refused by name.

Every kind is made here (`hostile.py`); where the folder ../shared/data/nasty-coco is there, its files are tried too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch

from vispeft.coco.sets import CocoSet, match_categories, to_annotations
from vispeft.data import EvalTransform, InstanceDataset, TrainTransform, read_coco
from vispeft.data.reading.check import check_dataset
from vispeft.errors import DataError

NASTY = Path(__file__).parents[2].parent / "shared" / "data" / "nasty-coco"
ORIGINS = ["made", pytest.param("shared", marks=pytest.mark.skipif(not NASTY.is_dir(), reason="no ../shared here"))]
SWAPPED = "train-val-category-order-differs"

# kind: (images, instances, crowds) where it loads, and what the warnings must name
LOADS: dict[str, tuple[tuple[int, int, int], tuple[str, ...]]] = {
    "category-ids-with-gaps": ((2, 3, 0), ()),
    "compressed-rle-noncrowd": ((2, 3, 0), ()),
    "duplicate-annotation-ids": ((2, 3, 0), ("annotation 1",)),
    "exact-duplicate-instance": ((2, 4, 0), ("annotation 4",)),
    "exif-rotated-jpeg": ((2, 3, 0), ()),
    "grayscale-png": ((2, 3, 0), ()),
    "grey-alpha-png": ((2, 3, 0), ()),
    "ids-above-32-bit": ((2, 3, 0), ()),
    "iscrowd-uncompressed-rle": ((2, 3, 1), ()),
    "missing-image-file": ((1, 2, 0), ("b.png",)),
    "missing-segmentation": ((2, 2, 0), ("annotation 2",)),
    "multi-part-polygon": ((2, 3, 0), ()),
    "nan-in-bbox": ((2, 3, 0), ("annotation 2",)),
    "no-area-no-iscrowd": ((2, 3, 0), ()),
    "no-bbox": ((2, 3, 0), ()),
    "odd-extensions": ((2, 3, 0), ()),
    "one-image-without-annotations": ((2, 2, 0), ()),
    "palette-png": ((2, 3, 0), ()),
    "polygon-past-the-edge": ((2, 3, 0), ()),
    "polygon-two-points": ((2, 3, 0), ("annotation 4",)),
    "rle-size-differs-from-image": ((2, 2, 0), ("annotation 1", "24x32", "48x64")),
    "same-file-listed-twice": ((3, 4, 0), ("a.png",)),
    "truncated-jpeg": ((1, 2, 0), ("b.jpg",)),
    "unicode-and-space-names": ((2, 3, 0), ()),
    "very-long-image": ((3, 5, 0), ()),
    "zero-area-instance": ((2, 3, 0), ("annotation 4",)),
}
REFUSES: dict[str, tuple[str, ...]] = {
    "duplicate-category-names": ("disk",),
    "images-empty-list": ("annotations.json", "no images"),
    "json-truncated": ("annotations.json", "not valid JSON", "line "),
    "no-annotations-key": ("annotations.json", "`annotations`"),
    "panoptic-json": ("annotations.json", "panoptic"),
    "path-traversal": ("../outside.png",),
    "size-in-json-differs": ("a.png", "128x96", "64x48"),
    "string-image-ids": ("img-001", "integers"),
    "unknown-category-id": ("annotation 3", "99"),
}


@dataclass(frozen=True)
class Files:
    """One set on disk: an annotation file, its images, and another split's annotation file where it has two."""

    annotations: Path
    images: Path
    train: Path | None = None


Find = Callable[[str, str], Files]


@pytest.fixture
def find(tmp_path: Path, hostile: ModuleType) -> Find:
    """Gives the files of a kind, made here or shared."""

    def files(kind: str, origin: str) -> Files:
        if origin == "shared":
            folder = NASTY / kind
            if kind == SWAPPED:
                return Files(folder / "val.json", folder / "images", folder / "train.json")
            return Files(folder / "annotations.json", folder / "images")
        train = hostile.sound_set(tmp_path / "train").write()
        made = hostile.sound_set(tmp_path / "set")
        hostile.KINDS[kind](made)
        return Files(made.write(), made.images, train)

    return files


def test_kinds__are_all_covered(hostile: ModuleType) -> None:
    covered = LOADS.keys() | REFUSES.keys() | {SWAPPED}
    assert hostile.KINDS.keys() == covered
    assert {path.name for path in NASTY.glob("*") if path.is_dir()} in (covered, set())


def test_read_coco__finds_nothing_in_a_sound_set(tmp_path: Path, hostile: ModuleType) -> None:
    made = hostile.sound_set(tmp_path / "set")
    coco_set = read_coco(made.write(), made.images)
    assert coco_set.report.problems == ()
    assert (len(coco_set), coco_set.num_instances) == (2, 3)


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("kind", LOADS)
def test_read_coco__loads_a_valid_oddity(
    kind: str, origin: str, find: Find, take_every_sample: Callable[[CocoSet], None]
) -> None:
    counts, named = LOADS[kind]
    files = find(kind, origin)
    coco_set = read_coco(files.annotations, files.images)
    report = coco_set.report
    assert (report.num_images, report.num_instances, report.num_crowds) == counts
    assert (len(coco_set), coco_set.num_instances, sum(map(len, coco_set.crowds))) == counts
    assert len(coco_set.categories) == 3
    warnings = " ".join(problem.message for problem in report.warnings)
    assert bool(warnings) == bool(named)
    for name in named:
        assert name in warnings
    take_every_sample(coco_set)


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("kind", REFUSES)
def test_read_coco__refuses_by_name(kind: str, origin: str, find: Find) -> None:
    files = find(kind, origin)
    with pytest.raises(DataError) as caught:
        read_coco(files.annotations, files.images)
    for name in REFUSES[kind]:
        assert name in str(caught.value)
    assert check_dataset(files.annotations, files.images).refused


@pytest.mark.parametrize("origin", ORIGINS)
def test_match_categories__goes_by_name_where_ids_are_swapped(origin: str, find: Find) -> None:
    files = find(SWAPPED, origin)
    assert files.train is not None
    train, val = (read_coco(path, files.images) for path in (files.train, files.annotations))
    matched = match_categories(train, val)
    assert matched.class_names == train.class_names
    assert val.class_names != train.class_names
    ids = {category.name: category.id for category in val.categories}
    assert matched.category_ids == tuple(ids[name] for name in train.class_names)
    assert to_annotations(matched)["annotations"] == to_annotations(val)["annotations"]


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize(
    "kind", ["palette-png", "exif-rotated-jpeg", "odd-extensions", "unicode-and-space-names", "multi-part-polygon"]
)
def test_dataset__masks_lie_on_their_colours(kind: str, origin: str, find: Find) -> None:
    files = find(kind, origin)
    coco_set = read_coco(files.annotations, files.images)
    channel = {"disk": 0, "box": 2, "triangle": 1}
    for transform in (EvalTransform(64), TrainTransform(64, colour=0, scale=(0.8, 1.3), quarter_turn=0.5)):
        samples = list(InstanceDataset(coco_set, transform))
        assert sum(len(sample.labels) for sample in samples) >= 2
        for sample in samples:
            for label, mask in zip(sample.labels.tolist(), sample.masks, strict=True):
                mean = sample.image[:, mask].float().mean(1)
                assert int(mean.argmax()) == channel[coco_set.class_names[label]]
                assert float(mean.max()) > 130


@pytest.mark.parametrize("kind", ["grayscale-png", "grey-alpha-png"])
def test_dataset__grey_becomes_three_equal_channels(kind: str, find: Find) -> None:
    files = find(kind, "made")
    sample = InstanceDataset(read_coco(files.annotations, files.images), EvalTransform(64))[0]
    assert torch.equal(sample.image[0], sample.image[1])
    assert torch.equal(sample.image[0], sample.image[2])
    assert int(sample.image.max()) > int(sample.image.min())


def test_to_annotations__keeps_category_ids_with_gaps(find: Find) -> None:
    files = find("category-ids-with-gaps", "made")
    coco_set = read_coco(files.annotations, files.images)
    assert set(coco_set.category_ids) == {90, 3, 17}
    assert [entry["category_id"] for entry in to_annotations(coco_set)["annotations"]] == [90, 3, 17]


def test_to_annotations__keeps_ids_above_32_bit(find: Find) -> None:
    files = find("ids-above-32-bit", "made")
    written = to_annotations(read_coco(files.annotations, files.images))
    assert [entry["id"] for entry in written["annotations"]] == [2**41 + 1, 2**41 + 2, 2**41 + 3]
    assert [image["id"] for image in written["images"]] == [2**40 + 1, 2**40 + 2]


def test_dataset__clips_a_polygon_past_the_edge(find: Find) -> None:
    files = find("polygon-past-the-edge", "made")
    sample = InstanceDataset(read_coco(files.annotations, files.images), EvalTransform(64))[0]
    assert sample.boxes_xyxy[1].tolist() == [40, 30, 64, 48]
    assert int(sample.masks[1].sum()) == 24 * 18
