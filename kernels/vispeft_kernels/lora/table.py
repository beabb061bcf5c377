"""How the kernels of the low-rank update are cut up, by precision and rank; and where the fused product is the faster.

The configurations are chosen from registers, shared memory and byte counts, as `tests/kernels/test_compile.py` checks
them. `measured.json` beside this file holds the shapes at which the fused product was measured to win, which
`tools/bench_kernels.py --tune` finds and writes; any other shape takes the library's product and then adds to it.
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
SINGLE_PRODUCTS: tuple[Product, ...] = (((64, 64, 32, 8), 8, 2), ((32, 64, 32, 8), 4, 2))
# elements of a block; with dropout a larger one does not fit the registers
LARGEST_BLOCK, LARGEST_MASKED = 256 * 128, 128 * 128


def is_half(dtype: torch.dtype) -> bool:
    return dtype.itemsize == 2


def shrink(ranks: int, dtype: torch.dtype) -> Config:
    """For `lora_shrink_kernel`; ranks: of all parts together."""
    block = min(padded(ranks), 128)
    if not is_half(dtype):
        return Config({"BLOCK_M": 32, "BLOCK_K": 32, "BLOCK_R": min(block, 64)}, 4, 2)
    return Config({"BLOCK_M": 64, "BLOCK_K": 64, "BLOCK_R": block}, 4, 4 if block <= 64 else 3)


def expand(rank: int, dtype: torch.dtype) -> Config:
    """For `lora_expand_kernel`; rank: of one part."""
    if not is_half(dtype):
        return Config({"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_R": min(padded(rank), 16)}, 4, 2)
    return Config({"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_R": min(padded(rank), 64)}, 4, 2)


def grad(rank: int, dtype: torch.dtype) -> Config:
    """For `lora_grad_kernel`; all ranks of one part lie in one block, so that the gradient is read once."""
    block = padded(rank)
    if not is_half(dtype):
        rows, warps = {16: (64, 4), 32: (64, 4), 256: (16, 8)}.get(block, (32, 8))
        return Config({"BLOCK_M": rows, "BLOCK_N": 32, "BLOCK_R": block}, warps, 2 if block <= 64 else 1)
    if block <= 32:
        return Config({"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_R": block}, 4, 3)
    if block <= 128:
        return Config({"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_R": block}, 8, 3)
    return Config({"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_R": block}, 8, 2)


def grad_a(ranks: int, dtype: torch.dtype) -> Config:
    """For `lora_grad_a_kernel`; ranks: of all parts together."""
    if not is_half(dtype):
        blocks = {"CHUNK": CHUNK, "BLOCK_M": 32, "BLOCK_K": 64, "BLOCK_R": min(padded(ranks), 32)}
        return Config(blocks, 4, 2)
    blocks = {"CHUNK": CHUNK, "BLOCK_M": 64, "BLOCK_K": 64, "BLOCK_R": min(padded(ranks), 128)}
    return Config(blocks, 4, 3)


def products(rank: int, dtype: torch.dtype, has_dropout: bool = False) -> list[Config]:
    """The candidates for `lora_linear_kernel`, best guess first; rank: of one part."""
    table = HALF_PRODUCTS if is_half(dtype) else SINGLE_PRODUCTS
    largest = LARGEST_MASKED if has_dropout else LARGEST_BLOCK
    return [
        Config(
            {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP": group, "BLOCK_R": min(padded(rank), k)}, warps, stages
        )
        for (m, n, k, group), warps, stages in table
        if m * n <= largest
    ]


@dataclass(frozen=True)
class Shape:
    """What decides whether the fused product pays: out = x W^T is [rows, columns] from `features`."""

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
        """Its name in `measured.json`."""
        return f"sm_{self.arch} {self.way} {self.features}x{self.columns} r{self.rank} {self.dtype}{self.suffix}"


@lru_cache(maxsize=1)
def _measured() -> dict[str, int]:
    """By shape, the candidate that was measured to be faster than the library's product and an update."""
    table: dict[str, int] = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    return table


def best_product(shape: Shape, dtype: torch.dtype) -> Config | None:
    """The candidate to use; None where none was measured to win, which is to say for any shape not in the table."""
    index = _measured().get(shape.key)
    return None if index is None else products(shape.rank, dtype, shape.has_dropout)[index]


def every_configuration() -> Iterator[tuple[str, torch.dtype, Config, dict[str, Any]]]:
    """Each kernel of this operation with each configuration and each kind of work that it may be started with."""
    ieee = {"PRECISION": "ieee"}
    for dtype, how in ((torch.bfloat16, ieee), (torch.float32, ieee), (torch.float32, {"PRECISION": "tf32"})):
        for rank in (16, 32, 64, 128, 256):
            for dropout in (False, True):
                work = {"SEGMENTED": False, "DROPOUT": dropout, **how}
                yield "lora_shrink_kernel", dtype, shrink(rank, dtype), work
                yield "lora_grad_a_kernel", dtype, grad_a(rank, dtype), work
                yield "lora_expand_kernel", dtype, expand(rank, dtype), {**work, "B_BY_RANK": dropout, "HAS_Y": True}
            yield "lora_grad_kernel", dtype, grad(rank, dtype), {"PARTS": 1, "SEGMENTED": False, **how}
            for config in products(rank, dtype):
                work = {"DROPOUT": False, **how}
                forward, backward = {"WEIGHT_BY_FEATURE": False, "HAS_BIAS": True}, {"WEIGHT_BY_FEATURE": True}
                yield "lora_linear_kernel", dtype, config, {"PARTS": 1, **forward, **work}
                yield "lora_linear_kernel", dtype, config, {"PARTS": 1, "HAS_BIAS": False, **backward, **work}
    half = torch.bfloat16
    segmented = {"SEGMENTED": True, **ieee}
    yield "lora_shrink_kernel", half, shrink(16, half), {"DROPOUT": False, **segmented}
    yield "lora_grad_kernel", half, grad(16, half), {"PARTS": 3, **segmented}
    work = {"HAS_BIAS": False, **ieee}
    for config in products(16, half):
        yield "lora_linear_kernel", half, config, {"PARTS": 3, "WEIGHT_BY_FEATURE": False, "DROPOUT": False, **work}
    for config in products(16, half, has_dropout=True):
        yield "lora_linear_kernel", half, config, {"PARTS": 1, "WEIGHT_BY_FEATURE": True, "DROPOUT": True, **work}
