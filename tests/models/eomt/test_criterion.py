"""Losses of EoMT and their gradients against transformers' EoMT, at the same points."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vispeft.models.plain_mask.criterion import Criterion
from vispeft.structures import LayerPredictions, Predictions, Targets

CLASSES, QUERIES, WIDTH, LAYERS = 4, 9, 6, 3
NAMES = {"class": "loss_cross_entropy", "mask": "loss_mask", "dice": "loss_dice"}


def layers_of(num_images: int) -> list[LayerPredictions]:
    """Layers, each with mask features of its own."""
    generator = torch.Generator().manual_seed(3)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(num_images, *shape, generator=generator).requires_grad_()

    return [
        LayerPredictions(leaf(QUERIES, CLASSES + 1), None, leaf(QUERIES, WIDTH), leaf(WIDTH, 12, 16))
        for _ in range(LAYERS)
    ]


def targets_of(count: int) -> Targets:
    generator = torch.Generator().manual_seed(count)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    coarse = torch.randint(0, 2, (count, 1, 6, 8), generator=generator).float()
    masks = torch.nn.functional.interpolate(coarse, scale_factor=8.0)[:, 0] > 0.5
    return Targets(labels, torch.full((count, 4), 0.5), masks)


@pytest.mark.parametrize("counts", [(3, 5), (1, 0), (QUERIES + 2, 4)], ids=str)
def test_criterion__is_that_of_transformers_at_the_same_points(counts: tuple[int, ...], shared_points: Any) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.eomt.modeling_eomt import EomtLoss

    layers, targets = layers_of(len(counts)), [targets_of(count) for count in counts]
    config = transformers.EomtConfig(num_labels=CLASSES, train_num_points=shared_points.num_points)
    weights = {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}
    their_criterion = EomtLoss(config, weights)
    losses = Criterion(num_points=shared_points.num_points)(
        Predictions(tuple(layers), torch.zeros(len(counts), WIDTH, 12, 16)), targets
    )
    expected = dict.fromkeys(NAMES, torch.zeros(()))
    for layer in layers:
        assert layer.mask_features is not None
        of_layer = their_criterion(
            masks_queries_logits=torch.einsum("bqd,bdhw->bqhw", layer.mask_embeddings, layer.mask_features),
            class_queries_logits=layer.class_logits,
            mask_labels=[t.masks.float() for t in targets],
            class_labels=[t.labels for t in targets],
        )
        expected = {ours: expected[ours] + weights[theirs] * of_layer[theirs] for ours, theirs in NAMES.items()}
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-4, atol=1e-6, msg=name)
        of_class = name == "class"
        inputs = [x for y in layers for x in ((y.class_logits,) if of_class else (y.mask_embeddings, y.mask_features))]
        found = torch.autograd.grad(loss, inputs, retain_graph=True)
        for one, other in zip(found, torch.autograd.grad(expected[name], inputs, retain_graph=True), strict=True):
            assert float((one - other).abs().max()) <= 1e-4 * float(other.abs().max()), name
