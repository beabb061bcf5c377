"""SAM 3 is trained, resumed, evaluated, used and merged from a configuration, with the class names as prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vispeft.config import parse_config
from vispeft.engine import RunDirectory, evaluate_run, load_run, predict_images, train_run, write_merged
from vispeft.engine.build import build_base
from vispeft.engine.estimation.estimate import estimate
from vispeft.errors import CheckpointError, ConfigError, PlanError
from vispeft.io.metrics_file import read_metrics
from vispeft.models import Sam3
from vispeft.training.callbacks.base import Callback

Directory = Callable[[str], Path]


@pytest.fixture
def sam3(tiny: dict[str, Any], transformers_directory: Directory) -> dict[str, Any]:
    deltas = {"@encoder.q | @encoder.v | @neck.q_proj | @decoder.q_proj": {"method": "lora", "rank": 2}}
    model = {"name": "sam3", "weights": str(transformers_directory("sam3"))}
    return {**tiny, "model": model, "peft": {"deltas": deltas, "train": ["@heads"]}}


def prompts_of(model: Any) -> list[str]:
    """Return the texts of a model's prompts, from their tokens."""
    assert isinstance(model, Sam3)
    return [str(text) for text in model.writer.tokenizer.batch_decode(model.prompt_ids, skip_special_tokens=True)]


def test_train_run__trains_evaluates_predicts_and_merges(
    sam3: dict[str, Any], shapes_set: Path, tmp_path: Path
) -> None:
    directory = RunDirectory(tmp_path / "run")
    config = parse_config(sam3, ["train.steps=20", "train.log_every=1", "train.lr=0.01"])
    result = train_run(config, directory)
    assert result.summary is not None
    lines = [line for line in read_metrics(directory.metrics) if line["split"] == "train"]
    losses = [line["loss"] for line in lines]
    assert sum(losses[-5:]) < 0.97 * sum(losses[:5])
    assert {"loss_presence", "loss_giou", "loss_dice"} <= lines[0].keys()
    assert result.summary["model"].startswith("sam3 over sam3 (")
    assert result.summary["segm"] == evaluate_run(directory.root).segm
    run = load_run(directory.root)
    assert prompts_of(run.model) == list(run.class_names)
    image = next((shapes_set / "images").iterdir())
    assert predict_images(run, [image], tmp_path / "out", device="cpu", threshold=0.0).num_images == 1
    with torch.no_grad():
        expected = run.model(torch.ones(1, 3, 64, 64))
    with pytest.raises(CheckpointError, match=r"`--out` must be a directory for `model\.name: sam3`"):
        write_merged(run, tmp_path / "merged.safetensors")
    write_merged(run, tmp_path / "merged")
    opened = parse_config({"model": {"name": "sam3", "weights": str(tmp_path / "merged")}})
    base = build_base(opened, len(run.class_names), class_names=run.class_names).eval()
    with torch.no_grad():
        given = base(torch.ones(1, 3, 64, 64))
    torch.testing.assert_close(given.final.class_logits, expected.final.class_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(given.mask_features, expected.mask_features, rtol=1e-4, atol=1e-5)


def test_train_run__resumes_adapters_to_the_bit(sam3: dict[str, Any], tmp_path: Path) -> None:
    deltas = {"@attention_outputs": {"method": "adapter", "width": 4}}
    config = parse_config({**sam3, "peft": {"deltas": deltas, "train": ["@heads"]}})
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
    with pytest.raises(PlanError, match="merge"):
        write_merged(load_run(whole.root), tmp_path / "merged")


def test_train_run__in_mixed_precision(sam3: dict[str, Any], tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    words = ["train.precision=bf16", "train.steps=3", "train.log_every=1"]
    train_run(parse_config(sam3, words), directory)
    first, *_ = (line["loss"] for line in read_metrics(directory.metrics) if line["split"] == "train")
    whole = RunDirectory(tmp_path / "whole")
    train_run(parse_config(sam3, [*words, "train.precision=fp32"]), whole)
    expected, *_ = (line["loss"] for line in read_metrics(whole.metrics) if line["split"] == "train")
    assert first == pytest.approx(expected, rel=0.05)
    assert first != expected


def test_train_run__keeps_the_features_of_a_frozen_encoder(sam3: dict[str, Any], tmp_path: Path) -> None:
    deltas = {"@neck.q_proj | @decoder.q_proj": {"method": "lora", "rank": 2}}
    plan = {"deltas": deltas, "train": ["@heads"]}
    directories = []
    for kept in ("memory", "off"):
        directory = RunDirectory(tmp_path / kept)
        words = [f"train.feature_cache={kept}", "data.augment.variants=2", "train.steps=7"]
        result = train_run(parse_config({**sam3, "peft": plan}, words), directory)
        assert result.summary is not None
        assert (result.summary.get("feature_cache") is not None) == (kept == "memory")
        directories.append(directory)
    first, second = (load_file(directory.adapter) for directory in directories)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_build_base__prompts_are_the_texts_of_the_options(sam3: dict[str, Any]) -> None:
    names = ["c1", "fig"]
    config = parse_config(sam3, ["model.options.prompts={c1: hazel nut}"])
    assert prompts_of(build_base(config, 2, class_names=names)) == ["hazel nut", "fig"]
    with pytest.raises(ConfigError, match=r"`model\.options\.prompts` names no class of the data: 'c1'"):
        build_base(config, 2, class_names=["a", "b"])


def test_build_base__cannot_keep_classes(sam3: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"`model\.keep_classes` must be false"):
        build_base(parse_config(sam3, ["model.keep_classes=true"]), 3, class_names=["a", "b", "c"])


def test_estimate__names_what_cannot_be_simulated(sam3: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="cannot be simulated: its code decides by the values"):
        estimate(parse_config(sam3))
