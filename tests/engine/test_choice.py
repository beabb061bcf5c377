"""Runs with weights that the first training images choose: chosen once, resumed and loaded without data."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vispeft import peft
from vispeft.config import parse_config
from vispeft.engine import RunDirectory, estimate, load_run, train_run
from vispeft.engine import choice as choice_module
from vispeft.training.callbacks.base import Callback

SPARSE = {"method": "sparse", "budget": 0.02, "rule": "fisher", "images": 3}
SITES = "@encoder.qkv | backbone.body.model.blocks.*.mlp.fc1.weight"


def configured(tiny: dict[str, Any], *words: str, **options: Any) -> Any:
    changed = {**tiny, "peft": {"deltas": {SITES: {**SPARSE, **options}}, "train": ["@heads"]}}
    return parse_config(changed, list(words))


def stop_at_2(step: int, _: int) -> None:
    if step == 2:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("options", [{}, {"budget": 0.05, "rank": 1}], ids=["entries", "products"])
def test_train_run__chooses_weights_once_and_resumes_with_them(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    config = configured(tiny, "train.eval_every=4", **options)
    whole, resumed = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "resumed")
    train_run(config, whole)
    assert train_run(config, resumed, callbacks=[Callback(on_step=stop_at_2)]).step == 2
    monkeypatch.delattr(choice_module, "_choose_by_data")
    train_run(config, resumed, resume=True)
    assert resumed.adapter.read_bytes() == whole.adapter.read_bytes()
    assert resumed.predictions.read_bytes() == whole.predictions.read_bytes()
    # a finished run needs no data either
    model = load_run(whole.root).model
    assert not peft.methods_to_choose(model)
    assert any(
        values.any()
        for name, values in load_file(whole.adapter).items()
        if name.endswith(("update.values", "update.b"))
    )


def test_train_run__chooses_by_the_images_that_the_method_names(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    original = choice_module._losses

    def recorded(config: Any, device: Any, images: Any, model: Any) -> Any:
        seen.append([image.file_name for image in images.images])
        return original(config, device, images, model)

    monkeypatch.setattr(choice_module, "_losses", recorded)
    one, other = RunDirectory(tmp_path / "one"), RunDirectory(tmp_path / "other")
    train_run(configured(tiny, "train.steps=1"), one)
    train_run(configured(tiny, "train.steps=1", rule="gradient", images=100), other)
    assert [len(names) for names in seen] == [3, 6]
    assert seen[1][:3] == seen[0]
    first, second = load_file(one.adapter), load_file(other.adapter)
    names = [name for name in first if name.endswith("indices")]
    assert names
    assert not all(first[name].equal(second[name]) for name in names)


def test_train_run__draws_the_same_batches_with_and_without_a_choice(tiny: dict[str, Any], tmp_path: Path) -> None:
    """The choice leaves the random generators as they were: one by magnitude and one by data train on equal batches."""
    lines = []
    for rule in ("magnitude", "fisher"):
        directory = RunDirectory(tmp_path / rule)
        train_run(configured(tiny, "train.steps=1", "train.log_every=1", rule=rule), directory)
        lines.append(directory.metrics.read_text().splitlines()[0])
    # the first loss is that of the pretrained model in both
    assert lines[0].split('"loss_')[1] == lines[1].split('"loss_')[1]


def test_estimate__counts_the_budget(tiny: dict[str, Any]) -> None:
    found = estimate(configured(tiny))
    width, depth = 48, 3
    weights = depth * (3 * width * width + 4 * width * width)
    assert found.trainable_by_method["sparse"] == round(0.02 * weights)
    assert found.forward_flops > estimate(configured(tiny, "peft.deltas={}")).forward_flops
    assert torch.is_grad_enabled()
