"""Blocks of timm's Swin Transformers as published segmentation models run them, on maps of any size."""

from __future__ import annotations

import torch
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention, window_partition
from torch import Tensor, nn
from torch.nn import functional as F

from vispeft.models.backbones.windows import Windows

# added to the logits of pairs from different regions; published
_BLOCKED = -100.0


class MapAttention(nn.Module):
    """Attention of timm within the windows of a map, with the same parameters by the same names.

    The projections run on the map's own tokens. Cells of padding, zeros before `qkv`, share one further token.
    """

    relative_position_bias_table: nn.Parameter
    relative_position_index: Tensor

    def __init__(self, attention: WindowAttention, shift_size: tuple[int, int]) -> None:
        super().__init__()
        self.dim, self.num_heads = attention.dim, attention.num_heads
        self.window_size: tuple[int, int] = attention.window_size
        self.shift_size = shift_size
        self.relative_position_bias_table = attention.relative_position_bias_table
        index = attention.get_buffer("relative_position_index")
        self.register_buffer("relative_position_index", index, persistent=False)
        self.qkv, self.proj = attention.qkv, attention.proj
        self.attn_drop, self.proj_drop = attention.attn_drop, attention.proj_drop

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, H, W, C]. x: [B, H, W, C]"""
        batch, height, width, _ = x.shape
        windows = Windows.of((height, width), self.window_size, self.shift_size, x.device)
        tokens = x.flatten(1, 2)
        if len(windows.padding):
            tokens = torch.cat((tokens, tokens.new_zeros(batch, 1, tokens.shape[2])), dim=1)
        cells = windows.gather(self.qkv(tokens))
        area = self.window_size[0] * self.window_size[1]
        cells = cells.reshape(-1, area, 3, self.num_heads, cells.shape[2] // (3 * self.num_heads))
        q, k, v = cells.permute(2, 0, 3, 1, 4)  # [B windows, heads, cells, C / heads] each
        bias = self._bias(height, width, batch)
        dropout = self.attn_drop.p if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        attended = attended.transpose(1, 2).reshape(batch, -1, q.shape[1] * q.shape[3])
        y: Tensor = self.proj_drop(self.proj(windows.give_back(attended)))
        return y.reshape(batch, height, width, -1)

    def _bias(self, height: int, width: int, batch: int) -> Tensor:
        """Return what is added to the logits: [1, heads, cells, cells], or of each window for shifted ones."""
        area = self.relative_position_index.shape[0]
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = bias.reshape(area, area, -1).permute(2, 0, 1)[None]
        if not any(self.shift_size):
            return bias
        padded = (height + -height % self.window_size[0], width + -width % self.window_size[1])
        mask = shifted_window_mask(padded, self.window_size, self.shift_size, bias.device).to(bias)
        return (bias + mask[:, None]).repeat(batch, 1, 1, 1)


class PaddedSwinBlock(nn.Module):
    """A timm block, with the same parameters by the same names, that pads its map before it shifts the windows.

    timm shifts first, which gives other windows in a map whose sides are no multiples of the window's.
    """

    def __init__(self, block: SwinTransformerBlock) -> None:
        super().__init__()
        self.norm1 = block.norm1
        self.attn = MapAttention(block.attn, block.shift_size)
        self.drop_path1 = block.drop_path1
        self.norm2 = block.norm2
        self.mlp = block.mlp
        self.drop_path2 = block.drop_path2

    def forward(self, x: Tensor) -> Tensor:
        """Return x after the block. x: [B, H, W, C]"""
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        y: Tensor = x + self.drop_path2(self.mlp(self.norm2(x)))
        return y


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
