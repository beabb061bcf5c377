"""EoMT trains, evaluates, predicts and resumes from a configuration like any other model."""

from pathlib import Path
from typing import Any

import pytest

from vispeft.config import parse_config
from vispeft.engine import RunDirectory, evaluate_run, load_run, predict_images, train_run
from vispeft.models import EoMT
from vispeft.training.callbacks.base import Callback


@pytest.fixture
def eomt(tiny: dict[str, Any]) -> dict[str, Any]:
    return {
        **tiny,
        "model": {
            "name": "eomt",
            "weights": "none",
            "backbone": "vit_tiny_patch16_224",
            "size": "tiny",
            "image_size": 64,
            "backbone_options": {"depth": 4, "embed_dim": 48},
            "options": {"num_queries": 12},
        },
        "peft": {
            "deltas": {"@encoder.qkv": {"method": "lora", "rank": 2}},
            "train": ["@heads", "@queries", "@upscale"],
        },
    }


def test_eomt__trains_evaluates_predicts_and_resumes(eomt: dict[str, Any], shapes_set: Path, tmp_path: Path) -> None:
    whole, halved = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "halved")
    config = parse_config(eomt)
    result = train_run(config, whole)
    assert result.summary is not None
    assert result.summary["methods"] == ["lora", "full"]
    assert result.summary["segm"] == evaluate_run(whole.root).segm

    class StopError(Exception):
        pass

    seen: list[tuple[float, ...]] = []

    def stop(step: int, metrics: object) -> None:
        raise StopError

    def watch(step: int, num_steps: int) -> None:
        seen.append(step / num_steps)

    with pytest.raises(StopError):
        train_run(config, halved, callbacks=[Callback(on_evaluation=stop)])
    train_run(config, halved, resume=True, callbacks=[Callback(on_step=watch)])
    assert seen == [0.75, 1.0]
    assert halved.adapter.read_bytes() == whole.adapter.read_bytes()

    model = load_run(whole.root).model
    assert isinstance(model, EoMT)
    image = next((shapes_set / "images").iterdir())
    report = predict_images(load_run(whole.root), [image], tmp_path / "out", device="cpu")
    assert report.num_images == 1
