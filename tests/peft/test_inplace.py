"""Models that change what a site gives in place: the backward pass must not notice."""

import copy

import pytest
import torch
from torch import Tensor, nn

from vispeft.peft import Plan, check, inject, train_mode
from vispeft.peft.registry import method_from_dict

# those whose outputs come from autograd functions and layouts of their own; tests/peft/test_promises.py has all methods
CASES = [
    ("lora", {"rank": 2}),
    ("dora", {"rank": 2}),
    ("adapter", {"width": 4}),
    ("adapter", {"width": 4, "count": 2}),
    ("adapter", {"width": 4, "parallel": True}),
    ("scale_shift", {}),
]


class InPlace(nn.Module):
    """A map, then an in-place sum on a slice of its output, and an in-place ReLU."""

    def __init__(self, layer: nn.Module, dim: int) -> None:
        super().__init__()
        self.layer, self.dim = layer, dim

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        y.narrow(self.dim, 0, 2).add_(1)
        return torch.relu_(y)


def site(kind: str) -> tuple[nn.Module, Tensor]:
    generator = torch.Generator().manual_seed(1)
    if kind == "linear":
        return InPlace(nn.Linear(8, 8), -1), torch.randn(2, 9, 8, generator=generator)
    layout = torch.channels_last if kind == "channels last" else torch.contiguous_format
    images = torch.randn(2, 8, 4, 4, generator=generator).to(memory_format=layout)
    return InPlace(nn.Conv2d(8, 8, 3, padding=1), 1).to(memory_format=layout), images


@pytest.mark.parametrize("kind", ["linear", "convolution", "channels last"])
@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda value: str(value))
def test_gradients__are_those_of_a_copy(name: str, options: dict[str, object], kind: str) -> None:
    model, x = site(kind)
    method = method_from_dict({"method": name, **options})
    inject(model, Plan({"**.layer": method}))
    check(model, x)
    train_mode(model)
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
    twin = copy.deepcopy(model)
    next(module for module in twin.modules() if isinstance(module, InPlace)).layer.register_forward_hook(
        lambda *words: words[-1].clone()
    )
    results = []
    for each in (model, twin):
        each(x).square().sum().backward()
        results.append([parameter.grad for parameter in each.parameters() if parameter.requires_grad])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)
