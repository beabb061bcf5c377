"""Sampling points and attention weights of deformable attention, in either of two forms."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vispeft_kernels.deformable.padded_levels import Shapes


@dataclass(frozen=True, eq=False)
class Samples:
    """Sampling locations and attention weights; or, with reference points, offsets around them and attention logits.

    sampling_locations: [B, Q, heads, levels, points, 2]; attention_weights: [B, Q, heads, levels, points];
    reference_points: points [B or 1, Q, 2] or cxcywh boxes [B or 1, Q, 4]
    """

    sampling_locations: Tensor
    attention_weights: Tensor
    reference_points: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of samples of one query and head."""
        return self.sampling_locations.shape[3] * self.sampling_locations.shape[4]

    @property
    def mode(self) -> int:
        """Size of a reference point, called REFERENCE in the kernels; 0 without reference points."""
        return 0 if self.reference_points is None else self.reference_points.shape[-1]

    @property
    def reference_stride(self) -> int:
        """Rows from one image's reference points to the next's."""
        points = self.reference_points
        return 0 if points is None or points.shape[0] == 1 else points.shape[1]

    def resolve(self, shapes: Shapes) -> tuple[Tensor, Tensor]:
        """Return locations and weights, in float32 at least if they come from offsets and logits."""
        if self.reference_points is None:
            return self.sampling_locations, self.attention_weights
        dtype = torch.promote_types(self.sampling_locations.dtype, torch.float32)
        offsets, logits = self.sampling_locations.to(dtype), self.attention_weights.to(dtype)
        reference = self.reference_points[:, :, None, None, None]  # [B or 1, Q, 1, 1, 1, 2 or 4]
        if self.mode == 4:
            shifts = offsets * (reference[..., 2:] * (0.5 / offsets.shape[4]))
        else:
            sizes = torch.tensor([(width, height) for height, width in shapes], dtype=dtype, device=offsets.device)
            # repeated for each point: a broadcast over rows of two numbers is several times as slow on a CPU
            shifts = offsets / sizes[:, None, :].repeat(1, offsets.shape[4], 1)
        return reference[..., :2] + shifts, logits.flatten(3).softmax(-1).view(logits.shape)
