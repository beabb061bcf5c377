"""Masks of the attention of queries beside the tokens of an image."""

from __future__ import annotations

import torch

from vispeft.models.plain_mask.attention_mask import attention_mask
from vispeft.structures import LayerPredictions


def test_attention_mask__keeps_queries_to_the_patches_of_their_own_mask() -> None:
    features = torch.zeros(1, 2, 4, 4)
    features[0, 0, :2], features[0, 0, 2:], features[0, 1] = 1, -1, -1
    layer = LayerPredictions(torch.zeros(1, 2, 4), None, torch.eye(2)[None], features)
    mask = attention_mask(layer, (2, 2), 1.0, num_tokens=2 + 1 + 4)
    assert mask is not None
    expected = torch.ones(7, 7, dtype=torch.bool)
    expected[0, 5:] = False  # the upper half is the first query's
    expected[1, 3:] = False  # the second query has no mask: queries and prefix are left
    assert torch.equal(mask[0, 0], expected)
    assert attention_mask(layer, (2, 2), 0.0, num_tokens=7) is None


def test_attention_mask__masks_a_share_of_the_queries() -> None:
    torch.manual_seed(0)
    layer = LayerPredictions(torch.zeros(1, 2000, 4), None, torch.ones(1, 2000, 1), -torch.ones(1, 1, 2, 2))
    mask = attention_mask(layer, (1, 1), 0.25, num_tokens=2001)
    assert mask is not None
    assert 0.2 < (~mask[0, 0, :2000, -1]).float().mean() < 0.3
