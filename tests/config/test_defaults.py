"""Defaults scaled to the data."""

from typing import Any

import pytest

from vispeft.config import parse_config, resolve


@pytest.mark.parametrize(
    ("train", "num_images", "steps"),
    [
        ({"steps": 7}, 1000, 7),
        ({"epochs": 2}, 10, 5),
        ({"epochs": 0.1}, 10, 1),
        ({"epochs": 2, "accumulate": 2}, 10, 3),
        ({}, 1, 300),
        ({}, 400, 3000),
        ({}, 118_000, 90_000),
    ],
)
def test_resolve__steps(train: dict[str, Any], num_images: int, steps: int) -> None:
    resolved = resolve(parse_config({"train": train}), num_images).train
    assert (resolved.steps, resolved.epochs) == (steps, None)


def test_resolve__fills_every_schedule_key_and_keeps_what_is_given() -> None:
    resolved = resolve(parse_config({"train": {"steps": 200, "eval_every": 7, "workers": 0}}), 10).train
    assert (resolved.warmup, resolved.eval_every, resolved.log_every, resolved.workers) == (10, 7, 2, 0)


def test_resolve__is_idempotent() -> None:
    once = resolve(parse_config({}), 50)
    assert resolve(once, 50) == once
