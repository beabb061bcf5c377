"""EoMT is trained, evaluated, resumed and used from a configuration like any family."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from vispeft.config import parse_config
from vispeft.engine import RunDirectory, evaluate_run, load_run, predict_images, train_run
from vispeft.engine.estimation.estimate import estimate
from vispeft.errors import PlanError
from vispeft.io.metrics_file import read_metrics
from vispeft.models import EoMT
from vispeft.training.callbacks.base import Callback


@pytest.fixture
def eomt(tiny: dict[str, Any]) -> dict[str, Any]:
    plan = {"deltas": {"@encoder.qkv": {"method": "lora", "rank": 2, "parts": "qv"}}, "train": ["@new"]}
    return {**tiny, "model": {**tiny["model"], "name": "eomt", "options": {"num_queries": 12}}, "peft": plan}


def test_train_run__trains_evaluates_and_predicts_eomt(eomt: dict[str, Any], shapes_set: Path, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    config = parse_config(eomt, ["train.steps=20", "train.log_every=1", "train.lr=0.002"])
    result = train_run(config, directory)
    assert result.summary is not None
    losses = [line["loss"] for line in read_metrics(directory.metrics) if line["split"] == "train"]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert result.summary["model"] == "eomt over vit_tiny_patch16_224 (none)"
    assert result.summary["methods"] == ["lora", "full"]
    assert result.summary["segm"] == evaluate_run(directory.root).segm
    image = next((shapes_set / "images").iterdir())
    report = predict_images(load_run(directory.root), [image], tmp_path / "out", device="cpu", threshold=0.0)
    assert report.num_instances > 0


def test_train_run__resumes_eomt_to_the_bit(eomt: dict[str, Any], tmp_path: Path) -> None:
    # five steps in four parts: masks are annealed before and after the stop
    config = parse_config(eomt, ["train.steps=5", "train.eval_every=2"])
    whole, halved = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "halved")
    train_run(config, whole)

    class StopError(Exception):
        pass

    def stop(step: int, metrics: Mapping[str, float]) -> None:
        raise StopError

    with pytest.raises(StopError):
        train_run(config, halved, callbacks=[Callback(on_evaluation=stop)])
    train_run(config, halved, resume=True)
    assert halved.adapter.read_bytes() == whole.adapter.read_bytes()


def test_train_run__tells_the_model_its_progress(
    eomt: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(EoMT, "on_progress", lambda _model, step, num_steps: told.append((step, num_steps)))
    train_run(parse_config(eomt, ["train.steps=2"]), RunDirectory(tmp_path / "run"))
    assert told == [(0, 2), (1, 2), (2, 2)]


def test_estimate__counts_eomt(eomt: dict[str, Any]) -> None:
    counted = estimate(parse_config(eomt))
    # 3 blocks, q and v of width 48, rank 2
    assert counted.trainable_by_method["lora"] == 3 * 2 * 2 * (48 + 48)
    assert counted.forward_flops > 0


@pytest.mark.parametrize(
    ("deep", "message"),
    [
        (False, "added 2 prompts to 17 tokens, but its last one gets 31"),
        (True, "not with the inputs that these deltas"),
    ],
    ids=["shallow", "deep"],
)
def test_train_run__refuses_prompts_in_the_blocks_of_the_queries(
    eomt: dict[str, Any], tmp_path: Path, deep: bool, message: str
) -> None:
    vpt = {"method": "vpt", "tokens": 2, "deep": deep}
    config = parse_config({**eomt, "peft": {"deltas": {"@encoder.blocks": vpt}, "train": ["@new"]}})
    with pytest.raises(PlanError, match=message):
        train_run(config, RunDirectory(tmp_path / "run"))
