"""Pixel decoder: a deformable encoder over all levels, and mask features at the finest stride."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vispeft.models.layers.activation_checkpointing import run_layer
from vispeft.models.layers.deformable_attention import DeformableAttention
from vispeft.models.layers.geometry import cell_centres, map_position_embedding
from vispeft.models.layers.relu import relu_before

_Level = TypeVar("_Level")


@dataclass(frozen=True)
class PixelFeatures:
    """Output of the pixel decoder.

    memory: [B, sum HW, C], levels one after another, finest first or last
    spatial_shapes: (H, W) of each level, in the order of `memory`
    mask_features: [B, D, h, w]; D is 0 without masks
    """

    memory: Tensor
    spatial_shapes: list[tuple[int, int]]
    mask_features: Tensor


class PixelDecoderLayer(nn.Module):
    """Deformable self-attention and feed-forward, each followed by residual add and norm (Deformable DETR encoder)."""

    def __init__(self, dim: int, ffn_dim: int, *, num_levels: int, num_heads: int, num_points: int) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(dim, num_levels=num_levels, num_heads=num_heads, num_points=num_points)
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, position: Tensor, reference: Tensor, spatial_shapes: list[tuple[int, int]]) -> Tensor:
        """Return x after one layer. x: [B, sum HW, C]; position: [sum HW, C]; reference: [1, sum HW, 2]."""
        x = self.norm1(x + self.self_attn(x + position, reference, x, spatial_shapes))
        y: Tensor = self.norm2(x + self.linear2(relu_before(self.linear2, self.linear1(x))))
        return y


class PixelDecoder(nn.Module):
    """Backbone maps to encoded multi-scale memory and mask features (Mask DINO; https://arxiv.org/abs/2206.02777).

    channels: widths of the backbone's maps, finest first. The `num_backbone_levels` coarsest enter the deformable
    encoder, beside `num_extra_levels` made from the coarsest by strided convolutions; the finest map enters by one
    FPN step.
    coarsest_first: order of the levels in Mask2Former, which has no extra ones; its weights depend on it
    mask_dim: width D of the mask features; 0 for a detector without masks, which does not have their layers
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        dim: int = 256,
        ffn_dim: int = 2048,
        num_layers: int = 6,
        num_backbone_levels: int = 3,
        num_extra_levels: int = 1,
        num_heads: int = 8,
        num_points: int = 4,
        mask_dim: int = 256,
        use_mask_position: bool = False,
        coarsest_first: bool = False,
    ) -> None:
        super().__init__()
        assert not (coarsest_first and num_extra_levels)
        self.coarsest_first = coarsest_first
        self.use_mask_position = use_mask_position
        self.recomputes = False
        self.num_backbone_levels = num_backbone_levels
        self.num_levels = num_backbone_levels + num_extra_levels
        entering = self._ordered(channels[-num_backbone_levels:])
        self.input_proj = nn.ModuleList(
            [_projection(width, dim, kernel_size=1, stride=1) for width in entering]
            + [
                _projection(entering[-1] if extra == 0 else dim, dim, kernel_size=3, stride=2)
                for extra in range(num_extra_levels)
            ]
        )
        self.level_embed = nn.Parameter(torch.randn(self.num_levels, dim))
        self.layers = nn.ModuleList(
            PixelDecoderLayer(dim, ffn_dim, num_levels=self.num_levels, num_heads=num_heads, num_points=num_points)
            for _ in range(num_layers)
        )
        self.predicts_masks = mask_dim > 0
        if self.predicts_masks:
            self.lateral_convs = nn.ModuleList([_norm_conv(channels[0], dim, kernel_size=1)])
            self.output_convs = nn.ModuleList([_norm_conv(dim, dim, kernel_size=3)])
            self.mask_features = nn.Conv2d(dim, mask_dim, kernel_size=1)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        for layer in self.layers:
            assert isinstance(layer, PixelDecoderLayer)
            for linear in (layer.linear1, layer.linear2):
                nn.init.xavier_uniform_(linear.weight)
        if not self.predicts_masks:
            return
        nn.init.kaiming_uniform_(self.mask_features.weight, a=1)
        assert self.mask_features.bias is not None
        nn.init.zeros_(self.mask_features.bias)

    def forward(self, maps: Sequence[Tensor]) -> PixelFeatures:
        """Return features of all levels. maps: [B, C_i, H_i, W_i], finest first."""
        levels = self._project(maps)
        shapes = [(x.shape[-2], x.shape[-1]) for x in levels]
        device = levels[0].device
        memory = torch.cat([x.flatten(2).transpose(1, 2) for x in levels], dim=1)
        position = torch.cat(
            [
                map_position_embedding(h, w, memory.shape[-1], device) + self.level_embed[i]
                for i, (h, w) in enumerate(shapes)
            ]
        )
        reference = cell_centres(shapes, device)[None]
        for layer in self.layers:
            memory = run_layer(layer, memory, position, reference, shapes, recompute=self.recomputes)
        finest, shape = self._finest(memory, shapes)
        if not self.predicts_masks:
            return PixelFeatures(memory, shapes, memory.new_zeros(len(memory), 0, *shape))
        mask_features = run_layer(self._mask_features, maps[0], finest, shape, recompute=self.recomputes)
        return PixelFeatures(memory, shapes, mask_features)

    def _ordered(self, levels: Sequence[_Level]) -> list[_Level]:
        """Return levels in the order of the memory. levels: finest first"""
        return list(levels[::-1]) if self.coarsest_first else list(levels)

    def _finest(self, memory: Tensor, shapes: list[tuple[int, int]]) -> tuple[Tensor, tuple[int, int]]:
        """Return the cells of the finest level, [B, HW, C], and its height and width."""
        height, width = shape = shapes[-1] if self.coarsest_first else shapes[0]
        count = height * width
        return (memory[:, -count:] if self.coarsest_first else memory[:, :count]), shape

    def _project(self, maps: Sequence[Tensor]) -> list[Tensor]:
        entering = self._ordered(maps[-self.num_backbone_levels :])
        levels = [self.input_proj[i](x) for i, x in enumerate(entering)]
        coarsest = entering[-1]
        for projection in self.input_proj[self.num_backbone_levels :]:
            coarsest = projection(coarsest)
            levels.append(coarsest)
        return levels

    def _mask_features(self, finest_map: Tensor, memory: Tensor, shape: tuple[int, int]) -> Tensor:
        height, width = shape
        encoded = memory.transpose(1, 2).reshape(memory.shape[0], -1, height, width)
        lateral = self.lateral_convs[0](finest_map)
        h, w = lateral.shape[-2:]
        encoded = F.interpolate(encoded, size=(h, w), mode="bilinear", align_corners=False)
        if self.use_mask_position:
            position = map_position_embedding(h, w, lateral.shape[1], lateral.device)
            lateral = lateral + position.T.reshape(1, -1, h, w)
        features: Tensor = self.mask_features(F.relu(self.output_convs[0](lateral + encoded)))
        return features


def _projection(in_channels: int, dim: int, *, kernel_size: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, dim, kernel_size, stride=stride, padding=kernel_size // 2)
    nn.init.xavier_uniform_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, nn.GroupNorm(32, dim))


def _norm_conv(in_channels: int, dim: int, *, kernel_size: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, dim, kernel_size, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return nn.Sequential(conv, nn.GroupNorm(32, dim))
