"""Choice of single weights from the first training images, before a run begins."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
from lightning_fabric import Fabric
from torch import Tensor

from vispeft import peft
from vispeft.coco.sets import CocoSet
from vispeft.config import Config
from vispeft.engine.loaders import Share, val_loader
from vispeft.engine.settings import criterion_of
from vispeft.errors import ConfigError, PlanError
from vispeft.models import FollowsProgress, SegmentationModel
from vispeft.training.seeds import preserved_rng, repeatable, seed_everything
from vispeft.training.state import Checkpoint
from vispeft.training.step import LossModule, SealedBatch


def choose(
    config: Config, fabric: Fabric, images: CocoSet, model: SegmentationModel, checkpoint: Checkpoint | None
) -> None:
    """Choose the weights of methods such as `sparse`, in place; none where no method waits for a choice.

    A resumed run takes the choice of its checkpoint. The choice of the first process holds for all.

    images: the training set
    """
    if checkpoint is not None:
        peft.restore_choices(model, checkpoint.tensors)
    if not peft.methods_to_choose(model):
        return
    _choose_by_data(config, fabric, images, model)
    if fabric.world_size > 1:
        chosen = fabric.broadcast(dict(_delta_tensors(model)), src=0)
        peft.restore_choices(model, chosen)
        with torch.no_grad():
            for name, tensor in _delta_tensors(model):
                tensor.copy_(chosen[name])


def _choose_by_data(config: Config, fabric: Fabric, images: CocoSet, model: SegmentationModel) -> None:
    """Choose the weights of every method by the gradients of single images without augmentation, in float32.

    The first process alone chooses; the others compute the losses, which exchange their numbers of targets.
    """
    device = fabric.device
    with preserved_rng(device), repeatable(device):
        seed_everything(config.train.seed)
        model.to(device)
        peft.train_mode(model)
        if isinstance(model, FollowsProgress):
            model.on_progress(0, config.train.steps or 0)
        for method in peft.methods_to_choose(model):
            some = images.subset(range(min(method.num_images, len(images))))
            losses = _losses(config, device, some, model)
            if not fabric.is_global_zero:
                with peft.disabled(model), torch.no_grad():
                    deque(losses, maxlen=0)
                continue
            try:
                peft.choose_weights(model, losses, method)
            except PlanError as error:
                raise ConfigError(f"`peft.deltas`: {error}") from error
        model.cpu()


def _losses(config: Config, device: torch.device, images: CocoSet, model: SegmentationModel) -> Iterator[Tensor]:
    """Yield the training loss of every image of a set, computed when it is asked for."""
    alone = config.model_copy(
        update={
            "train": config.train.model_copy(update={"workers": 0}),
            "eval": config.eval.model_copy(update={"batch_size": 1}),
        }
    )
    loss_module = LossModule(model, criterion_of(config, model, images.labelled))
    for batch in val_loader(alone, images, model, Share()):
        losses: dict[str, Tensor] = loss_module(SealedBatch(batch.to(device)))
        yield torch.stack(list(losses.values())).sum()


def _delta_tensors(model: SegmentationModel) -> Iterator[tuple[str, Tensor]]:
    """Yield names and values of the tensors of the deltas that follow a choice."""
    for name, module in model.named_modules():
        if isinstance(module, peft.Delta | peft.WeightDelta) and isinstance(module.method, peft.Scored):
            for key, tensor in (*module.named_parameters(), *module.named_buffers()):
                yield f"{name}.{key}", tensor.detach()
