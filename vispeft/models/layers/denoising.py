"""Denoising training: noised ground truth as extra queries that need no matching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vispeft.models.layers.geometry import inverse_sigmoid
from vispeft.structures import Targets


@dataclass(frozen=True)
class DenoisingQueries:
    """Extra queries for the decoder.

    content: [B, G * S, C]; boxes_logits: [B, G * S, 4] cxcywh before the sigmoid, for G groups of S queries
    attention_mask: [G * S + Q, G * S + Q] bool, True if a query (row) may attend to another (column)
    """

    content: Tensor
    boxes_logits: Tensor
    attention_mask: Tensor
    num_groups: int
    group_size: int


def make_denoising_queries(
    targets: Sequence[Targets], label_embed: nn.Embedding, *, num_queries: int, budget: int, noise_scale: float
) -> DenoisingQueries | None:
    """Noise labels and boxes of all targets, in as many groups as fit `budget` queries, at least one.

    Labels are redrawn with probability `noise_scale / 2`; box centres move by up to half a side, sides change by up
    to one side, each times `noise_scale` (DN-DETR, https://arxiv.org/abs/2203.01305, section 4.2; Mask DINO, section
    3.3). None if no image has a target.
    """
    group_size = max((len(target) for target in targets), default=0)
    if group_size == 0:
        return None
    num_groups = max(budget // group_size, 1)
    device, num_classes = label_embed.weight.device, label_embed.num_embeddings
    labels = torch.zeros(len(targets), group_size, dtype=torch.int64, device=device)
    boxes = torch.zeros(len(targets), group_size, 4, device=device)
    is_target = torch.zeros(len(targets), group_size, dtype=torch.bool, device=device)
    for i, target in enumerate(targets):
        labels[i, : len(target)] = target.labels
        boxes[i, : len(target)] = target.boxes
        is_target[i, : len(target)] = True
    labels, boxes, is_target = (x.repeat(1, num_groups, *[1] * (x.dim() - 2)) for x in (labels, boxes, is_target))
    redrawn = torch.rand(labels.shape, device=device) < noise_scale * 0.5
    labels = torch.where(redrawn, torch.randint_like(labels, num_classes), labels)
    reach = torch.cat((boxes[..., 2:] / 2, boxes[..., 2:]), dim=-1)
    noised = (boxes + (torch.rand_like(boxes) * 2 - 1) * reach * noise_scale).clamp(0, 1)
    content = label_embed(labels) * is_target[..., None]
    boxes_logits = inverse_sigmoid(noised) * is_target[..., None]
    mask = _attention_mask(num_groups, group_size, num_queries, device)
    return DenoisingQueries(content, boxes_logits, mask, num_groups, group_size)


def _attention_mask(num_groups: int, group_size: int, num_queries: int, device: torch.device) -> Tensor:
    """Attention mask: a group attends to itself and to the matched queries; matched queries attend to no group."""
    group = torch.arange(num_groups, device=device).repeat_interleave(group_size)
    group = torch.cat((group, torch.full((num_queries,), -1, device=device)))
    return (group[:, None] == group[None, :]) | (group[None, :] == -1)
