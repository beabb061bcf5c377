"""Whole runs: files of the directory, correct metrics, exact resuming."""

import contextlib
import io
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors.torch import load_file

from vispeft.config import parse_config
from vispeft.engine import RunDirectory, evaluate_run, load_run, train_run
from vispeft.errors import ConfigError, PlanError

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def test_train_run__writes_the_contract(finished: RunDirectory) -> None:
    assert {path.name for path in finished.root.iterdir()} == {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "adapter.safetensors",
        "checkpoints",
        "annotations_val.json",
        "predictions_val.json",
        "summary.json",
        "report.html",
        "tensorboard",
    }
    summary = json.loads(finished.summary.read_text())
    assert {
        *("model", "methods", "trainable_params", "total_params", "trainable_percent", "adapter_bytes", "steps"),
        *("train_seconds", "peak_memory_bytes", "device", "segm", "bbox", "per_category"),
    } <= summary.keys()
    assert summary["methods"] == ["lora", "full"]
    assert summary["steps"] == 4
    assert summary["adapter_bytes"] == finished.adapter.stat().st_size
    assert tuple(summary["segm"]) == tuple(summary["bbox"]) == NAMES
    lines = [json.loads(line) for line in (finished.root / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "val"] == [2, 4]
    assert all("segm/AP" in line for line in lines if line["split"] == "val")


def test_train_run__summary_equals_pycocotools_on_the_files(finished: RunDirectory) -> None:
    summary = json.loads(finished.summary.read_text())
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(finished.annotations))
        for kind in ("segm", "bbox"):
            results = json.loads(finished.predictions.read_text())
            if kind == "segm":
                results = [{key: value for key, value in result.items() if key != "bbox"} for result in results]
            evaluator = COCOeval(truth, truth.loadRes(results), kind)
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
            assert list(summary[kind].values()) == evaluator.stats.tolist()


def test_train_run__resolved_configuration_reproduces_the_run(finished: RunDirectory, tmp_path: Path) -> None:
    again = RunDirectory(tmp_path / "again")
    train_run(finished.load_config(), again)
    first, second = load_file(finished.adapter), load_file(again.adapter)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert finished.predictions.read_bytes() == again.predictions.read_bytes()


def test_train_run__resumes_exactly(finished: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = RunDirectory(tmp_path / "stopped")
    config = finished.load_config()
    calls = []

    def stop_once(run: object, scored: object) -> dict[str, float]:
        calls.append(run)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGINT)
        return {"segm/AP": 0.0}

    monkeypatch.setattr("vispeft.engine.train._evaluate", stop_once)
    stopped = train_run(config, directory)
    assert (stopped.step, stopped.summary) == (2, None)
    monkeypatch.undo()
    assert train_run(config, directory, resume=True).step == 4
    first, second = load_file(finished.adapter), load_file(directory.adapter)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [*map(_training_values, _lines(directory))] == [*map(_training_values, _lines(finished))]


def test_train_run__refuses_to_resume_as_another_run(finished: RunDirectory) -> None:
    other = finished.load_config(["train.lr=0.5"])
    with pytest.raises(ConfigError, match=r"`train\.lr` was 0\.001 and is 0\.5"):
        train_run(other, finished, resume=True)


def test_train_run__makes_no_directory_for_a_wrong_configuration(tiny: dict[str, Any], tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"`data\.val\.images` must be set"):
        train_run(parse_config(tiny, ["data.val.images="]), directory)
    with pytest.raises(PlanError, match=r"decoder\.layr"):
        train_run(parse_config(tiny, ["peft.train=['decoder.layr']"]), directory)
    assert not directory.root.exists()


def test_evaluate_run__returns_the_metrics_of_the_summary(finished: RunDirectory) -> None:
    summary = json.loads(finished.summary.read_text())
    metrics = evaluate_run(finished.root).to_dict()
    assert metrics == {kind: summary[kind] for kind in ("segm", "bbox", "per_category")}


def test_load_run__has_classes_and_their_ids(finished: RunDirectory) -> None:
    loaded = load_run(finished.root)
    categories = json.loads(finished.annotations.read_text())["categories"]
    assert dict(zip(loaded.class_names, loaded.category_ids, strict=True)) == {c["name"]: c["id"] for c in categories}


def _lines(directory: RunDirectory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory.root / "metrics.jsonl").read_text().splitlines()]


def _training_values(line: dict[str, Any]) -> dict[str, Any]:
    """Return a line's values without metrics of the validation set, which one of the runs did not compute."""
    return {key: value for key, value in line.items() if "/" not in key}
