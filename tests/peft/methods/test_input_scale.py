"""IA3 on the input of a map."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft import IA3, LoRA, Plan, count, inject, merge


def scaled(module: nn.Module, *others: LoRA) -> tuple[nn.Module, Tensor]:
    """Return a model with random scales at its one map, and the scales."""
    model = nn.Sequential(module).double()
    inject(model, Plan({"0": (IA3(side="input"), *others)}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model, module.ia3.gain


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: nn.Linear(6, 4), (2, 3, 6)),
        (lambda: nn.Conv2d(6, 4, 3, stride=2, padding=1, padding_mode="reflect"), (2, 6, 5, 7)),
        (lambda: nn.Conv2d(6, 4, 3, padding=2, dilation=2, groups=2), (2, 6, 5, 7)),
    ],
    ids=["linear", "conv", "grouped conv"],
)
def test_ia3__scales_the_input_and_merges(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    module = build()
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model, gain = scaled(module)
    frozen = module.forward
    y = model(x)
    columns = gain.view(-1, 1, 1) if len(shape) == 4 else gain
    expected = frozen(x * columns)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(
        torch.autograd.grad(y.square().sum(), gain)[0], torch.autograd.grad(expected.square().sum(), gain)[0]
    )
    assert count(model).trainable == 6
    merge(model)
    torch.testing.assert_close(model(x), y)


def test_ia3__gives_the_deltas_after_it_the_scaled_input_merged_or_not() -> None:
    torch.manual_seed(0)
    module = nn.Linear(6, 4)
    model, gain = scaled(module, LoRA(2))
    x = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weight = module.weight + module.lora.b @ module.lora.a
    y = model(x)
    torch.testing.assert_close(y, F.linear(x * gain, weight, module.bias))
    merge(model)
    torch.testing.assert_close(model(x), y)


def test_ia3__refuses_other_sites_and_options_by_name() -> None:
    with pytest.raises(PlanError, match="`side` must be one of input, output, but is 'both'"):
        IA3(side="both")
    with pytest.raises(PlanError, match="`parts` must be empty with `side: input`"):
        IA3(parts="v", side="input")
    with pytest.raises(
        PlanError, match=r"`side: input` serves nn\.Linear and nn\.Conv2d modules, but this is a LayerNorm"
    ):
        inject(nn.Sequential(nn.LayerNorm(4)), Plan({"0": IA3(side="input")}))
