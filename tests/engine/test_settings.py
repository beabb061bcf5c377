from __future__ import annotations

import pytest
import torch
from torch import nn

from vispeft.config import parse_config
from vispeft.engine.settings import fabric_of, naming_training_keys, optimizer_of, schedule_of
from vispeft.errors import ConfigError, TrainingError
from vispeft.training.guards import BatchLosses, check_finite, check_gradients


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_fabric_of__names_configuration_keys() -> None:
    for words, message in (
        (["train.device=cuda"], r"^`train\.device=cuda` was requested"),
        (["train.device=cpu", "train.precision=fp16"], r"^`train\.precision=fp16` needs a CUDA GPU"),
    ):
        with pytest.raises(TrainingError, match=message):
            fabric_of(parse_config({}, words).train)


def test_schedule_of__names_the_section() -> None:
    train = parse_config({}, ["train.steps=10", "train.warmup=11"]).train
    with pytest.raises(
        ConfigError, match=r"^`train`: `warmup` must be between 0 and the number of steps, 10, but is 1"
    ):
        schedule_of(train)


def test_optimizer_of__has_the_rates_and_the_start_of_each_region() -> None:
    regions = {"**": {"start": 0.5}, "1": {"lr_scale": 10.0}}
    config = parse_config({"train": {"lr": 1e-3, "weight_decay": 0.0, "regions": regions}}).train
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    groups = {group["name"]: group for group in optimizer_of(config, model).param_groups}
    assert {name: (group["lr"], group["start"]) for name, group in groups.items()} == {
        "full in **": (1e-3, 0.5),
        "full in 1": (1e-2, 0.0),
    }


def test_optimizer_of__names_the_plan() -> None:
    with pytest.raises(ConfigError, match=r"^`peft\.deltas`, `peft\.train`: The model must have trainable parameters"):
        optimizer_of(parse_config({}).train, nn.Linear(2, 2).requires_grad_(False))


def test_naming_training_keys__adds_the_keys_of_a_remedy() -> None:
    with (
        pytest.raises(TrainingError, match=r"step 3.* The keys are `train\.lr` and `train\.precision`\.$"),
        naming_training_keys(),
    ):
        check_finite([BatchLosses(("a.jpg",), {"loss": float("nan")})], 1.0, step=3, lr=0.1, may_skip=False)
    with (
        pytest.raises(TrainingError, match=r"`bias`.* The keys are `peft\.deltas` and `peft\.train`\.$"),
        naming_training_keys(),
    ):
        check_gradients(nn.Linear(1, 1))
