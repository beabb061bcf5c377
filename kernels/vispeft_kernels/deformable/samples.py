"""Where deformable attention looks, told in either of two ways."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vispeft_kernels.deformable.padded_levels import Shapes


@dataclass(frozen=True)
class Samples:
    """Where bags look and what each look counts.

    where: [B, Q, heads, levels, points, 2]; share: [B, Q, heads, levels, points]. Without a reference these are
    locations and weights; with points [B or 1, Q, 2] or boxes [B or 1, Q, 4], offsets around them and logits.
    """

    where: Tensor
    share: Tensor
    reference: Tensor | None = None

    @property
    def size(self) -> int:
        """Samples of one bag."""
        return self.where.shape[3] * self.where.shape[4]

    @property
    def mode(self) -> int:
        """What the kernels call REFERENCE."""
        return 0 if self.reference is None else self.reference.shape[-1]

    @property
    def reference_stride(self) -> int:
        """Places from one image's reference to the next's."""
        return 0 if self.reference is None or self.reference.shape[0] == 1 else self.reference.shape[1]

    def resolve(self, shapes: Shapes) -> tuple[Tensor, Tensor]:
        """Locations and weights, in float32 at least, where offsets and logits are given."""
        if self.reference is None:
            return self.where, self.share
        dtype = torch.promote_types(self.where.dtype, torch.float32)
        offsets, logits = self.where.to(dtype), self.share.to(dtype)
        reference = self.reference[:, :, None, None, None]  # [B or 1, Q, 1, 1, 1, 2 or 4]
        if self.mode == 4:
            steps = offsets * (reference[..., 2:] * (0.5 / offsets.shape[4]))
        else:
            sizes = torch.tensor([(width, height) for height, width in shapes], dtype=dtype, device=offsets.device)
            steps = offsets / sizes[:, None, :]
        return reference[..., :2] + steps, logits.flatten(3).softmax(-1).view(logits.shape)
