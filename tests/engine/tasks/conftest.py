"""Sets of each task, made of the synthetic instance set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from vispeft.coco.label_maps import colour_of_id
from vispeft.coco.rle import to_rle

SKY, GROUND = 201, 202


def write_panoptic(source: Path, out: Path) -> None:
    """Write a panoptic file `out` and its folder: the objects of an instance file before two stuff classes."""
    document = json.loads(source.read_text())
    folder = out.with_suffix("")
    folder.mkdir()
    annotations = []
    for image in document["images"]:
        height, width = image["height"], image["width"]
        ids = np.full((height, width), 500 * 256, np.int64)
        ids[height // 2 :] = 70_000
        kinds = {500 * 256: SKY, 70_000: GROUND}
        for number, item in enumerate((a for a in document["annotations"] if a["image_id"] == image["id"]), start=1):
            ids[mask_utils.decode(to_rle(item["segmentation"], height, width)).astype(bool)] = number
            kinds[number] = item["category_id"]
        name = f"{Path(image['file_name']).stem}.png"
        Image.fromarray(colour_of_id(ids)).save(folder / name)
        segments = [
            {"id": value, "category_id": kinds[value], "area": int((ids == value).sum()), "iscrowd": 0}
            for value in np.unique(ids).tolist()
        ]
        annotations.append({"image_id": image["id"], "file_name": name, "segments_info": segments})
    categories = [{**category, "isthing": 1} for category in document["categories"]]
    categories += [{"id": SKY, "name": "sky", "isthing": 0}, {"id": GROUND, "name": "ground", "isthing": 0}]
    out.write_text(json.dumps({**document, "annotations": annotations, "categories": categories}))


@pytest.fixture(scope="session")
def panoptic_set(shapes_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with panoptic_train.json, panoptic_val.json and the folders of their PNG files."""
    folder = tmp_path_factory.mktemp("panoptic")
    for split in ("train", "val"):
        write_panoptic(shapes_set / f"{split}.json", folder / f"panoptic_{split}.json")
    return folder


@pytest.fixture(scope="session")
def panoptic_data(panoptic_set: Path, shapes_set: Path) -> dict[str, Any]:
    """Section `data` of a configuration with the panoptic set."""
    return {
        split: {"annotations": str(panoptic_set / f"panoptic_{split}.json"), "images": str(shapes_set / "images")}
        for split in ("train", "val")
    }


@pytest.fixture
def eomt(tiny: dict[str, Any]) -> dict[str, Any]:
    """A tiny configuration of EoMT."""
    plan = {"deltas": {"@encoder.qkv": {"method": "lora", "rank": 2, "parts": "qv"}}, "train": ["@new"]}
    return {**tiny, "model": {**tiny["model"], "name": "eomt", "options": {"num_queries": 12}}, "peft": plan}
