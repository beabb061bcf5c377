"""A weights file with fewer queries fits a model with more."""

from __future__ import annotations

import pytest
import torch

from vispeft.errors import CheckpointError
from vispeft.models.query_rows import fit_query_rows
from vispeft.models.registry import build_model

VIT = {"backbone": "vit_tiny_patch16_224", "backbone_options": {"depth": 3, "embed_dim": 48}, "num_classes": 2}


def test_fit_query_rows__repeats_rows_with_noise() -> None:
    state = {"a": torch.randn(3, 8), "b": torch.randn(3, 4), "c": torch.randn(3, 4)}
    fitted = fit_query_rows(state, ("a", "b"), 8)
    assert torch.equal(fitted["a"][:3], state["a"])
    assert torch.equal(fitted["c"], state["c"])
    for name in ("a", "b"):
        copies = fitted[name][3:]
        assert len(copies) == 5
        distance = torch.cdist(copies, state[name])
        assert distance.argmin(1).tolist() == [0, 1, 2, 0, 1]
        assert (distance.min(1).values > 0).all()
        assert torch.equal(copies, fit_query_rows(state, ("a", "b"), 8)[name][3:])
    assert torch.equal(fit_query_rows(state, ("a",), 2)["a"], state["a"])


def test_load_tensors__gives_eomt_further_queries() -> None:
    torch.manual_seed(0)
    small, large = (build_model("eomt", size="tiny", num_queries=n, **VIT).eval() for n in (6, 40))
    large.load_tensors(small.state_dict(), source="small")
    assert large.num_queries == 40
    assert torch.equal(large.queries[:6], small.queries)
    with pytest.raises(CheckpointError, match="queries"):
        small.load_tensors(large.state_dict(), source="large")


def test_load_tensors__gives_mask_dino_more_of_its_cells() -> None:
    torch.manual_seed(0)
    small, large = (build_model("mask_dino", size="tiny", num_queries=n, **VIT).eval() for n in (6, 20))
    large.load_tensors(small.state_dict(), source="small")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        few, many = small(images), large(images)
    assert many.final.class_logits.shape[1] == 20
    # the best cells are the same; only the attention among the queries differs behind them
    assert few.proposals is not None
    assert many.proposals is not None
    torch.testing.assert_close(many.proposals.class_logits[:, :6], few.proposals.class_logits)
