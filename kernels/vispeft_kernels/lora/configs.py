"""Block sizes of the low-rank update's kernels by precision and rank, and the shapes with a fast fused product.

The configurations are chosen from registers, shared memory and byte counts, as `tests/kernels/test_compile.py` checks
them. `measured.json` beside this file holds the shapes at which the fused product was measured to be faster.
`tools/bench_kernels.py --tune` writes it. Any other shape takes the library's product and then adds to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from vispeft_kernels.launch import Config, padded

LARGEST_RANK = 256
LARGEST_PARTS = 3
CHUNK = 512  # rows that one program sums for the gradient of a
MEASURED = Path(__file__).with_name("measured.json")

# (block m, n, k, group) of the fused product, warps, stages
Product = tuple[tuple[int, int, int, int], int, int]
HALF_PRODUCTS: tuple[Product, ...] = (
    ((128, 128, 64, 8), 8, 3),
    ((128, 256, 64, 8), 8, 3),
    ((256, 128, 64, 8), 8, 3),
    ((128, 128, 64, 8), 4, 3),
    ((128, 64, 64, 8), 4, 4),
    ((64, 128, 64, 8), 4, 4),
)
# before sm_90 a product's operands pass through registers, and its shared memory may be half as large
HALF_PRODUCTS_80: tuple[Product, ...] = (
    ((128, 128, 32, 8), 8, 4),
    ((128, 256, 32, 8), 8, 3),
    ((256, 128, 32, 8), 8, 3),
    ((128, 128, 64, 8), 8, 3),
    ((64, 128, 32, 8), 4, 4),
    ((128, 64, 32, 8), 4, 4),
)
SINGLE_PRODUCTS: tuple[Product, ...] = (((64, 64, 32, 8), 8, 2), ((32, 64, 32, 8), 4, 2))
# elements of a block to a thread; with dropout more do not fit the registers
LARGEST_SHARE, LARGEST_MASKED = 128, 64


def is_half(dtype: torch.dtype) -> bool:
    return dtype.itemsize == 2


def shrink(ranks: int, dtype: torch.dtype) -> Config:
    """Configuration of `lora_shrink_kernel`. ranks: of all parts together."""
    block = min(padded(ranks), 128)
    if not is_half(dtype):
        return Config({"BLOCK_M": 32, "BLOCK_K": 32, "BLOCK_R": min(block, 64)}, 4, 2)
    return Config({"BLOCK_M": 64, "BLOCK_K": 64, "BLOCK_R": block}, _warps(block), 3)


def expand(rank: int, dtype: torch.dtype) -> Config:
    """Configuration of `lora_expand_kernel`. rank: of one part."""
    if not is_half(dtype):
        return Config({"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_R": min(padded(rank), 16)}, 4, 2)
    return Config({"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_R": min(padded(rank), 64)}, 4, 2)


def grad(rank: int, dtype: torch.dtype) -> Config:
    """Configuration of `lora_grad_kernel`; one block holds all ranks of a part, so that the gradient is read once."""
    block = padded(rank)
    if not is_half(dtype):
        rows, warps = {16: (64, 4), 32: (64, 8), 64: (32, 8)}.get(block, (16, 8))
        return Config({"BLOCK_M": rows, "BLOCK_N": 32, "BLOCK_R": block}, warps, 2 if block <= 64 else 1)
    if block <= 32:
        return Config({"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_R": block}, 4, 3)
    if block <= 128:
        return Config({"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_R": block}, 8, 3)
    return Config({"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_R": block}, 8, 2)


def grad_a(ranks: int, dtype: torch.dtype) -> Config:
    """Configuration of `lora_grad_a_kernel`. ranks: of all parts together."""
    if not is_half(dtype):
        blocks = {"CHUNK": CHUNK, "BLOCK_M": 32, "BLOCK_K": 64, "BLOCK_R": min(padded(ranks), 32)}
        return Config(blocks, 4, 2)
    block = min(padded(ranks), 128)
    return Config({"CHUNK": CHUNK, "BLOCK_M": 64, "BLOCK_K": 64, "BLOCK_R": block}, _warps(block), 3)


def _warps(block: int) -> int:
    """Number of warps: four are best, but for 32 ranks ptxas makes them spill although registers are free."""
    return 8 if block == 32 else 4


def products(rank: int, dtype: torch.dtype, arch: int, has_dropout: bool = False) -> list[Config]:
    """Candidates for `lora_linear_kernel`, best guess first. rank: of one part; arch: 80, 90."""
    table = SINGLE_PRODUCTS if not is_half(dtype) else HALF_PRODUCTS if arch >= 90 else HALF_PRODUCTS_80
    largest = LARGEST_MASKED if has_dropout else LARGEST_SHARE
    return [
        Config(
            {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP": group, "BLOCK_R": min(padded(rank), k)}, warps, stages
        )
        for (m, n, k, group), warps, stages in table
        if m * n <= largest * 32 * warps
    ]


@dataclass(frozen=True)
class Shape:
    """Shape of a product out = x W^T, [rows, columns] from `features`, that may be fused."""

    arch: int  # 80, 90
    way: str  # forward, or backward, the gradient of the input
    features: int
    columns: int
    rank: int  # padded
    dtype: str  # bfloat16
    has_dropout: bool = False

    @property
    def suffix(self) -> str:
        return " dropout" if self.has_dropout else ""

    @property
    def key(self) -> str:
        """Key in `measured.json`."""
        return f"sm_{self.arch} {self.way} {self.features}x{self.columns} r{self.rank} {self.dtype}{self.suffix}"


@lru_cache(maxsize=1)
def _measured() -> dict[str, int]:
    """Return by shape the index of the candidate that was faster than the library's product and an update."""
    table: dict[str, int] = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    return table


def best_product(shape: Shape, dtype: torch.dtype) -> Config | None:
    """Return the candidate to use; None for a shape at which none was measured to be faster."""
    index = _measured().get(shape.key)
    return None if index is None else products(shape.rank, dtype, shape.arch, shape.has_dropout)[index]


def every_configuration(arch: int) -> Iterator[tuple[str, torch.dtype, Config, dict[str, Any]]]:
    """Each kernel of this operation with each configuration and each set of constants."""
    for dtype, precision in ((torch.bfloat16, "ieee"), (torch.float32, "ieee"), (torch.float32, "tf32")):
        how = {"PRECISION": precision}
        for rank in (16, 32, 64, 128, 256):
            for dropout in (False, True):
                work = {"DROPOUT": dropout, **how}
                yield "lora_shrink_kernel", dtype, shrink(rank, dtype), work
                yield "lora_grad_a_kernel", dtype, grad_a(rank, dtype), work
                yield "lora_expand_kernel", dtype, expand(rank, dtype), {**work, "B_BY_RANK": dropout}
            for parts in (1, LARGEST_PARTS):
                yield "lora_grad_kernel", dtype, grad(rank, dtype), {"PARTS": parts, **how}
            for dropout in (False, True):
                backward = {"PARTS": 1, "WEIGHT_BY_FEATURE": True, "HAS_BIAS": False, "DROPOUT": dropout, **how}
                yield from (
                    ("lora_linear_kernel", dtype, one, backward) for one in products(rank, dtype, arch, dropout)
                )
            for parts in (1, LARGEST_PARTS):
                forward = {"PARTS": parts, "WEIGHT_BY_FEATURE": False, "HAS_BIAS": True, "DROPOUT": False, **how}
                yield from (("lora_linear_kernel", dtype, one, forward) for one in products(rank, dtype, arch))
