"""Deltas in half precision and under autocast."""

import pytest
import torch
from torch import Tensor, nn

from vispeft.peft import BOFT, OFT, AdaLoRA, DoRA, FourierFT, LoHa, LoKr, LoRA, Method, Plan, VeRA, inject, merge


class Table(nn.Module):
    """A learned table that is added, as queries and positions are. x: [B, 8, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(8, 6))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


METHODS = [LoRA(2), AdaLoRA(2), DoRA(2), VeRA(2), LoHa(2), LoKr(2), FourierFT(9), OFT(2), BOFT(2, 1)]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_parameter__is_unchanged_at_the_start_under_autocast(method: Method) -> None:
    torch.manual_seed(0)
    model, x = Table(), torch.zeros(2, 8, 6)
    inject(model, Plan({"table": method}))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(x)[0], model.parametrizations.table.original)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_deltas__run_and_merge_after_a_change_of_precision(case, build, images: Tensor, dtype: torch.dtype) -> None:
    model = build()
    inject(model, case.plan)
    expected = model(images)
    model.to(dtype)
    torch.testing.assert_close(model(images.to(dtype)).float(), expected, rtol=0.1, atol=0.1)
    if case.merges:
        merge(model)
        torch.testing.assert_close(model(images.to(dtype)).float(), expected, rtol=0.1, atol=0.1)
