"""Decoder of Mask2Former: learned queries, attention within their own masks, one set of heads for every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vispeft.models.layers.activation_checkpointing import run_layer
from vispeft.models.layers.attention import MaskedCrossAttention, SelfAttention
from vispeft.models.layers.geometry import map_position_embedding
from vispeft.models.layers.mlp import MLP
from vispeft.models.layers.pixel_decoder import PixelFeatures
from vispeft.models.layers.relu import relu_before
from vispeft.structures import LayerPredictions, Predictions, Targets


class DecoderLayer(nn.Module):
    """Masked cross-attention, self-attention, feed-forward; norms after the residual adds."""

    def __init__(self, dim: int, ffn_dim: int, *, num_heads: int) -> None:
        super().__init__()
        self.cross_attn = MaskedCrossAttention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.self_attn = SelfAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.norm3 = nn.LayerNorm(dim)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor, position: Tensor, memory: Tensor, keys: Tensor, attention_mask: Tensor) -> Tensor:
        """Return [B, Q, C]; arguments as of `MaskedCrossAttention`."""
        x = self.norm1(x + self.cross_attn(x, position, memory, keys, attention_mask))
        x = self.norm2(x + self.self_attn(x, position, None))
        y: Tensor = self.norm3(x + self.linear2(relu_before(self.linear2, self.linear1(x))))
        return y


@dataclass(frozen=True)
class _Level:
    """One level of the memory.

    memory: [B, HW, C]
    keys: memory with the positions of its cells, [B, HW, C]
    mask_features: those of the image at the level's size, without gradient: [B, D, HW]
    """

    memory: Tensor
    keys: Tensor
    mask_features: Tensor

    def attention_mask(self, mask_embeddings: Tensor) -> Tensor:
        """Return the mask [B, 1, Q, HW] of the next layer's attention: True in the mask, and all of an empty one.

        mask_embeddings: [B, Q, D]
        """
        is_inside = mask_embeddings.detach() @ self.mask_features.to(mask_embeddings) >= 0
        return (is_inside | ~is_inside.any(-1, keepdim=True))[:, None]


class Mask2FormerDecoder(nn.Module):
    """Learned queries, refined layer by layer to classes and mask embeddings (Mask2Former, section 3.2).

    Layer after layer reads one level, from the coarsest to the finest and again.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        dim: int = 256,
        ffn_dim: int = 2048,
        num_layers: int = 9,
        num_levels: int = 3,
        num_heads: int = 8,
        mask_dim: int = 256,
        num_queries: int = 100,
    ) -> None:
        super().__init__()
        self.recomputes = False
        self.query_feat = nn.Embedding(num_queries, dim)
        self.query_embed = nn.Embedding(num_queries, dim)
        self.level_embed = nn.Embedding(num_levels, dim)
        self.layers = nn.ModuleList(DecoderLayer(dim, ffn_dim, num_heads=num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.class_embed = nn.Linear(dim, num_classes + 1)
        self.mask_embed = MLP(dim, dim, mask_dim, 3)

    def forward(self, features: PixelFeatures, targets: Sequence[Targets] | None = None) -> Predictions:
        """Predict for every image, from levels in the order coarsest first; `targets` are not used."""
        levels = self._levels(features)
        x = self.query_feat.weight.expand(features.memory.shape[0], -1, -1)
        position = self.query_embed.weight.expand_as(x)
        layers = [self._heads(x)]
        for number, layer in enumerate(self.layers):
            level = levels[number % len(levels)]
            mask = level.attention_mask(layers[-1].mask_embeddings)
            x = run_layer(layer, x, position, level.memory, level.keys, mask, recompute=self.recomputes)
            layers.append(self._heads(x))
        return Predictions(tuple(layers), features.mask_features)

    def _levels(self, features: PixelFeatures) -> list[_Level]:
        shapes = features.spatial_shapes
        memories = torch.split(features.memory, [h * w for h, w in shapes], dim=1)
        levels = []
        for number, (memory, (h, w)) in enumerate(zip(memories, shapes, strict=True)):
            located = memory + self.level_embed.weight[number]
            keys = located + map_position_embedding(h, w, located.shape[-1], located.device).to(located)
            with torch.no_grad():
                # resizing is linear: that of the features is that of the mask logits, which are larger
                small = F.interpolate(features.mask_features, (h, w), mode="bilinear", align_corners=False)
            levels.append(_Level(located, keys, small.flatten(2)))
        return levels

    def _heads(self, x: Tensor) -> LayerPredictions:
        normed = self.norm(x)
        return LayerPredictions(self.class_embed(normed), None, self.mask_embed(normed))
