"""Learned queries of a weights file for a model with more of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

# of the standard deviation of the learned rows: enough for two copies to become different objects
_NOISE = 0.05


def fit_query_rows(state: Mapping[str, Tensor], names: Sequence[str], num_queries: int) -> dict[str, Tensor]:
    """Return the state with rows for `num_queries` queries, where it has fewer; the given rows stay first, unchanged.

    Further queries repeat the learned ones in turn, with a little noise, which is always the same. More queries than
    asked for are left alone: which of them could go is not known.

    names: tensors [Q, ...] with one row for each query, such as content and position; a new query repeats one and the
        same learned query in all of them
    """
    fitted = dict(state)
    generator = torch.Generator().manual_seed(0)
    for name in names:
        if name not in state or not 0 < len(state[name]) < num_queries:
            continue
        rows = state[name]
        values = rows.float()
        source = torch.arange(num_queries - len(rows)) % len(rows)
        noise = torch.randn(len(source), *rows.shape[1:], generator=generator) * (_NOISE * values.std())
        fitted[name] = torch.cat((rows, (values[source] + noise).to(rows.dtype)))
    return fitted
