"""Predictor of EoMT and PMT: classes and mask embeddings from the queries, and mask features from the patches."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from vispeft.models.layers.activation_checkpointing import run_layer
from vispeft.models.layers.mlp import MLP
from vispeft.models.layers.pyramid import ChannelNorm
from vispeft.structures import LayerPredictions


class UpscaleBlock(nn.Module):
    """Map of twice the height and width: transposed convolution, GELU, depthwise convolution, norm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2)
        self.conv2 = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim, bias=False)
        self.norm = ChannelNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C, 2 H, 2 W]. x: [B, C, H, W]"""
        y: Tensor = self.norm(self.conv2(F.gelu(self.conv1(x))))
        return y


class Predictor(nn.Module):
    """Heads, one set for every prediction.

    patch_size: of the encoder, in pixels; the mask features have a quarter of the input's height and width, as near as
        doubling the patches comes from above
    """

    def __init__(self, dim: int, num_classes: int, *, patch_size: int) -> None:
        super().__init__()
        self.class_embed = nn.Linear(dim, num_classes + 1)
        self.mask_embed = MLP(dim, dim, dim, 3, activation=F.gelu)
        num_doublings = max(1, int(math.log2(patch_size)) - 2)
        self.upscale = nn.Sequential(*(UpscaleBlock(dim) for _ in range(num_doublings)))
        self.recomputes = False

    def forward(self, queries: Tensor, patches: Tensor, grid: tuple[int, int]) -> LayerPredictions:
        """Return the predictions of one layer, with mask features of their own.

        queries: [B, Q, C]
        patches: [B, H W, C], by rows
        grid: H and W of the patches
        """
        x = patches.transpose(1, 2).reshape(patches.shape[0], -1, *grid)  # [B, C, H, W]
        mask_features = run_layer(self.upscale, x, recompute=self.recomputes)
        return LayerPredictions(self.class_embed(queries), None, self.mask_embed(queries), mask_features)
