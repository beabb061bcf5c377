"""Blocks of rows, and dropout masks that are drawn again from their seed rather than kept."""

from collections.abc import Iterator

import torch
from torch import Tensor

# rows of a block: few enough to stay in a processor's cache; on another device, many enough to keep it busy
CPU_ROWS, DEVICE_ROWS = 256, 8192


def blocks(x: Tensor) -> list[slice]:
    """The rows of x [M, K] in blocks."""
    size = CPU_ROWS if x.device.type == "cpu" else DEVICE_ROWS
    return [slice(start, min(start + size, x.shape[0])) for start in range(0, x.shape[0], size)]


def new_seed() -> int:
    """A seed from torch's CPU generator, so that `torch.manual_seed` decides the masks. No device is waited for."""
    return int(torch.randint(2**62, (), device="cpu").item())


def masks(x: Tensor, dropout: float, seed: int) -> Iterator[Tensor]:
    """Zero-one masks for the blocks of x [M, K], one after the other: the same for the same seed."""
    generator = torch.Generator(x.device).manual_seed(seed)
    for block in blocks(x):
        mask = torch.empty(block.stop - block.start, x.shape[1], dtype=x.dtype, device=x.device)
        yield mask.bernoulli_(1 - dropout, generator=generator)
