"""A small COCO set on disk; a synthetic set, a tiny configuration, and a run of it."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vispeft.config import parse_config
from vispeft.engine import RunDirectory, train_run
from vispeft.synthetic import write_splits
from vispeft.training.arithmetic import request_reproducible_arithmetic

# torch is loaded but nothing has been computed yet, which is when MKL makes its choice
request_reproducible_arithmetic()

Writer = Callable[[dict[str, Any]], Path]


@pytest.fixture(scope="session")
def shapes_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.json, val.json and images of 64 x 64 pixels."""
    folder = tmp_path_factory.mktemp("shapes")
    write_splits(folder, num_train=6, num_val=3, size=64, seed=0)
    return folder


@pytest.fixture(scope="session")
def tiny(shapes_set: Path) -> dict[str, Any]:
    """A configuration whose model trains in seconds; nothing is pretrained."""
    return {
        "model": {
            "weights": "none",
            "backbone": "vit_tiny_patch16_224",
            "size": "tiny",
            "image_size": 64,
            "backbone_options": {"depth": 3, "embed_dim": 48},
            "options": {"dim": 32, "ffn_dim": 64, "mask_dim": 16, "num_queries": 12},
        },
        "peft": {
            "deltas": {
                "@encoder.qkv": {"method": "lora", "rank": 2, "parts": "qv"},
                "@deformable.value_proj": {"method": "lora", "rank": 2},
            },
            "train": ["@heads"],
        },
        "data": {
            side: {"annotations": str(shapes_set / f"{side}.json"), "images": str(shapes_set / "images")}
            for side in ("train", "val")
        },
        "train": {"steps": 4, "batch_size": 2, "workers": 0, "eval_every": 2, "device": "cpu"},
        "loss": {"num_points": 256},
    }


@pytest.fixture(scope="session")
def finished(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished run with LoRA."""
    directory = RunDirectory(tmp_path_factory.mktemp("runs") / "finished")
    train_run(parse_config(tiny), directory)
    return directory


@pytest.fixture(scope="session")
def transformers_directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Function that returns a directory of a model type of transformers with random weights for 3 classes."""
    pytest.importorskip("transformers")
    spec = importlib.util.spec_from_file_location("tiny_transformers", Path(__file__).parent / "tiny_transformers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("transformers")

    def directory(model_type: str) -> Path:
        path = folder / model_type
        if not path.is_dir():
            module.write_directory(model_type, path)
        return path

    return directory


@pytest.fixture(scope="session")
def hostile() -> ModuleType:
    """The module `data/hostile.py`, which makes sets with one fault or oddity each."""
    spec = importlib.util.spec_from_file_location("hostile", Path(__file__).parent / "data" / "hostile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look up their module by its name
    sys.modules["hostile"] = module
    spec.loader.exec_module(module)
    return module


def _small_document() -> dict[str, Any]:
    """Two 48 x 32 images; a polygon, one of two parts, an RLE and a crowd region; categories 7 and 3."""
    rle = np.zeros((32, 48), int)
    rle[4:14, 30:44] = 1
    flat = rle.T.reshape(-1)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]])))
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    box = [[20.0, 5.0, 40.0, 5.0, 40.0, 25.0, 20.0, 25.0]]
    parts = [[2, 2, 10, 2, 10, 12, 2, 12], [2, 18, 10, 18, 10, 28, 2, 28]]
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "height": 32, "width": 48},
            {"id": 2, "file_name": "b.png", "height": 32, "width": 48},
        ],
        "categories": [{"id": 7, "name": "box"}, {"id": 3, "name": "pair"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "segmentation": box, "bbox": [20, 5, 20, 20], "area": 400},
            {"id": 2, "image_id": 1, "category_id": 3, "segmentation": parts, "bbox": [2, 2, 8, 26], "area": 160},
            {"id": 3, "image_id": 2, "category_id": 7, "segmentation": {"size": [32, 48], "counts": counts}},
            {"id": 4, "image_id": 2, "category_id": 7, "segmentation": box, "iscrowd": 1},
        ],
    }


@pytest.fixture
def document() -> dict[str, Any]:
    return _small_document()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder `images` with a.png and b.png, noise with the first set's box in red."""
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        pixels = rng.integers(60, 120, (32, 48, 3)).astype(np.uint8)
        pixels[5:25, 20:40] = (220, 20, 20)
        Image.fromarray(pixels).save(images / name)
    return images


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    def writer(document: dict[str, Any]) -> Path:
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(document))
        return path

    return writer
