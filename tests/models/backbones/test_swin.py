"""Swin blocks on maps of any size against timm's attention in padded windows, as published models run it."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.models.swin_transformer import SwinTransformerBlock, window_partition, window_reverse
from torch import Tensor
from torch.nn import functional as F

from vispeft.models.backbones.swin import PaddedSwinBlock, shifted_window_mask
from vispeft.models.backbones.windows import Windows
from vispeft.peft import Adapter, LoRA, Plan, ScaleShift, check, inject, merge

WINDOW = (4, 4)


def timm_block(shift: int) -> SwinTransformerBlock:
    torch.manual_seed(0)
    block = SwinTransformerBlock(12, (16, 16), num_heads=3, window_size=4, shift_size=shift, always_partition=True)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return block.double()


def published(block: SwinTransformerBlock, x: Tensor) -> Tensor:
    """Return x after the block: pad, shift, attend in windows, shift back, crop."""
    height, width = x.shape[1:3]
    y = F.pad(block.norm1(x), (0, 0, 0, -width % 4, 0, -height % 4))
    padded = (y.shape[1], y.shape[2])
    mask = None
    if any(block.shift_size):
        y = torch.roll(y, (-2, -2), dims=(1, 2))
        mask = shifted_window_mask(padded, WINDOW, block.shift_size, x.device).to(x)
    windows = block.attn(window_partition(y, WINDOW).flatten(1, 2), mask=mask).unflatten(1, WINDOW)
    y = window_reverse(windows, WINDOW, *padded)
    if mask is not None:
        y = torch.roll(y, (2, 2), dims=(1, 2))
    x = x + y[:, :height, :width]
    return x + block.mlp(block.norm2(x))


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("size", [(8, 12), (9, 7), (4, 13)], ids=str)
def test_block__has_the_values_and_gradients_of_padded_windows(size: tuple[int, int], shift: int) -> None:
    block = timm_block(shift)
    ours = PaddedSwinBlock(copy.deepcopy(block))
    assert ours.state_dict().keys() == {name for name in block.state_dict() if name != "attn_mask"}
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    expected, found = published(block, inputs[0]), ours(inputs[1])
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(x)
    for y in (expected, found):
        (weights * y).sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    gradients = dict(block.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad)


@pytest.mark.parametrize("size", [(8, 12), (9, 7)], ids=str)
def test_windows__gradients_are_those_of_index_select(size: tuple[int, int]) -> None:
    windows = Windows.of(size, WINDOW, (2, 2), torch.device("cpu"))
    count = size[0] * size[1]
    tokens = torch.randn(2, count + (len(windows.padding) > 0), 3, dtype=torch.float64, requires_grad=True)
    cells = torch.randn(2, len(windows.tokens), 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(windows.gather, tokens)
    assert torch.autograd.gradcheck(windows.give_back, cells)
    torch.testing.assert_close(windows.give_back(windows.gather(tokens)), tokens[:, :count])


@pytest.mark.parametrize("site", ["attn.qkv", "attn.proj", "attn", "mlp.fc1"])
def test_block__takes_deltas_at_its_maps(site: str) -> None:
    block = PaddedSwinBlock(timm_block(2)).double().eval()
    x = torch.randn(2, 9, 7, 12, dtype=torch.float64)
    # torch attends by another formula where the bias table requires a gradient
    block.requires_grad_(False)
    expected = block(x)
    method = Adapter(width=4) if site == "attn" else LoRA(rank=2)
    inject(block, Plan({site: method}))
    block.double()
    check(block, x)
    assert torch.equal(block(x), expected)
    block(x).sum().backward()
    assert all(p.grad is not None for p in block.parameters() if p.requires_grad)


def test_block__merges_deltas_that_change_the_padding() -> None:
    block = PaddedSwinBlock(timm_block(2)).double().eval()
    x = torch.randn(2, 9, 7, 12, dtype=torch.float64)
    inject(block, Plan({"attn.qkv": ScaleShift()}))
    block.double()
    with torch.no_grad():
        for parameter in block.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
        expected = block(x)
        merge(block)
        torch.testing.assert_close(block(x), expected)
