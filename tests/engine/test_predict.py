"""Predictions in memory: the instances of `vispeft predict`, and clear errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vispeft as vp
from vispeft.coco.results import to_coco_results
from vispeft.engine import RunDirectory, predict_images
from vispeft.errors import VispeftError


def files_of(shapes_set: Path) -> list[Path]:
    return sorted((shapes_set / "images").iterdir())[:2]


def pixels_of(path: Path) -> np.ndarray:
    return np.array(Image.open(path).convert("RGB"))


FORMS: dict[str, Callable[[Path], Any]] = {
    "path": lambda path: path,
    "name": str,
    "pil": lambda path: Image.open(path).convert("RGB"),
    "array": pixels_of,
    "tensor": lambda path: torch.from_numpy(pixels_of(path)).permute(2, 0, 1),
}


@pytest.mark.parametrize("form", FORMS)
def test_predict__gives_what_the_command_writes(
    form: str, finished: RunDirectory, shapes_set: Path, tmp_path: Path
) -> None:
    run, files = vp.load_run(finished.root), files_of(shapes_set)
    predict_images(run, files, tmp_path, threshold=0.01, device="cpu")
    written = json.loads((tmp_path / "predictions.json").read_text())
    found = vp.predict(run, [FORMS[form](path) for path in files], threshold=0.01)
    results = [to_coco_results(each, number, run.category_ids) for number, each in enumerate(found, start=1)]
    assert json.loads(json.dumps([result for each in results for result in each])) == written
    assert written


def test_predict__of_a_model_alone_equals_that_of_its_run(finished: RunDirectory, shapes_set: Path) -> None:
    run, files = vp.load_run(finished.root), files_of(shapes_set)
    run.model.train()
    alone = vp.predict(run.model, files, threshold=0.01, image_size=64, max_detections=40)
    assert run.model.training
    for one, other in zip(alone, vp.predict(run, files, threshold=0.01, max_detections=40), strict=True):
        assert torch.equal(one.scores, other.scores)
    assert 0 < sum(map(len, alone)) <= 2 * 40


@pytest.mark.parametrize(
    ("images", "settings", "told"),
    [
        (
            [np.zeros((4, 4, 3))],
            {},
            r"Image 0 must be an array \[H, W, 3\] of uint8, RGB, but is \[4, 4, 3\] of float64",
        ),
        ([np.zeros((4, 4), np.uint8)], {}, r"but is \[4, 4\] of uint8"),
        ([torch.zeros(4, 4, 3, dtype=torch.uint8)], {}, r"Image 0 must be a tensor \[3, H, W\]"),
        ([np.zeros((0, 4, 3), np.uint8)], {}, "must have pixels"),
        ([Image.new("I;16", (4, 4))], {}, "has I;16"),
        ([3], {}, "a tensor, but is int"),
        (np.zeros((4, 4, 3), np.uint8), {}, "must be a list of images, but is one ndarray"),
        ([], {"threshold": 2}, "`threshold` must be in"),
        ([], {"max_detections": 0}, "`max_detections` must be at least 1"),
        ([], {"image_size": None}, "`image_size` must be given"),
    ],
)
def test_predict__names_what_is_wrong(images: Any, settings: dict[str, Any], told: str, finished: RunDirectory) -> None:
    model = vp.load_run(finished.root).model
    with pytest.raises(VispeftError, match=told):
        vp.predict(model, images, **{"image_size": 64, **settings})


def test_predict__refuses_other_models() -> None:
    with pytest.raises(VispeftError, match=r"must be a segmentation model of vispeft or a run .* but is Linear"):
        vp.predict(torch.nn.Linear(1, 1), [])  # type: ignore[arg-type]
