"""Dropout masks that are drawn again from their seed rather than kept."""

from collections.abc import Iterator

import torch
from torch import Tensor

# rows of one mask: small enough to stay in cache and never to be the size of an activation
BLOCK_ROWS = 512


def new_seed() -> int:
    """A seed from torch's CPU generator, so that `torch.manual_seed` decides the masks. No device is waited for."""
    return int(torch.randint(2**62, (), device="cpu").item())


def masks(x: Tensor, dropout: float, seed: int) -> Iterator[tuple[slice, Tensor]]:
    """Zero-one masks for the rows of x [M, K], block by block: the same blocks and masks for the same seed."""
    generator = torch.Generator(x.device).manual_seed(seed)
    for start in range(0, x.shape[0], BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, x.shape[0]))
        mask = torch.empty(rows.stop - start, x.shape[1], dtype=x.dtype, device=x.device)
        yield rows, mask.bernoulli_(1 - dropout, generator=generator)
