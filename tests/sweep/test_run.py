"""Whole sweeps of tiny runs."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from vispeft.config import load_config
from vispeft.engine import RunDirectory, train_run
from vispeft.errors import TrainingError
from vispeft.sweep import SweepDirectory, SweepResult, load_sweep, run_sweep
from vispeft.training.callbacks.base import Callback

VARIANTS = {"both": {}, "class": {"peft.train": ["@class_head"]}}


def swept(folder: Any, section: dict[str, Any], *overrides: str, out: str = "out", **options: Any) -> SweepResult:
    lines: list[str] = []
    sweep = load_sweep(folder.write(section), overrides)
    directory = SweepDirectory(folder.root / out)
    result = run_sweep(sweep, directory, lines.append, **options)
    folder.lines = lines
    return result


def test_run_sweep__a_grid(folder: Any, tiny: dict[str, Any], tmp_path: Path) -> None:
    result = swept(folder, {"variants": VARIANTS, "space": {"train.lr": [1e-3, 1e-2]}, "seeds": [7]})
    root = result.directory.root
    content = json.loads((root / "results.json").read_text())
    assert [trial["trial"] for trial in content["trials"]] == [1, 2, 3, 4]
    assert {trial["state"] for trial in content["trials"]} == {"complete"}
    last = content["trials"][-1]
    assert (last["variant"], last["parameters"], last["seed"]) == ("class", {"train.lr": 1e-2}, 7)
    summary = json.loads((root / "trials" / "0004" / "summary.json").read_text())
    assert last["metrics"]["segm/AP"] == summary["segm"]["AP"]
    assert last["metrics"]["trainable_params"] == summary["trainable_params"]
    rows = list(csv.DictReader((root / "results.csv").open()))
    assert [(row["variant"], row["train.lr"], row["state"]) for row in rows[:2]] == [
        ("both", "0.001", "complete"),
        ("both", "0.01", "complete"),
    ]
    # a trial gives the same files as `vispeft train`
    alone = RunDirectory(tmp_path / "alone")
    train_run(load_config(root / "trials" / "0004" / "config.yaml"), alone)
    assert alone.predictions.read_bytes() == (root / "trials" / "0004" / "predictions_val.json").read_bytes()
    # one line for each trial, between the first line and the comparison
    assert [line.split("]")[0] for line in folder.lines[1:-1]] == ["[1/4", "[2/4", "[3/4", "[4/4"]
    assert "class, train.lr=0.01, seed 7: AP 0.0" in folder.lines[-2]
    assert folder.lines[-1].startswith("Comparing 4 configurations")
    assert load_config(root / "best.yaml").train.seed == 7


def test_run_sweep__reads_the_data_once(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from vispeft.sweep import trial

    calls = []
    original = trial.read_sets
    monkeypatch.setattr(trial, "read_sets", lambda config: calls.append(config) or original(config))
    swept(folder, {"space": {"train.lr": [1e-3, 1e-2]}}, "train.steps=1")
    assert len(calls) == 1


def test_run_sweep__a_failed_trial_is_recorded_and_can_be_tried_again(folder: Any) -> None:
    section = {"variants": {"bad": {"peft.train": ["decoder.layr"]}, "good": {}}}
    result = swept(folder, section, "train.steps=1")
    failed, good = result.results.rows
    assert (failed.state, good.state) == ("failed", "complete")
    assert "decoder.layr" in failed.message
    assert "PlanError" in result.directory.trial_log(0).read_text()
    assert result.results.best is not None
    assert result.results.best.labels == {"variant": "good"}
    assert swept(folder, section, "train.steps=1").results.count("failed") == 1
    assert "all 2 trials are done" in folder.lines[0]
    swept(folder, section, "train.steps=1", retries_failed=True)
    assert [line for line in folder.lines if line.startswith("[1/2]")]
    assert not [line for line in folder.lines if line.startswith("[2/2]")]


def test_run_sweep__stops_where_the_first_three_fail(folder: Any) -> None:
    section = {"variants": {f"bad{i}": {"peft.train": [f"layr{i}"]} for i in range(4)}}
    with pytest.raises(TrainingError, match=r"first 3 trials all failed\. The last error: .*layr2"):
        swept(folder, section)


def test_run_sweep__several_objectives(folder: Any) -> None:
    section = {"variants": VARIANTS, "objectives": ["segm/AP", "trainable_params"]}
    result = swept(folder, section, "train.steps=1")
    params = [row.metrics["trainable_params"] for row in result.results.rows]
    assert params[1] < params[0]
    assert {"variant": "class"} in [one.labels for one in result.results.front]
    content = json.loads(result.directory.results_json.read_text())
    assert content["objectives"] == {"segm/AP": "maximize", "trainable_params": "minimize"}


@pytest.mark.slow
def test_run_sweep__prunes_by_the_ap_on_the_way(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from vispeft.engine import train

    def falling(run: Any, scored: Any) -> dict[str, float]:
        return {"segm/AP": 0.5 - 0.05 * run.config.train.seed, "segm/AP50": 0.6}

    monkeypatch.setattr(train, "_evaluate", falling)
    section = {"space": {"train.lr": [1e-3]}, "seeds": list(range(7)), "pruner": "median"}
    result = swept(folder, section, "train.steps=2", "train.eval_every=1")
    states = [row.state for row in result.results.rows]
    assert states == ["complete"] * 5 + ["pruned"] * 2
    pruned = result.results.rows[-1]
    assert pruned.metrics["segm/AP"] == pytest.approx(0.2)
    assert "pruned" not in pruned.message
    assert "stopped early by the median pruner" in pruned.message
    assert not (result.directory.trial(6).root / "summary.json").exists()
    assert dataclasses.asdict(pruned)["index"] == 6


def test_run_sweep__ctrl_c_leaves_a_trial_that_can_be_resumed(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from vispeft.sweep import trial

    original = trial.train_run
    stops = [True]

    def stopped_once(config: Any, directory: Any, *, callbacks: Any, **options: Any) -> Any:
        def stop(step: int, metrics: Any) -> None:
            if stops and directory.root.name == "0002":
                stops.clear()
                raise KeyboardInterrupt

        return original(config, directory, callbacks=[*callbacks, Callback(on_evaluation=stop)], **options)

    section = {"space": {"train.lr": [1e-3, 1e-2]}}
    undisturbed = swept(folder, section, out="undisturbed")
    monkeypatch.setattr(trial, "train_run", stopped_once)
    first = swept(folder, section)
    assert first.is_interrupted
    assert [row.state for row in first.results.rows] == ["complete", "running"]
    result = swept(folder, section)
    assert "resumed, 1 of 2" in folder.lines[0]
    assert not result.is_interrupted
    for index in range(2):
        found, expected = result.directory.trial(index), undisturbed.directory.trial(index)
        assert found.adapter.read_bytes() == expected.adapter.read_bytes()
        assert found.predictions.read_bytes() == expected.predictions.read_bytes()


def test_run_sweep__tpe_with_conditions(folder: Any) -> None:
    section = {
        "variants": VARIANTS,
        "space": {"train.lr": {"low": 1e-4, "high": 1e-2, "log": True, "when": {"variant": "class"}}},
        "sampler": "tpe",
        "trials": 3,
    }
    rows = swept(folder, section, "train.steps=1").results.rows
    assert all(("train.lr" in row.run.labels) == (row.run.labels["variant"] == "class") for row in rows)
    resolved = [yaml.safe_load((Path(row.directory) / "config.yaml").read_text()) for row in rows]
    assert [one["train"]["lr"] for one in resolved] == [row.run.labels.get("train.lr", 1e-3) for row in rows]


def test_run_sweep__a_storage_that_fails_costs_no_trial(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.exc import OperationalError

    from vispeft.sweep.study import SharedStudy

    def away(shared: SharedStudy, claim: Any) -> None:
        raise OperationalError("SELECT 1", {}, Exception("server closed the connection"))

    section = {"space": {"train.lr": [1e-3, 1e-2]}}
    with monkeypatch.context() as patch:
        patch.setattr(SharedStudy, "check_own", away)
        with pytest.raises(
            TrainingError, match=r"storage failed: .*server closed the connection.* same command resumes"
        ):
            swept(folder, section)
    assert [row.state for row in swept(folder, section).results.rows] == ["complete"] * 2


def test_run_sweep__computes_frozen_features_once(folder: Any) -> None:
    overrides = ["train.feature_cache=memory", "data.augment.variants=1", "peft.deltas={}", "train.steps=1"]
    result = swept(folder, {"space": {"train.lr": [1e-3, 1e-2]}}, *overrides)
    found = [
        json.loads((result.directory.root / "trials" / number / "summary.json").read_text())["feature_cache"]
        for number in ("0001", "0002")
    ]
    # one step of two images, and three images to score on
    assert [(one["computed"], one["reused"]) for one in found] == [(5, 0), (0, 5)]
