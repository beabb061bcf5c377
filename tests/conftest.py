"""A synthetic set, a tiny configuration, and a run of it."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vispeft.assemble import RunDirectory, train_run
from vispeft.config import parse_config
from vispeft.data.shapes import write_splits
from vispeft.training.arithmetic import request_reproducible_arithmetic

# torch is loaded but nothing has been computed yet, which is when MKL makes its choice
request_reproducible_arithmetic()


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
