"""Fast operations for parameter-efficient fine-tuning: pure functions of torch tensors with plain references."""

from vispeft_kernels.adapter import bottleneck
from vispeft_kernels.deformable import deformable_attention
from vispeft_kernels.errors import KernelError
from vispeft_kernels.lora import lora_add, lora_linear

__all__ = ["KernelError", "bottleneck", "deformable_attention", "lora_add", "lora_linear"]
