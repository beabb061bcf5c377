"""Losses of Mask2Former and their gradients against those of transformers, at the same points."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vispeft.models import LossSettings, build_model
from vispeft.structures import LayerPredictions, Predictions, Targets

CLASSES, QUERIES, WIDTH, LAYERS = 4, 9, 6, 3
NAMES = {"class": "loss_cross_entropy", "mask": "loss_mask", "dice": "loss_dice"}


def scene(counts: tuple[int, ...]) -> tuple[list[Tensor], Tensor, list[Targets]]:
    """Return class logits and embeddings of all layers in turn, mask features, and the targets of each image."""
    generator = torch.Generator().manual_seed(3)
    leaves = []
    for width in (CLASSES + 1, WIDTH) * LAYERS:
        leaves.append(torch.randn(len(counts), QUERIES, width, generator=generator).requires_grad_())
    features = torch.randn(len(counts), WIDTH, 12, 16, generator=generator).requires_grad_()
    targets = []
    for count in counts:
        labels = torch.randint(0, CLASSES, (count,), generator=generator)
        # blocks of 8 pixels, so that masks are neither noise nor all alike
        coarse = torch.randint(0, 2, (count, 1, 6, 8), generator=generator).float()
        masks = torch.nn.functional.interpolate(coarse, scale_factor=8.0)[:, 0] > 0.5
        targets.append(Targets(labels, torch.full((count, 4), 0.5), masks))
    return leaves, features, targets


def official_losses(leaves: list[Tensor], features: Tensor, targets: list[Targets], num_points: int) -> dict[str, Any]:
    transformers = pytest.importorskip("transformers")
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

    config = transformers.Mask2FormerConfig(num_labels=CLASSES, train_num_points=num_points)
    weights = {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}
    layers = [
        {
            "class_queries_logits": class_logits,
            "masks_queries_logits": torch.einsum("bqd,bdhw->bqhw", embeddings, features),
        }
        for class_logits, embeddings in zip(leaves[::2], leaves[1::2], strict=True)
    ]
    labels, masks = [t.labels for t in targets], [t.masks.float() for t in targets]
    losses = Mask2FormerLoss(config, weights)(
        **layers[-1], mask_labels=masks, class_labels=labels, auxiliary_predictions=layers[:-1]
    )
    return {
        ours: weights[theirs] * sum(loss for name, loss in losses.items() if name.startswith(theirs))
        for ours, theirs in NAMES.items()
    }


@pytest.mark.parametrize("counts", [(3, 5), (1, 0), (QUERIES + 2, 4)], ids=str)
def test_criterion__is_the_official_one_at_the_same_points(counts: tuple[int, ...], shared_points: Any) -> None:
    leaves, features, targets = scene(counts)
    expected = official_losses(leaves, features, targets, shared_points.num_points)
    criterion = build_model("mask2former", backbone="resnet18", size="tiny", num_classes=CLASSES).criterion(
        LossSettings(num_points=shared_points.num_points)
    )
    layers = tuple(
        LayerPredictions(class_logits, None, embeddings)
        for class_logits, embeddings in zip(leaves[::2], leaves[1::2], strict=True)
    )
    losses = criterion(Predictions(layers, features), targets)
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-4, atol=1e-6, msg=name)
        inputs = leaves[::2] if name == "class" else [*leaves[1::2], features]
        found = torch.autograd.grad(loss, inputs, retain_graph=True)
        for one, other in zip(found, torch.autograd.grad(expected[name], inputs, retain_graph=True), strict=True):
            assert float((one - other).abs().max()) <= 1e-4 * float(other.abs().max()), name
