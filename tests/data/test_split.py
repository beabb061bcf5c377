from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vispeft.coco.sets import CocoSet
from vispeft.data import read_coco
from vispeft.data.split import split_coco, split_indices
from vispeft.errors import ConfigError, DataError


@pytest.fixture
def coco_set(write: Any) -> CocoSet:
    """80 images; class 0 on all of them, class 1 on 20, class 2 on 8."""
    rng = np.random.default_rng(0)
    square = [[2, 2, 20, 2, 20, 20, 2, 20]]
    images = [{"id": i, "file_name": f"{i}.png", "height": 32, "width": 32} for i in range(1, 81)]
    labels = [[0] * int(rng.integers(1, 6)) + [1] * (i % 4 == 0) + [2] * (i % 10 == 0) for i in range(1, 81)]
    annotations = [
        {"image_id": i, "category_id": label, "segmentation": square}
        for i, group in enumerate(labels, start=1)
        for label in group
    ]
    for identifier, annotation in enumerate(annotations, start=1):
        annotation["id"] = identifier
    categories = [{"id": i, "name": f"class {i}"} for i in range(3)]
    return read_coco(write({"images": images, "annotations": annotations, "categories": categories}), None)


def test_split_indices__leaves_an_instance_of_every_class_for_training(write: Any) -> None:
    labels = ["x" + "w" * 5, "x" + "z" * 3, *"wwwwwwww"]
    square = [[2, 2, 20, 2, 20, 20, 2, 20]]
    annotations = [
        {"id": 100 * i + j, "image_id": i, "category_id": ord(letter), "segmentation": square}
        for i, letters in enumerate(labels, start=1)
        for j, letter in enumerate(letters)
    ]
    images = [{"id": i, "file_name": f"{i}.png", "height": 32, "width": 32} for i in range(1, 11)]
    categories = [{"id": ord(letter), "name": letter} for letter in "wxz"]
    coco_set = read_coco(write({"images": images, "annotations": annotations, "categories": categories}), None)
    for seed in range(10):
        train, _ = split_indices(coco_set, val_fraction=0.2, seed=seed)
        assert {a.category_idx for i in train for a in coco_set.annotations[i]} == {0, 1, 2}


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_split_indices__shares_every_class_out(coco_set: CocoSet, fraction: float) -> None:
    train, val = split_indices(coco_set, val_fraction=fraction, seed=1)
    assert sorted(train + val) == list(range(80))
    assert len(val) == round(80 * fraction)
    sides = [Counter(a.category_idx for i in side for a in coco_set.annotations[i]) for side in (train, val)]
    for label in range(3):
        total = sides[0][label] + sides[1][label]
        assert abs(sides[1][label] - fraction * total) <= max(1, 0.1 * total)


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.6, 0.9])
def test_split_indices__gives_both_sides_images_with_few_and_many_objects(write: Any, fraction: float) -> None:
    square = [[2, 2, 20, 2, 20, 20, 2, 20]]
    # as in photographs: most images with one object, some with many
    counts = [1 + (i % 5 == 0) * (i % 7) + (i % 40 == 0) * 12 for i in range(400)]
    images = [{"id": i + 1, "file_name": f"{i}.png", "height": 32, "width": 32} for i in range(400)]
    holders = [i + 1 for i, count in enumerate(counts) for _ in range(count)]
    annotations = [
        {"id": number, "image_id": holder, "category_id": 1, "segmentation": square}
        for number, holder in enumerate(holders, start=1)
    ]
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    train, val = split_indices(read_coco(write(document), None), val_fraction=fraction)
    assert len(val) == round(400 * fraction)
    means = [float(np.mean([counts[i] for i in side])) for side in (train, val)]
    assert means[0] == pytest.approx(means[1], rel=0.1)
    assert max(counts[i] for i in val) > 6
    assert max(counts[i] for i in train) > 6


def test_split_indices__depends_on_the_seed_alone(coco_set: CocoSet) -> None:
    assert split_indices(coco_set, val_fraction=0.2) == split_indices(coco_set, val_fraction=0.2)
    assert split_indices(coco_set, val_fraction=0.2) != split_indices(coco_set, val_fraction=0.2, seed=1)


@pytest.mark.parametrize("name", ["a.png", "./a.png", "x/../a.png"])
def test_split_indices__keeps_entries_of_one_file_together(write: Any, document: dict[str, Any], name: str) -> None:
    document["images"][1]["file_name"] = name
    with pytest.raises(DataError, match="at least two"):
        split_indices(read_coco(write(document), None), val_fraction=0.5)


def test_split_coco__writes_two_files_that_load(write: Any, folder: Path, document: dict[str, Any]) -> None:
    document["info"] = {"year": 2020}
    for annotation in document["annotations"]:
        annotation["attributes"] = {"of": annotation["id"]}
    split = split_coco(write(document), folder, folder.parent / "out", val_fraction=0.5)
    train, val = (json.loads(path.read_text()) for path in (split.train_path, split.val_path))
    assert {image["id"] for image in train["images"] + val["images"]} == {1, 2}
    assert len(train["images"]) == len(val["images"]) == 1
    assert {a["id"] for a in train["annotations"] + val["annotations"]} == {1, 2, 3, 4}
    assert all(a["attributes"] == {"of": a["id"]} for a in train["annotations"] + val["annotations"])
    assert train["categories"] == val["categories"]
    assert train["info"] == {"year": 2020}
    assert read_coco(split.train_path, folder).report.problems == ()


def test_split_coco__refuses_a_fraction_outside(write: Any, folder: Path, document: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="`val_fraction`"):
        split_coco(write(document), folder, folder.parent, val_fraction=1.0)
