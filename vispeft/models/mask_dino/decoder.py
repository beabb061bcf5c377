"""Decoder of Mask DINO: two-stage queries, iterative boxes, one set of heads for every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vispeft.models.layers.activation_checkpointing import run_layer
from vispeft.models.layers.attention import SelfAttention
from vispeft.models.layers.deformable_attention import DeformableAttention
from vispeft.models.layers.denoising import DenoisingQueries, make_denoising_queries
from vispeft.models.layers.geometry import cell_centres, inverse_sigmoid, masks_to_boxes, sine_embedding
from vispeft.models.layers.mlp import MLP
from vispeft.models.layers.pixel_decoder import PixelFeatures
from vispeft.models.layers.relu import relu_before
from vispeft.structures import DenoisingPredictions, LayerPredictions, Predictions, Targets


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention, feed-forward; norms after the residual adds."""

    def __init__(self, dim: int, ffn_dim: int, *, num_levels: int, num_heads: int, num_points: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.cross_attn = DeformableAttention(dim, num_levels=num_levels, num_heads=num_heads, num_points=num_points)
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        boxes: Tensor,
        memory: Tensor,
        spatial_shapes: list[tuple[int, int]],
        attention_mask: Tensor | None,
    ) -> Tensor:
        """Return [B, Q, C]. x, position: [B, Q, C]; boxes: [B, Q, 4] cxcywh normalised; memory: [B, sum HW, C]."""
        x = self.norm2(x + self.self_attn(x, position, attention_mask))
        x = self.norm1(x + self.cross_attn(x + position, boxes, memory, spatial_shapes))
        y: Tensor = self.norm3(x + self.linear2(relu_before(self.linear2, self.linear1(x))))
        return y


@dataclass(frozen=True)
class _Queries:
    """Queries: content [B, Q, C], boxes_logits [B, Q, 4], and the proposals they were selected from."""

    content: Tensor
    boxes_logits: Tensor
    proposals: LayerPredictions


