"""Settings that a configuration cannot have are named by their keys."""

from __future__ import annotations

import pytest
from torch import nn

from vispeft.config import parse_config
from vispeft.engine.settings import optimizer_of, schedule_of
from vispeft.errors import ConfigError


def test_schedule_of__names_the_key_of_a_warm_up_that_is_longer_than_the_run() -> None:
    config = parse_config({"train": {"steps": 10, "warmup": 20}}).train
    with pytest.raises(ConfigError, match=r"`train\.warmup`: `warmup` must be between 0 and .* 10, but is 20"):
        schedule_of(config)


def test_optimizer_of__names_the_keys_that_make_something_trainable(monkeypatch) -> None:
    monkeypatch.setattr("vispeft.engine.settings.roles_for", lambda model: {})
    with pytest.raises(ConfigError, match=r"`peft\.deltas` and `peft\.train`: Nothing is trainable"):
        optimizer_of(parse_config({}).train, nn.Linear(2, 2).requires_grad_(False))
