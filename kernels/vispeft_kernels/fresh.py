"""Results of autograd functions that the caller may change in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def reshaped(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a new contiguous tensor in another shape, and not as a view.

    Autograd refuses to change a view in place that was made inside an autograd function. rows: without another user
    """
    result: Tensor = torch.ops.aten._unsafe_view.default(rows, list(shape))
    return result
