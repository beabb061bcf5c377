"""Low-rank updates of several adapters at one linear map: one for each image of a batch, or all with their weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from vispeft_kernels.lora import lora_add, lora_segments, lora_update

from vispeft.peft.methods.base_modules import is_plain_linear
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


def update_weighted(
    x: Tensor, y: Tensor, base: nn.Module | None, loras: Sequence[LinearLoRA], weights: Sequence[Tensor]
) -> Tensor:
    """Return y with the sum of weighted updates, as one update of the summed rank.

    x: [..., in]; y: [..., out]; base: as in `Delta.forward`
    loras: with the same `column_offsets`; weights: theirs, without dimensions
    """
    offsets = loras[0].column_offsets
    # the factors of a part stay together
    scaled = [
        lora.a.view(len(offsets), -1, lora.a.shape[1]) * (weight * lora.scale)
        for lora, weight in zip(loras, weights, strict=True)
    ]
    a, b = torch.cat(scaled, 1).flatten(0, 1), torch.cat([lora.b for lora in loras], 1)
    if base is None or not is_plain_linear(base):
        return lora_add(y, x, a, b, 1.0, column_offsets=offsets)
    recompute = loras[0].recomputed_inputs.recompute_of(x)
    return lora_update(y, x, base.weight, base.bias, a, b, 1.0, column_offsets=offsets, recompute=recompute)


def have_equal_columns(loras: Sequence[LinearLoRA | None]) -> bool:
    """Return True for updates of the same columns of the output."""
    return len({lora.column_offsets for lora in loras if lora is not None}) <= 1