class MaskDINODecoder(nn.Module):
    """Queries from the encoder's best cells, refined layer by layer to classes, boxes and mask embeddings.

    Two-stage selection, mask-enhanced box initialisation, denoising, look-forward-twice boxes and deep supervision as
    in Mask DINO (Li et al., CVPR 2023; https://arxiv.org/abs/2206.02777).
    """

    def __init__(
        self,
        num_classes: int,
        *,
        dim: int = 256,
        ffn_dim: int = 2048,
        num_layers: int = 9,
        num_levels: int = 4,
        num_heads: int = 8,
        num_points: int = 4,
        mask_dim: int = 256,
        num_queries: int = 300,
        denoising_budget: int = 100,
        denoising_noise: float = 0.4,
        inclusive_boxes: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.num_queries = dim, num_queries
        self.denoising_budget, self.denoising_noise = denoising_budget, denoising_noise
        self.inclusive_boxes = inclusive_boxes
        self.recomputes = False
        self.enc_output = nn.Linear(dim, dim)
        self.enc_output_norm = nn.LayerNorm(dim)
        self.ref_point_head = MLP(2 * dim, dim, dim, 2)
        self.layers = nn.ModuleList(
            DecoderLayer(dim, ffn_dim, num_levels=num_levels, num_heads=num_heads, num_points=num_points)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.class_embed = nn.Linear(dim, num_classes)
        self.label_embed = nn.Embedding(num_classes, dim)
        self.mask_embed = MLP(dim, dim, mask_dim, 3)
        self.bbox_embed = MLP(dim, dim, 4, 3)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        linears = [*self.ref_point_head.layers]
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            linears += [layer.linear1, layer.linear2]
        for linear in linears:
            assert isinstance(linear, nn.Linear)
            nn.init.xavier_uniform_(linear.weight)
        # focal loss starts from a class probability of 0.01 (Lin et al. 2017, section 4.1)
        nn.init.constant_(self.class_embed.bias, -4.595)
        last = self.bbox_embed.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, features: PixelFeatures, targets: Sequence[Targets] | None = None) -> Predictions:
        """Predict for every image; with `targets`, denoising queries are added, also in a frozen decoder."""
        shapes = features.spatial_shapes[::-1]
        sizes = [h * w for h, w in features.spatial_shapes]
        # coarsest level first, as published
        memory = torch.cat(torch.split(features.memory, sizes, dim=1)[::-1], dim=1)
        queries = self._select(memory, shapes, features.mask_features)
        denoising = self._denoise(targets, queries.content.shape[1])
        content, boxes_logits, mask = queries.content, queries.boxes_logits, None
        if denoising is not None:
            content = torch.cat((denoising.content, content), dim=1)
            boxes_logits = torch.cat((denoising.boxes_logits, boxes_logits), dim=1)
            mask = denoising.attention_mask
        layers = self._refine(content, boxes_logits, memory, shapes, mask)
        if targets is not None and denoising is None:
            layers = self._with_label_embed(layers)
        return self._split(layers, queries.proposals, features.mask_features, denoising)

    def _denoise(self, targets: Sequence[Targets] | None, num_queries: int) -> DenoisingQueries | None:
        if targets is None or self.denoising_budget == 0:
            return None
        return make_denoising_queries(
            targets,
            self.label_embed,
            num_queries=num_queries,
            budget=self.denoising_budget,
            noise_scale=self.denoising_noise,
        )

    def _select(self, memory: Tensor, shapes: list[tuple[int, int]], mask_features: Tensor) -> _Queries:
        """Return queries from the cells with the best class score; their boxes come from their own masks."""
        anchors_logits, is_valid = _cell_anchors(shapes, memory.device)
        encoded = self.enc_output_norm(self.enc_output(memory * is_valid[..., None]))
        best = self.class_embed(encoded).amax(-1).topk(min(self.num_queries, memory.shape[1]), dim=1).indices
        selected = encoded.gather(1, best[..., None].expand(-1, -1, self.dim))  # [B, Q, C]
        boxes_logits = self.bbox_embed(selected).float() + anchors_logits[best]
        proposals = self._heads(selected, boxes_logits.sigmoid())
        with torch.no_grad():
            boxes = self._boxes_from_masks(proposals, mask_features)
        return _Queries(selected.detach(), inverse_sigmoid(boxes), proposals)

    def _boxes_from_masks(self, proposals: LayerPredictions, mask_features: Tensor) -> Tensor:
        embeddings = proposals.mask_embeddings
        masks = torch.einsum("bqd,bdhw->bqhw", embeddings, mask_features.to(embeddings)) > 0
        boxes = masks_to_boxes(masks, inclusive_end=self.inclusive_boxes)
        is_empty = ~masks.flatten(2).any(-1)
        return torch.where(is_empty[..., None], proposals.predicted_boxes, boxes)

    def _refine(
        self,
        x: Tensor,
        boxes_logits: Tensor,
        memory: Tensor,
        shapes: list[tuple[int, int]],
        mask: Tensor | None,
    ) -> list[LayerPredictions]:
        boxes = boxes_logits.sigmoid()
        layers = [self._heads(x, boxes)]
        undetached = boxes
        for layer in self.layers:
            position = self.ref_point_head(sine_embedding(boxes[..., [1, 0, 2, 3]], self.dim // 2))
            x = run_layer(layer, x, position, boxes, memory, shapes, mask, recompute=self.recomputes)
            normed = self.norm(x)
            # look forward twice (DINO, section 3.4): the prediction builds on the previous box with its gradient
            predicted = (self.bbox_embed(normed).float() + inverse_sigmoid(undetached)).sigmoid()
            # the published heads norm their input once more
            layers.append(self._heads(normed, predicted))
            undetached = (self.bbox_embed(x).float() + inverse_sigmoid(boxes)).sigmoid()
            boxes = undetached.detach()
        return layers

    def _heads(self, x: Tensor, boxes: Tensor) -> LayerPredictions:
        normed = self.norm(x)
        return LayerPredictions(self.class_embed(normed), boxes, self.mask_embed(normed))

    def _with_label_embed(self, layers: list[LayerPredictions]) -> list[LayerPredictions]:
        """Add the label embedding times zero, so that it has a gradient in a batch without targets too."""
        last = layers[-1]
        logits = last.class_logits + 0.0 * self.label_embed.weight.sum()
        return [*layers[:-1], LayerPredictions(logits, last.boxes, last.mask_embeddings)]

    def _split(
        self,
        layers: list[LayerPredictions],
        proposals: LayerPredictions,
        mask_features: Tensor,
        denoising: DenoisingQueries | None,
    ) -> Predictions:
        if denoising is None:
            return Predictions(tuple(layers), mask_features, proposals)
        count = denoising.num_groups * denoising.group_size
        return Predictions(
            tuple(_slice(layer, slice(count, None)) for layer in layers),
            mask_features,
            proposals,
            DenoisingPredictions(
                tuple(_slice(layer, slice(count)) for layer in layers), denoising.num_groups, denoising.group_size
            ),
        )


def _slice(layer: LayerPredictions, part: slice) -> LayerPredictions:
    return LayerPredictions(layer.class_logits[:, part], layer.predicted_boxes[:, part], layer.mask_embeddings[:, part])


def _cell_anchors(shapes: list[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return anchor box logits [sum HW, 4] of every cell, and which cells [sum HW] lie far enough from the border."""
    centres = cell_centres(shapes, device)
    sides = torch.cat([torch.full((h * w, 2), 0.05 * 2.0**level, device=device) for level, (h, w) in enumerate(shapes)])
    anchors = torch.cat((centres, sides), dim=-1)
    is_valid = ((anchors > 0.01) & (anchors < 0.99)).all(-1)
    # a cell at the border gets the box (1, 1, 1, 1), as published
    logits = torch.where(is_valid[:, None], torch.logit(anchors.clamp(1e-6, 1 - 1e-6)), 30.0)
    return logits, is_valid
