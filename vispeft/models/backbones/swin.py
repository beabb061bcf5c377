"""Blocks of timm's Swin Transformers as published segmentation models run them, on maps of any size."""

from __future__ import annotations

import torch
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention, window_partition, window_reverse
from torch import Tensor, nn
from torch.nn import functional as F

# added to the logits of pairs from different regions; published
_BLOCKED = -100.0


class PaddedSwinBlock(nn.Module):
    """A timm block, with the same parameters by the same names, that pads its map before it shifts the windows.

    timm shifts first, which gives other windows in a map whose sides are no multiples of the window's.
    """

    def __init__(self, block: SwinTransformerBlock) -> None:
        super().__init__()
        self.window_size: tuple[int, int] = block.window_size
        self.shift_size: tuple[int, int] = block.shift_size
        self.norm1 = block.norm1
        self.attn = block.attn
        # timm's switch: attention weights are not kept for backward
        self.attn.fused_attn = True
        self.drop_path1 = block.drop_path1
        self.norm2 = block.norm2
        self.mlp = block.mlp
        self.drop_path2 = block.drop_path2

    def forward(self, x: Tensor) -> Tensor:
        """Return x after the block. x: [B, H, W, C]"""
        x = x + self.drop_path1(self._attend(self.norm1(x)))
        y: Tensor = x + self.drop_path2(self.mlp(self.norm2(x)))
        return y

    def _attend(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        window = self.window_size
        x = F.pad(x, (0, 0, 0, -width % window[1], 0, -height % window[0]))
        _, padded_height, padded_width, _ = x.shape
        is_shifted = any(self.shift_size)
        mask = None
        if is_shifted:
            x = torch.roll(x, (-self.shift_size[0], -self.shift_size[1]), dims=(1, 2))
            mask = shifted_window_mask((padded_height, padded_width), window, self.shift_size, x.device).to(x)
        windows = window_partition(x, window).flatten(1, 2)  # [B windows, cells, C]
        windows = self.attn(windows, mask=mask).unflatten(1, window)
        y: Tensor = window_reverse(windows, window, padded_height, padded_width)
        if is_shifted:
            y = torch.roll(y, self.shift_size, dims=(1, 2))
        return y[:, :height, :width]


def shifted_window_mask(
    size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], device: torch.device
) -> Tensor:
    """Return the mask [windows, cells, cells] of attention in shifted windows (Swin, figure 4), added to the logits.

    size: height and width of the map, multiples of the window's
    """
    rows, columns = (_regions(*axis, device) for axis in zip(size, window, shift, strict=True))
    regions = (3 * rows[:, None] + columns)[None, :, :, None]
    cells = window_partition(regions, window).flatten(1)
    return (cells[:, :, None] != cells[:, None]) * _BLOCKED


def _regions(length: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Return the region of each place of an axis, 0 to 2: whole windows, and the two parts of the last one."""
    place = torch.arange(length, device=device)
    return (place >= length - window).long() + (place >= length - shift).long()


def pad_before_shift(body: nn.Module) -> None:
    """Replace the blocks of a Swin Transformer of timm, in place. The model takes images of any size then."""
    for module in list(body.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, SwinTransformerBlock):
                assert isinstance(child.attn, WindowAttention)
                setattr(module, name, PaddedSwinBlock(child))
