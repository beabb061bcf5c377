"""Reproducible arithmetic on a CPU: the same operands give the same bits at any address in memory.

MKL, which multiplies torch's matrices on x86-64, picks some of its kernels by the alignment of the operands on
processors that are not Intel's: two equal models then differ in the last bits. The environment variable `MKL_CBWR`
(conditional numerical reproducibility) prevents that. It has an effect only if set before MKL's first product.
"""

from __future__ import annotations

import os
import platform
from functools import cache
from typing import TYPE_CHECKING

from vispeft.training.processor import cpu_info

if TYPE_CHECKING:
    from torch import Tensor

MODE_VARIABLE = "MKL_CBWR"
# always the same kernels, the fastest that this processor has; `COMPATIBLE` takes twice the time
MODE = "AUTO"
# rows, columns and inner size of products whose kernel depends on alignment where any does
_PROBED = ((1, 64, 64), (2, 33, 65), (7, 144, 48), (12, 50, 100), (33, 17, 300), (64, 256, 128))
_OFFSETS = (1, 3, 4, 8)


def request_reproducible_arithmetic() -> None:
    """Ask MKL for reproducible arithmetic where the processor needs it, in this process and its child processes.

    Call it before any computation. A value of `MKL_CBWR` that the user set is kept.
    """
    if depends_on_alignment(cpu_info("vendor_id") or platform.processor(), platform.machine()):
        os.environ.setdefault(MODE_VARIABLE, MODE)


def depends_on_alignment(vendor: str, machine: str) -> bool:
    """Tell whether MKL's results depend on alignment by default on this kind of processor.

    vendor: as in /proc/cpuinfo, such as "GenuineIntel" or "AuthenticAMD"; machine: as of `platform.machine()`
    """
    return machine.lower() in ("x86_64", "amd64") and "GenuineIntel" not in vendor


@cache
def is_reproducible() -> bool:
    """Tell whether products of equal matrices have equal bits at other addresses, by a test of one millisecond.

    The result is fixed after the first product of a process.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    for rows, columns, inner in _PROBED:
        x = torch.randn(rows, inner, generator=generator)
        weight = torch.randn(columns, inner, generator=generator)
        product, vector = x @ weight.T, weight @ x[0]
        for offset in _OFFSETS:
            moved_x, moved_weight = _moved(x, offset), _moved(weight, offset)
            if not torch.equal(moved_x @ moved_weight.T, product) or not torch.equal(moved_weight @ moved_x[0], vector):
                return False
    return True


def describe_arithmetic() -> dict[str, str | bool | None]:
    """Return MKL's mode (None: its own choice), torch's vector instructions, and the outcome of `is_reproducible`."""
    import torch

    return {
        "mkl_cbwr": os.environ.get(MODE_VARIABLE),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "is_reproducible": is_reproducible(),
    }


def _moved(matrix: Tensor, offset: int) -> Tensor:
    """Return a copy of a matrix that starts `offset` values after an aligned address."""
    buffer = matrix.new_empty(matrix.numel() + offset)
    return buffer[offset:].view(matrix.shape).copy_(matrix)
