"""Resumed runs: with more steps, after changes of their data, with other processes, over another base."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vispeft.config import parse_config
from vispeft.engine import RunDirectory, train_run
from vispeft.engine.build import complete
from vispeft.engine.resume import as_begun
from vispeft.errors import CheckpointError, ConfigError, DataError
from vispeft.models import build_model
from vispeft.training.checkpoint import load_checkpoint


def _train(tiny: dict[str, Any], root: Path, *words: str, resume: bool = False) -> Any:
    return train_run(parse_config(tiny, list(words)), RunDirectory(root), resume=resume)


def _copied(finished: RunDirectory, to: Path) -> RunDirectory:
    shutil.copytree(finished.root, to)
    return RunDirectory(to)


def _evaluations(root: Path) -> list[int]:
    lines = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if line["split"] == "val"]


def _state(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("eval_every", [1, 3], ids=lambda n: f"evaluated_every_{n}")
def test_train_run__extended_equals_uninterrupted(tiny: dict[str, Any], tmp_path: Path, eval_every: int) -> None:
    words = ["train.schedule=constant", "train.warmup=0", f"train.eval_every={eval_every}"]
    whole = _train(tiny, tmp_path / "whole", *words, "train.steps=4")
    _train(tiny, tmp_path / "parts", *words, "train.steps=2")
    extended = _train(tiny, tmp_path / "parts", *words, "train.steps=4", resume=True)
    first, second = (load_checkpoint(RunDirectory(tmp_path / name).checkpoint) for name in ("whole", "parts"))
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)
    assert extended.summary["steps"] == whole.summary["steps"] == 4
    # the earlier end counts as one evaluation
    assert _evaluations(tmp_path / "parts") == sorted({2, *_evaluations(tmp_path / "whole")})
    assert extended.summary["segm"]["AP"] == pytest.approx(second.counters.best_metrics.get("segm/AP"), abs=1e-12)


def test_train_run__extended_keeps_a_better_earlier_end(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train.eval_every=9"]
    _train(tiny, tmp_path / "run", *words, "train.steps=2")
    before = (tmp_path / "run" / "adapter.safetensors").read_bytes()
    scores = iter([0.5, 0.25])
    monkeypatch.setattr("vispeft.engine.train._evaluate", lambda run, scored: {"segm/AP": next(scores)})
    result = _train(tiny, tmp_path / "run", *words, "train.steps=4", resume=True)
    assert result.summary["best_step"] == 2
    tensors = load_file(tmp_path / "run" / "adapter.safetensors")
    kept = tmp_path / "kept.safetensors"
    kept.write_bytes(before)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in load_file(kept).items())
    # the line of the last evaluation stays its own, though the run ends with metrics of the best weights
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["step"], last["segm/AP"]) == (4, 0.25)


def test_train_run__repeats_an_evaluation_that_was_killed(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train.steps=2", "train.eval_every=2"]

    def die(run: object, result: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vispeft.engine.train._finish", die)
    with pytest.raises(KeyboardInterrupt):
        _train(tiny, tmp_path / "run", *words)
    monkeypatch.undo()
    result = _train(tiny, tmp_path / "run", *words, resume=True)
    assert (result.was_finished, result.summary["steps"]) == (False, 2)
    assert _evaluations(tmp_path / "run") == [2]


def test_train_run__does_not_change_a_finished_run(finished: RunDirectory, tmp_path: Path) -> None:
    directory = _copied(finished, tmp_path / "run")
    before = _state(directory.root)
    result = train_run(directory.load_config(), directory, resume=True)
    assert (result.was_finished, result.step) == (True, 4)
    assert result.summary == json.loads(finished.summary.read_text())
    assert _state(directory.root) == before
    directory.report.unlink()
    assert not train_run(directory.load_config(), directory, resume=True).was_finished
    assert directory.report.is_file()


@pytest.mark.parametrize("word", ["train.steps=3", "train.epochs=1"])
def test_train_run__refuses_fewer_steps_than_were_done(
    tiny: dict[str, Any], finished: RunDirectory, tmp_path: Path, word: str
) -> None:
    directory = _copied(finished, tmp_path / "run")
    config = parse_config({**tiny, "train": {**tiny["train"], "steps": None}}, [word])
    with pytest.raises(ConfigError, match=r"`train\.steps` must be at least the 4 steps .* but is 3"):
        train_run(config, directory, resume=True)


def test_as_begun__keeps_the_default_warm_up_of_fewer_steps(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.begin(complete(parse_config({"train": {"steps": 20}}), 1), {}, {})
    longer = complete(as_begun(parse_config({"train": {"steps": 400}}), directory), 1)
    assert longer.train.warmup == 1
    directory.check_continues(longer)
    other = complete(as_begun(parse_config({"train": {"steps": 400, "warmup": 2}}), directory), 1)
    with pytest.raises(ConfigError, match=r"`train\.warmup` was 1 and is 2"):
        directory.check_continues(other)


@pytest.mark.parametrize("split", ["train", "val"])
def test_train_run__refuses_other_data_and_all_other_changes_in_one_message(
    finished: RunDirectory, tmp_path: Path, split: str
) -> None:
    directory = _copied(finished, tmp_path / "run")
    config = directory.load_config()
    document = json.loads(getattr(config.data, split).annotations.read_text())
    kept = document["images"][0]["id"]
    document["images"] = document["images"][:1]
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] == kept]
    (tmp_path / "fewer.json").write_text(json.dumps(document))
    words = [f"data.{split}.annotations={tmp_path / 'fewer.json'}", "train.batch_size=1", "train.devices=2"]
    with pytest.raises(ConfigError) as error:
        train_run(directory.load_config(words), directory, resume=True)
    count = {"train": 6, "val": 3}[split]
    assert f"`data.{split}.annotations` ({tmp_path / 'fewer.json'}) holds other data: images {count} -> 1" in str(
        error.value
    )
    assert "`train.batch_size` was 2 and is 1" in str(error.value)
    assert "`train.devices` (processes) was 1 and is 2" in str(error.value)


def test_train_run__resumes_with_data_that_was_moved(finished: RunDirectory, tmp_path: Path) -> None:
    directory = _copied(finished, tmp_path / "run")
    document = json.loads(directory.load_config().data.train.annotations.read_text())
    (tmp_path / "moved.json").write_text(json.dumps(document, indent=2))
    config = directory.load_config([f"data.train.annotations={tmp_path / 'moved.json'}", "train.steps=5"])
    assert train_run(config, directory, resume=True).step == 5


def test_train_run__refuses_a_base_with_other_weights(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = parse_config(tiny)
    arguments = {"backbone": config.model.backbone, "size": "tiny", "backbone_options": config.model.backbone_options}
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = build_model("mask_dino", num_classes=3, image_size=64, **arguments, **config.model.options)
        save_file(model.state_dict(), tmp_path / f"{seed}.safetensors")
    weights = tmp_path / "base.safetensors"
    shutil.copy(tmp_path / "0.safetensors", weights)
    words = [f"model.weights={weights}", "train.eval_every=2"]
    _train(tiny, tmp_path / "run", *words, "train.steps=2")
    shutil.copy(tmp_path / "1.safetensors", weights)
    with pytest.raises(CheckpointError, match="Build the same model with the same weights"):
        _train(tiny, tmp_path / "run", *words, "train.steps=4", resume=True)


@pytest.mark.parametrize("steps", [4, 6])
def test_train_run__refuses_to_resume_without_the_best_weights(
    finished: RunDirectory, tmp_path: Path, steps: int
) -> None:
    directory = _copied(finished, tmp_path / "run")
    directory.adapter.unlink()
    with pytest.raises(CheckpointError, match=r"adapter\.safetensors` is not there, but holds the run's best weights"):
        train_run(directory.load_config([f"train.steps={steps}"]), directory, resume=True)


def test_train_run__names_a_summary_that_is_no_object(finished: RunDirectory, tmp_path: Path) -> None:
    directory = _copied(finished, tmp_path / "run")
    directory.summary.write_text("[]")
    with pytest.raises(DataError, match=r"summary\.json` must hold a JSON object"):
        train_run(directory.load_config(), directory, resume=True)
