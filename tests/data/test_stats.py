from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vispeft.data import read_coco
from vispeft.data.stats import ClassStats, format_stats, set_stats


def test_set_stats__counts_classes_sizes_and_images(write: Any, folder: Path, document: dict[str, Any]) -> None:
    document["annotations"][0]["area"] = 96.0**2
    document["annotations"][1]["area"] = 32.0**2
    stats = set_stats(read_coco(write(document), folder))
    assert (stats.images, stats.empty_images, stats.instances, stats.crowds) == (2, 0, 3, 1)
    assert stats.per_image == (1, 1.5, 2)
    assert stats.sizes == ((48, 32, 2),)
    assert stats.classes == (ClassStats("pair", 1, 1, 0, 1, 0), ClassStats("box", 2, 2, 1, 0, 1))
    json.dumps(stats.to_dict())


def test_format_stats__is_a_table(write: Any, folder: Path, document: dict[str, Any]) -> None:
    lines = format_stats(set_stats(read_coco(write(document), folder))).splitlines()
    assert "2 (0 without an instance)" in lines[0]
    assert lines[-2].split() == ["box", "2", "2", "2", "0", "0"]
