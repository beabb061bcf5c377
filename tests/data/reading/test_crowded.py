from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vispeft.data import read_coco
from vispeft.data.reading.check import check_dataset
from vispeft.data.reading.crowded import over


def crowded(document: dict[str, Any], count: int, categories: tuple[int, ...] = (7,)) -> dict[str, Any]:
    """One square of 4 x 4 pixels after the other in the first image, their classes in turn."""
    document["annotations"] = [
        {"id": i + 1, "image_id": 1, "category_id": categories[i % len(categories)], "segmentation": [square(i)]}
        for i in range(count)
    ]
    return document


def square(index: int) -> list[int]:
    left, top = index % 40, (index // 40) % 28
    return [left, top, left + 4, top, left + 4, top + 4, left, top + 4]


@pytest.mark.parametrize(
    ("count", "categories", "kinds"),
    [
        (100, (7,), []),
        (101, (7,), ["crowded-class"]),
        (200, (7, 3), []),
        (301, (7, 3), ["crowded-image", "crowded-class"]),
    ],
)
def test_check_dataset__tells_of_crowded_images(
    write: Any, folder: Path, document: dict[str, Any], count: int, categories: tuple[int, ...], kinds: list[str]
) -> None:
    report = check_dataset(write(crowded(document, count, categories)), folder)
    assert [p.kind for p in report.problems] == kinds
    assert not report.refused
    if kinds:
        assert "a.png" in report.problems[0].message
        assert ("tiles" if "crowded-image" in kinds else "AR@N") in report.problems[0].message


def test_over__counts_all_or_one_class(write: Any, folder: Path, document: dict[str, Any]) -> None:
    coco_set = read_coco(write(crowded(document, 30, (7, 7, 3))), folder)
    assert [(entry.id, count) for entry, count in over(coco_set, 29)] == [(1, 30)]
    assert [(entry.id, count) for entry, count in over(coco_set, 19, by_class=True)] == [(1, 20)]
    assert not list(over(coco_set, 20, by_class=True))
