"""Gradient exchange of a run with several processes, fitted to what its model trains."""

from __future__ import annotations

from dataclasses import replace

import torch
from lightning_fabric import Fabric
from torch import Tensor

from vispeft import peft
from vispeft.coco.sets import CocoSet
from vispeft.config import Config
from vispeft.engine.loaders import Share, val_loader
from vispeft.models import SegmentationModel
from vispeft.models.base import Criterion
from vispeft.structures import Batch
from vispeft.training.distributed import GradientExchange, gradient_use
from vispeft.training.step import LossModule, SealedBatch


def fit_exchange(
    config: Config, fabric: Fabric, coco_set: CocoSet, model: SegmentationModel, criterion: Criterion
) -> None:
    """Find which trained parameters get a gradient, from one image with and without its targets, for DDP.

    It moves the model to the device of the run. No effect where there is one process.
    """
    exchange = fabric.strategy
    if not isinstance(exchange, GradientExchange):
        return
    update_statistics = config.train.update_statistics
    exchange.broadcasts_buffers = update_statistics
    image_idx = next((i for i, annotations in enumerate(coco_set.annotations) if len(annotations)), None)
    if image_idx is None:
        return
    alone = config.model_copy(update={"train": config.train.model_copy(update={"workers": 0})})
    batch = next(iter(val_loader(alone, coco_set.subset([image_idx]), model, Share()))).to(fabric.device)
    assert isinstance(batch, Batch)
    module = LossModule(model, criterion).to(fabric.device)
    empty = replace(batch, targets=tuple(replace(t, **_no_targets(t)) for t in batch.targets))
    peft.train_mode(model, update_statistics=update_statistics)

    def loss_of(one: Batch) -> Tensor:
        with fabric.autocast():
            return torch.stack(list(module(SealedBatch(one)).values())).sum()

    use = gradient_use(module, lambda: loss_of(batch), lambda: loss_of(empty))
    exchange.use = use


def _no_targets(targets: object) -> dict[str, Tensor]:
    return {name: tensor[:0] for name, tensor in vars(targets).items()}
