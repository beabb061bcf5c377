"""Helpers of all Triton kernels: checks of support, configurations, and starting a kernel.

Nothing here imports triton before a kernel is started, so that a machine without it can use the rest.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

OLDEST_TRITON = (3, 6)
OLDEST_CAPABILITY = (8, 0)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGEST_REGISTERS = 255  # per thread, on every NVIDIA GPU
SMALLEST_DOT = 16  # fewest rows, columns or ranks in a product on tensor cores


@dataclass(frozen=True)
class Config:
    """Block sizes of one kernel by the kernel's own names, warps, and stages of its pipelined loop.

    registers: largest number per thread; if given, ptxas does not spill registers in order to use fewer
    """

    blocks: Mapping[str, int] = field(hash=False)
    warps: int
    stages: int
    registers: int | None = None

    @property
    def options(self) -> dict[str, int]:
        """Options that Triton takes beside the blocks."""
        limit = {} if self.registers is None else {"maxnreg": self.registers}
        return {"num_warps": self.warps, "num_stages": self.stages, **limit}


def unsupported_reason(tensors: Sequence[Tensor]) -> str:
    """Return the reason that no Triton kernel can serve these tensors, as a clause; empty if one can."""
    first = tensors[0]
    if missing := str(_missing_triton()):
        return missing
    if any(tensor.device != first.device for tensor in tensors):
        return "its tensors are on different devices"
    wrong = next((tensor.dtype for tensor in tensors if tensor.dtype not in DTYPES), None)
    if wrong is not None:
        return f"a tensor is {wrong}; float32, bfloat16 and float16 are served"
    if first.device.type == "cuda":
        return str(_unsupported_device(first.device.index or 0))
    if first.device.type == "cpu" and is_interpreted():
        return ""
    return f"its tensors are on {first.device.type}, not on a CUDA device"


def is_interpreted() -> bool:
    """Return true if Triton's kernels run in its interpreter: `TRITON_INTERPRET=1`, set before triton was imported."""
    return os.environ.get("TRITON_INTERPRET", "") == "1"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _missing_triton() -> str:
    """Return the reason that the installed Triton cannot serve; empty if it can."""
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "triton is not installed"
    found = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    return "" if found >= OLDEST_TRITON else f"triton is {version}, but 3.6 or newer is needed"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _unsupported_device(index: int) -> str:
    """Return the reason that the CUDA device of this index cannot run the kernels; empty if it can."""
    if torch.version.hip is not None:
        return "its tensors are on an AMD device, which is not tested"
    found = torch.cuda.get_device_capability(index)
    return "" if found >= OLDEST_CAPABILITY else f"the device is sm_{found[0]}{found[1]}, but sm_80 or newer is needed"


def capability(device: torch.device) -> int:
    """Return the device's compute capability as one number, 80 or 90; the newest known one in the interpreter."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def start(
    kernel: Any, grid: tuple[int, ...], args: Sequence[Any], constants: Mapping[str, Any], config: Config
) -> None:
    """Run a kernel over a grid on the device of its first argument; a grid without programs is not started."""
    if 0 in grid:
        return
    with torch.cuda.device(args[0].get_device()):
        kernel[grid](*args, **config.blocks, **constants, **config.options)


def precision(dtype: torch.dtype) -> str:
    """Return Triton's precision of products: tf32 for float32 if torch allows that, else ieee."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"


def computable(tensor: Tensor) -> Tensor:
    """Return the tensor, as float32 if it is bfloat16 in the interpreter, which cannot compute in that dtype."""
    return tensor.float() if tensor.dtype == torch.bfloat16 and is_interpreted() else tensor


def rows_of(tensor: Tensor) -> Tensor:
    """Return the tensor [..., C] as rows [M, C] with contiguous columns; copied only if they are not contiguous."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def padded(size: int) -> int:
    """Return the power of two that a block needs for `size` ranks or channels, at least `SMALLEST_DOT`."""
    return max(SMALLEST_DOT, 1 << (size - 1).bit_length())


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)
