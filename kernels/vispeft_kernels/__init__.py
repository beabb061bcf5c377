"""Fast operations for parameter-efficient fine-tuning: pure functions of torch tensors, each with a reference."""

from vispeft_kernels.deformable import deformable_attention
from vispeft_kernels.errors import KernelError

__all__ = ["KernelError", "deformable_attention"]
