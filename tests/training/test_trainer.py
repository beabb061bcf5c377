from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vispeft.errors import CheckpointError
from vispeft.io.metrics_file import read_metrics
from vispeft.peft import Adapter, LoRA, Plan, inject, load_adapter, save_adapter
from vispeft.structures import Batch, Predictions, Targets
from vispeft.training.arguments import LoopSettings
from vispeft.training.checkpoint import load_checkpoint
from vispeft.training.seeds import seed_everything
from vispeft.training.trained_tensors import trained_tensors


def assert_same(left: Any, right: Any) -> None:
    """Assert that two values are equal to the bit, through dictionaries and sequences."""
    assert type(left) is type(right)
    if isinstance(left, Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    else:
        assert left == right


def without_times(path: Path) -> dict[str, Any]:
    checkpoint = load_checkpoint(path)
    content = {f.name: getattr(checkpoint, f.name) for f in dataclasses.fields(checkpoint)}
    content["counters"] = {
        name: value
        for name, value in dataclasses.asdict(checkpoint.counters).items()
        if name not in ("train_seconds", "evaluate_seconds", "peak_memory_bytes")
    }
    return content


def interrupting(
    batches: Callable[[int], Iterator[Batch]], at: int, number: signal.Signals = signal.SIGINT
) -> Callable[[int], Iterator[Batch]]:
    """Return the same batches; fetching number `at` raises a signal, as if Ctrl-C were pressed."""

    def interrupted(start: int) -> Iterator[Batch]:
        for draw, batch in enumerate(batches(start), start):
            if draw == at:
                os.kill(os.getpid(), number)
            yield batch

    return interrupted


@pytest.mark.parametrize("at", [1, 2, 3, 5], ids=lambda at: f"after_step_{at + 1}")
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("ema_decay", [None, 0.9], ids=["plain", "ema"])
def test_fit__resumed_equals_uninterrupted_to_the_bit(
    make_run: Callable[..., Any], at: int, accumulate: int, ema_decay: float | None
) -> None:
    settings = LoopSettings(steps=7, accumulate=accumulate, eval_every=3, log_every=2, ema_decay=ema_decay)
    whole = make_run("whole", settings=settings)
    whole.fit()

    halves = make_run("halves", settings=settings)
    plain = halves.batches
    halves.batches = interrupting(plain, at * accumulate)
    result = halves.fit()
    assert result.is_interrupted
    assert result.steps == at + 1

    halves.batches = plain
    # draws between the sessions must not matter
    torch.rand(5)
    result = halves.fit(resume=load_checkpoint(halves.checkpoint_path))
    assert not result.is_interrupted

    assert_same(trained_tensors(halves.model), trained_tensors(whole.model))
    assert_same(without_times(halves.checkpoint_path), without_times(whole.checkpoint_path))
    assert (halves.run_dir / "metrics.jsonl").read_text() == (whole.run_dir / "metrics.jsonl").read_text()


def test_fit__repeats_to_the_bit(make_run: Callable[..., Any]) -> None:
    first, second = make_run("a"), make_run("b")
    first.fit()
    second.fit()
    assert_same(trained_tensors(first.model), trained_tensors(second.model))
    assert (first.run_dir / "metrics.jsonl").read_text() == (second.run_dir / "metrics.jsonl").read_text()


def test_fit__evaluating_does_not_change_training(make_run: Callable[..., Any]) -> None:
    often = make_run("often", settings=LoopSettings(steps=6, eval_every=1))
    never = make_run("never", settings=LoopSettings(steps=6), evaluates=False)
    often.fit()
    never.fit()
    assert often.num_evaluations == 6
    assert_same(trained_tensors(often.model), trained_tensors(never.model))


def test_fit__leaves_the_base_unchanged(make_run: Callable[..., Any]) -> None:
    run = make_run()
    seen: dict[str, Tensor] = {}

    def score(model: nn.Module, count: int) -> dict[str, float]:
        seen.update({n: t.clone() for n, t in model.state_dict().items() if n.startswith("body") and n not in seen})
        return {"segm/AP": 0.0}

    run.score = score
    run.fit()
    assert len(seen) == 7
    assert_same(seen, {name: run.model.state_dict()[name] for name in seen})


def test_fit__keeps_the_best_weights_and_the_earlier_of_equals(make_run: Callable[..., Any]) -> None:
    scores = [0.2, 0.5, 0.5, float("nan"), 0.4]
    run = make_run(settings=LoopSettings(steps=5, eval_every=1), score=lambda model, i: {"segm/AP": scores[i]})
    result = run.fit()
    assert [step for step, _ in run.kept] == [1, 2]
    assert result.best_step == 2
    assert result.best_metrics == {"segm/AP": 0.5}


def test_fit__keeps_the_last_weights_without_evaluation(make_run: Callable[..., Any]) -> None:
    run = make_run(evaluates=False)
    result = run.fit()
    assert run.kept[-1][0] == 6
    assert torch.equal(run.kept[-1][1], run.model.class_embed.weight)
    assert result.best_metrics == {}


def test_fit__stops_early_after_patience(make_run: Callable[..., Any]) -> None:
    settings = LoopSettings(steps=20, eval_every=2, patience=2)
    run = make_run(settings=settings, score=lambda model, i: {"segm/AP": -float(i)})
    result = run.fit()
    assert result.is_stopped_early
    assert (result.steps, result.best_step) == (6, 2)


def test_fit__keeps_and_scores_the_average_with_ema(make_run: Callable[..., Any]) -> None:
    run = make_run(settings=LoopSettings(steps=4, ema_decay=0.5), noise=0.0)
    scored: list[Tensor] = []

    def score(model: nn.Module, count: int) -> dict[str, float]:
        scored.append(run.model.class_embed.weight.detach().clone())
        return {"segm/AP": 1.0}

    run.score = score
    run.fit()
    (step, kept), ema = run.kept[0], load_checkpoint(run.checkpoint_path).ema
    assert ema is not None
    assert step == 4
    assert torch.equal(kept, scored[0])
    assert torch.equal(kept, ema["class_embed.weight"])
    assert not torch.equal(kept, run.model.class_embed.weight)


def test_fit__stops_on_sigterm_too(make_run: Callable[..., Any]) -> None:
    run = make_run()
    run.batches = interrupting(run.batches, 2, signal.SIGTERM)
    result = run.fit()
    assert result.is_interrupted
    assert load_checkpoint(run.checkpoint_path).counters.step == result.steps == 3
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_fit__interrupted_evaluation_is_done_on_resume(make_run: Callable[..., Any]) -> None:
    run = make_run(settings=LoopSettings(steps=4, eval_every=2, ema_decay=0.9))

    def score(model: nn.Module, count: int) -> dict[str, float]:
        if count == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return {"segm/AP": float(count)}

    run.score = score
    result = run.fit()
    assert (result.steps, result.is_interrupted, run.kept) == (2, True, [])
    result = run.fit(resume=load_checkpoint(run.checkpoint_path))
    assert [step for step, _ in run.kept] == [2, 4]
    assert not result.is_interrupted


def test_fit__resuming_a_finished_run_does_nothing(make_run: Callable[..., Any]) -> None:
    run = make_run()
    first = run.fit()
    again = run.fit(resume=load_checkpoint(run.checkpoint_path))
    assert (again.steps, again.best_step, again.best_metrics) == (first.steps, first.best_step, first.best_metrics)
    assert run.num_evaluations == 3


def test_fit__refuses_to_resume_with_other_trained_parameters(make_run: Callable[..., Any]) -> None:
    run = make_run()
    run.fit()
    checkpoint = load_checkpoint(run.checkpoint_path)
    other = type(run.model)()
    other.body.requires_grad_(True)
    with pytest.raises(CheckpointError, match=r"2 tensors are not in it.*`body.bias`, `body.weight`"):
        run.fit(resume=checkpoint, model=other)


def test_fit__writes_metrics_lines(make_run: Callable[..., Any]) -> None:
    run = make_run()
    run.fit()
    lines = read_metrics(run.run_dir / "metrics.jsonl")
    assert [(line["step"], line["split"]) for line in lines] == [
        (step, split) for step in (2, 4, 6) for split in ("train", "val")
    ]
    train = lines[0]
    assert set(train) == {"step", "split", "loss", "loss_class", "loss_box", "loss_mask", "grad_norm", "lr_full"}
    parts = train["loss_class"] + train["loss_box"] + train["loss_mask"]
    assert train["loss"] == pytest.approx(parts)
    assert set(lines[1]) == {"step", "split", "segm/AP"}
    assert json.loads((run.run_dir / "metrics.jsonl").read_text().splitlines()[0]) == train


def test_fit__evaluates_in_eval_mode_and_keeps_frozen_norms_in_it(make_run: Callable[..., Any]) -> None:
    run = make_run()
    in_eval: list[bool] = []
    modes: list[tuple[bool, bool]] = []

    def score(model: nn.Module, count: int) -> dict[str, float]:
        in_eval.append(not any(module.training for module in model.modules()))
        return {"segm/AP": 0.0}

    def criterion(predictions: Predictions, targets: Sequence[Targets]) -> dict[str, Tensor]:
        modes.append((run.model.body_norm.training, run.model.class_embed.training))
        final = predictions.final
        return {"class": final.class_logits.mean() + final.boxes.mean() + final.mask_embeddings.mean()}

    run.score, run.criterion = score, criterion
    run.fit()
    assert in_eval == [True] * 3
    assert set(modes) == {(False, True)}


def test_fit__reports_time_and_memory(make_run: Callable[..., Any]) -> None:
    result = make_run().fit()
    assert result.train_seconds > 0
    assert result.peak_memory_bytes > 2**20


def test_fit__with_deltas_resumes_to_the_bit_and_the_kept_file_restores_the_best_model(
    make_run: Callable[..., Any], batch_of: Callable[..., Batch]
) -> None:
    heads = ["norm", "class_embed", "bbox_embed", "mask_embed"]
    plan = Plan({"body": LoRA(rank=2, dropout=0.1), "body_norm": Adapter(width=4, count=2)}, train=heads)

    def injected(run: Any) -> Any:
        seed_everything(1)
        model = run.make_model()
        inject(model, plan)
        return model

    settings = LoopSettings(steps=5, eval_every=2, ema_decay=0.9)
    whole, halves = make_run("whole", settings=settings), make_run("halves", settings=settings)
    whole.fit(model=injected(whole))

    # the evaluation after step 2 is the best: its file is kept
    adapter_path = halves.run_dir / "adapter.safetensors"
    outputs: list[Tensor] = []

    def keep_best(step: int, metrics: Any) -> None:
        save_adapter(halves.model, adapter_path, metadata={"step": step})
        with torch.no_grad():
            outputs.append(halves.model(batch_of(50).images).final.class_logits)

    plain = halves.batches
    halves.batches = interrupting(plain, 2)
    halves.score = lambda model, count: {"segm/AP": -float(count)}
    halves.keep_best = keep_best
    halves.fit(model=injected(halves))
    halves.batches = plain
    halves.fit(resume=load_checkpoint(halves.checkpoint_path), model=injected(halves))

    assert_same(trained_tensors(halves.model), trained_tensors(whole.model))
    seed_everything(1)
    fresh = halves.make_model()
    load_adapter(fresh, adapter_path)
    assert len(outputs) == 1
    assert torch.equal(fresh.eval()(batch_of(50).images).final.class_logits, outputs[0])


def test_fit__evaluates_weights_that_were_kept_without_metrics(make_run: Callable[..., Any]) -> None:
    run = make_run(settings=LoopSettings(steps=2), evaluates=False)
    run.fit()
    assert load_checkpoint(run.checkpoint_path).counters.lacks_score
    run.settings, run.evaluates = LoopSettings(steps=4, eval_every=2), True
    run.score = lambda model, count: {"segm/AP": [0.5, 0.25][count]}
    result = run.fit(resume=load_checkpoint(run.checkpoint_path))
    assert (result.best_step, result.best_metrics) == (2, {"segm/AP": 0.5})
    assert not load_checkpoint(run.checkpoint_path).counters.lacks_score
