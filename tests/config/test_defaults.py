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
    resolved = resolve(parse_config({"train": train}), num_images, 640).train
    assert (resolved.steps, resolved.epochs) == (steps, None)


def test_resolve__fills_every_schedule_key_and_keeps_what_is_given() -> None:
    resolved = resolve(parse_config({"train": {"steps": 200, "eval_every": 7, "workers": 0}}), 10, 640).train
    assert (resolved.warmup, resolved.eval_every, resolved.log_every, resolved.workers) == (10, 7, 2, 0)


def test_resolve__keeps_the_cores_of_a_small_cpu_for_training(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, on_cpu, workers in ((2, True, 0), (2, False, 1), (16, True, 2), (64, False, 8)):
        monkeypatch.setattr("vispeft.config.defaults._cores", lambda cores=cores: cores)
        assert resolve(parse_config({}), 10, 640, on_cpu=on_cpu).train.workers == workers


def test_resolve__is_idempotent() -> None:
    once = resolve(parse_config({}), 50, 512)
    assert once.model.image_size == 512
    assert resolve(once, 50, 512) == once


@pytest.mark.parametrize(("image_size", "points"), [(64, 1024), (256, 1024), (512, 3136), (1024, 12544), (2048, 12544)])
def test_resolve__points_follow_the_area(image_size: int, points: int) -> None:
    assert resolve(parse_config({}), 50, image_size).loss.num_points == points
    assert resolve(parse_config({"loss": {"num_points": 5}}), 50, image_size).loss.num_points == 5
