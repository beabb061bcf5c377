from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from vispeft.errors import TrainingError
from vispeft.training.arguments import LoopSettings
from vispeft.training.callbacks.base import Callback
from vispeft.training.checkpoint import load_checkpoint
from vispeft.training.logs import read_metrics


def test_on_step__runs_before_gradients_are_cleared_and_before_the_average_is_updated(
    make_run: Callable[..., Any],
) -> None:
    run = make_run(settings=LoopSettings(steps=3, ema_decay=0.5), noise=0.0)
    calls: list[tuple[int, int, bool]] = []

    def on_step(step: int, num_steps: int) -> None:
        bias = run.model.class_embed.bias
        calls.append((step, num_steps, bias.grad is not None))
        with torch.no_grad():
            bias.fill_(8.0)

    run.callbacks = [Callback(), Callback(on_step=on_step)]
    run.fit()
    assert calls == [(step, 3, True) for step in (1, 2, 3)]
    assert torch.equal(run.model.class_embed.bias, torch.full((2,), 8.0))
    ema = load_checkpoint(run.checkpoint_path).ema
    assert ema is not None
    assert bool((ema["class_embed.bias"] > 7).all())


def test_on_evaluation__runs_when_log_and_checkpoint_are_written_and_its_error_ends_the_run(
    make_run: Callable[..., Any],
) -> None:
    run = make_run()
    calls: list[tuple[int, bool, list[int]]] = []

    def on_evaluation(step: int, metrics: Mapping[str, float]) -> None:
        counters = load_checkpoint(run.checkpoint_path).counters
        lines = read_metrics(run.run_dir / "metrics.jsonl")
        calls.append((counters.step, counters.is_evaluation_due, [x["step"] for x in lines if x["split"] == "val"]))
        assert set(metrics) == {"segm/AP"}
        if step == 4:
            raise TrainingError("pruned")

    run.callbacks = [Callback(on_evaluation=on_evaluation)]
    with pytest.raises(TrainingError, match="pruned"):
        run.fit()
    assert calls == [(2, False, [2]), (4, False, [2, 4])]
    run.callbacks = []
    assert run.fit(resume=load_checkpoint(run.checkpoint_path)).steps == 6
    assert run.num_evaluations == 3
