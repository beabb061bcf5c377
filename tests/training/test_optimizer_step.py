"""Optimizer steps as parts of small runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from vispeft.errors import TrainingError
from vispeft.structures import Batch, Predictions, Targets
from vispeft.training.arguments import LoopSettings
from vispeft.training.checkpoint import load_checkpoint
from vispeft.training.trained_tensors import trained_tensors


def with_loss(value: float) -> Callable[[Predictions, Sequence[Targets]], dict[str, Tensor]]:
    """Return a criterion whose mask loss is `value`."""

    def criterion(predictions: Predictions, targets: Sequence[Targets]) -> dict[str, Tensor]:
        final = predictions.final
        zero = 0 * (final.class_logits.sum() + final.boxes.sum() + final.mask_embeddings.sum())
        return {"class": zero + 1, "mask": zero + value}

    return criterion


def test_fit__accumulation_equals_the_large_batch(make_run: Callable[..., Any], batch_of: Callable[..., Batch]) -> None:
    def of_size(size: int) -> Callable[[int], Iterator[Batch]]:
        return lambda start: (batch_of(draw, size) for draw in range(start, 1000))

    large = make_run("large", noise=0.0, batches=of_size(4))
    small = make_run("small", noise=0.0, batches=of_size(2), settings=dataclasses.replace(large.settings, accumulate=2))
    large.fit()
    small.fit()
    for name, tensor in trained_tensors(large.model).items():
        torch.testing.assert_close(trained_tensors(small.model)[name], tensor, rtol=1e-4, atol=1e-6)


def test_fit__clips_the_gradient_norm(make_run: Callable[..., Any]) -> None:
    run = make_run(settings=LoopSettings(steps=1, clip_norm=1e-3), noise=0.0)
    run.fit()
    # after one step, Adam's first moment is a tenth of the gradient
    moments = [state["exp_avg"] for state in load_checkpoint(run.checkpoint_path).optimizer["state"].values()]
    norm = torch.stack([moment.norm() for moment in moments]).norm() / (1 - 0.9)
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_fit__non_finite_loss_names_the_images_and_leaves_weights_and_checkpoint_unchanged(
    make_run: Callable[..., Any], value: float
) -> None:
    run = make_run(settings=LoopSettings(steps=2, eval_every=1), noise=0.0)
    run.fit()
    before = run.checkpoint_path.read_bytes()
    run.settings = LoopSettings(steps=4, eval_every=1)
    run.criterion = with_loss(value)
    with pytest.raises(TrainingError) as caught:
        run.fit(resume=load_checkpoint(run.checkpoint_path))
    message = str(caught.value)
    for part in ("step 3", "class 1", f"mask {value}", "image_004.jpg, image_005.jpg", "learning rate", "fp32"):
        assert part in message
    assert run.checkpoint_path.read_bytes() == before
    tensors = load_checkpoint(run.checkpoint_path).tensors
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in trained_tensors(run.model).items())


def test_fit__non_finite_gradient_names_the_images(make_run: Callable[..., Any]) -> None:
    def criterion(predictions: Predictions, targets: Sequence[Targets]) -> dict[str, Tensor]:
        final = predictions.final
        # the square root of zero is finite, but its gradient is not
        flat = (0 * (final.class_logits.sum() + final.boxes.sum() + final.mask_embeddings.sum())).sqrt()
        return {"class": flat + 1}

    run = make_run(criterion=criterion)
    with pytest.raises(TrainingError, match=r"gradients must be finite.*step 1.*image_000\.jpg, image_001\.jpg"):
        run.fit()


def test_fit__refuses_parameters_without_gradient(make_run: Callable[..., Any]) -> None:
    def criterion(predictions: Predictions, targets: Sequence[Targets]) -> dict[str, Tensor]:
        return {"class": predictions.final.class_logits.square().mean()}

    run = make_run(criterion=criterion)
    with pytest.raises(TrainingError, match=r"4 got none: `bbox_embed.weight`, .*`mask_embed.bias`"):
        run.fit()
    names = [f"{head}.{kind}" for head in ("bbox_embed", "mask_embed") for kind in ("weight", "bias")]
    run.settings = dataclasses.replace(run.settings, may_lack_gradient=names)
    assert run.fit().steps == 6


def test_fit__checks_gradients_in_the_first_step_with_targets(
    make_run: Callable[..., Any], batch_of: Callable[..., Batch]
) -> None:
    def criterion(predictions: Predictions, targets: Sequence[Targets]) -> dict[str, Tensor]:
        losses = {"class": predictions.final.class_logits.square().mean()}
        if any(len(target) for target in targets):
            losses["box"] = predictions.final.boxes.mean() + predictions.final.mask_embeddings.mean()
        return losses

    def batches(start: int) -> Iterator[Batch]:
        for draw in range(start, 1000):
            batch = batch_of(draw)
            nothing = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), torch.zeros(0, 16, 16).bool())
            yield batch if draw % 2 else Batch(batch.images, (nothing,) * len(batch), batch.metas)

    run = make_run(criterion=criterion, batches=batches)
    assert run.fit().steps == 6


def test_fit__refuses_batches_that_run_out(make_run: Callable[..., Any], batch_of: Callable[..., Batch]) -> None:
    run = make_run(batches=lambda start: iter([batch_of(0), batch_of(1)]))
    with pytest.raises(TrainingError, match="batches for 6 steps, but they end in step 3"):
        run.fit()
