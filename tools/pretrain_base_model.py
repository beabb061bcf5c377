"""Model and losses of `pretrain_base.py`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from pretrain_base_stages import Stage
from torch import Tensor, nn
from torch.nn import functional as F

from vispeft.models import MaskDINO, build_model
from vispeft.models.layers.geometry import map_position_embedding
from vispeft.models.mask_dino.criterion import Criterion
from vispeft.structures import Predictions, Targets
from vispeft.synthetic import SHAPE_NAMES
from vispeft.training.step import SealedBatch, in_float32

BACKBONE = "vit_small_patch16_rope_ape_224"
BACKBONE_OPTIONS = {"patch_size": 8, "embed_dim": 192, "depth": 6, "num_heads": 3, "init_values": None}


def build(num_classes: int, num_queries: int) -> MaskDINO:
    """Build the tiny model that is bundled."""
    return build_model(
        "mask_dino",
        backbone=BACKBONE,
        num_classes=num_classes,
        size="tiny",
        backbone_options=BACKBONE_OPTIONS,
        num_queries=num_queries,
        denoising_budget=num_queries,
    )


@torch.no_grad()
def init_position_embedding(model: MaskDINO) -> None:
    """Initialise the learned position embedding with sines, so that positions differ from the first step on."""
    vit: Any = model.backbone.body.model
    side = round(vit.pos_embed.shape[1] ** 0.5)
    vit.pos_embed.copy_(map_position_embedding(side, side, vit.pos_embed.shape[2], vit.pos_embed.device)[None] / 2)


class PretrainingLoss(nn.Module):
    """The model and its losses in one module, as DDP requires it.

    In class-agnostic stages every target has the class "object". With `learns_kinds`, an additional linear head
    predicts the kind of shape from the denoising queries, whose targets need no matching. The decoder's features then
    keep the kind, which helps a later adaptation to several classes.
    """

    def __init__(self, model: MaskDINO, criterion: Criterion, stage: Stage) -> None:
        super().__init__()
        self.model = model
        self.criterion = criterion
        self.is_class_agnostic = stage.is_class_agnostic
        self.kinds = nn.Linear(model.decoder.class_embed.in_features, len(SHAPE_NAMES)) if stage.learns_kinds else None

    def forward(self, sealed: SealedBatch) -> dict[str, Tensor]:
        """Return weighted scalar losses by name."""
        images, targets = sealed.batch.images, sealed.batch.targets
        trained_targets = tuple(replace(t, labels=t.labels * 0) for t in targets) if self.is_class_agnostic else targets
        states: list[Tensor] = []
        hook = self.model.decoder.class_embed.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
        predictions = self.model(images, trained_targets)
        hook.remove()
        with torch.autocast(images.device.type, enabled=False):
            losses = self.criterion(in_float32(predictions), trained_targets)
            if self.kinds is not None:
                losses["kind"] = self._kind_loss(predictions, states, targets)
        return losses

    def _kind_loss(self, predictions: Predictions, states: list[Tensor], targets: tuple[Targets, ...]) -> Tensor:
        """Return the cross-entropy of the kinds of shape over the denoising queries of all decoder layers."""
        denoising = predictions.denoising
        num_noised = denoising.num_groups * denoising.group_size
        num_rows = num_noised + predictions.final.boxes.shape[1]
        layers = [s[:, :num_noised].float() for s in states if s.dim() == 3 and s.shape[1] == num_rows]
        kinds = torch.full((len(targets), denoising.num_groups, denoising.group_size), -100)
        for i, target in enumerate(targets):
            kinds[i, :, : len(target)] = target.labels
        logits = torch.cat([self.kinds(layer) for layer in layers])
        return F.cross_entropy(logits.flatten(0, 1), kinds.flatten().repeat(len(layers)))


def parameter_groups(model: PretrainingLoss) -> list[dict[str, object]]:
    """Return parameter groups: weight decay for matrices, none for biases, norms and embeddings."""
    named = list(model.model.named_parameters())
    decayed = [p for n, p in named if p.dim() > 1 and "embed" not in n]
    others = [p for n, p in named if not (p.dim() > 1 and "embed" not in n)]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return groups + ([{"params": list(model.kinds.parameters()), "weight_decay": 0.0}] if model.kinds else [])
