"""Simple feature pyramid: four scales from the last map of a plain ViT."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

STRIDES = (4, 8, 16, 32)


def pyramid_divisor(patch_size: int, strides: Sequence[int] = STRIDES) -> int:
    """Multiple that a pyramid over patches of `patch_size` pixels needs of the input's height and width."""
    return patch_size << max(0, -min(_powers(patch_size, strides)))


def _powers(patch_size: int, strides: Sequence[int]) -> list[int]:
    return [round(math.log2(patch_size / stride)) for stride in strides]


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of [B, C, H, W] maps."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x normalised over C. x: [B, C, H, W]"""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SimpleFeaturePyramid(nn.Module):
    """Maps at the strides 4, 8, 16 and 32 (as near as powers of two come) from one map of stride `patch_size`.

    Up by transposed convolutions, down by max pooling (Li et al. 2022, "Exploring Plain Vision Transformer Backbones
    for Object Detection", section 3; https://arxiv.org/abs/2203.16527). The paper's 1x1 projection is the pixel
    decoder's `input_proj`.
    """

    def __init__(self, channels: int, patch_size: int, *, strides: Sequence[int] = STRIDES) -> None:
        super().__init__()
        powers = _powers(patch_size, strides)
        self.strides = [patch_size / 2**power for power in powers]
        self.size_divisor = pyramid_divisor(patch_size, strides)
        scalers = [_scaler(channels, power) for power in powers]
        self.channels = [width for _, width in scalers]
        self.scales = nn.ModuleList(module for module, _ in scalers)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return one map per stride, finest first. x: [B, C, H, W]"""
        return [scale(x) for scale in self.scales]


def _scaler(channels: int, power: int) -> tuple[nn.Module, int]:
    """Return a module that scales a map by 2 ** power, and its output width."""
    if power < 0:
        return nn.Sequential(*(nn.MaxPool2d(kernel_size=2, stride=2) for _ in range(-power))), channels
    layers: list[nn.Module] = []
    width = channels
    for step in range(power):
        if step > 0:
            layers += [ChannelNorm(width), nn.GELU()]
        layers.append(nn.ConvTranspose2d(width, width // 2, kernel_size=2, stride=2))
        width //= 2
    return nn.Sequential(*layers), width
