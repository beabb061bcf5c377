"""The low-rank updates of a batch in which each image has its own adapter."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from vispeft_kernels.lora import lora_segments

from vispeft.peft.methods.lora import LinearLoRA


def update_segments(x: Tensor, y: Tensor, base: nn.Module | None, loras: Sequence[LinearLoRA | None]) -> Tensor:
    """Return y with the update of each image on its rows; None for an image without one.

    x: [B * k, ..., in]; y: [B * k, ..., out]; base: as in `Delta.forward`
    loras: of B images, with the same `column_offsets`
    """
    offsets = next((lora.column_offsets for lora in loras if lora is not None), (0,))
    rows = x.shape[:-1].numel() // len(loras)
    return lora_segments(
        y,
        x,
        [None if lora is None else (lora.a, lora.b) for lora in loras],
        [1.0 if lora is None else lora.scale for lora in loras],
        [rows] * len(loras),
        column_offsets=offsets,
        overwrite=base is not None,
    )


def have_equal_columns(loras: Sequence[LinearLoRA | None]) -> bool:
    """Return True for updates of the same columns of the output."""
    return len({lora.column_offsets for lora in loras if lora is not None}) <= 1
