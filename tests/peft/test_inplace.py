"""Models that change what a site gives in place: the backward pass must not notice."""

import copy

import pytest
import torch
from torch import Tensor, nn

from vispeft.peft import Plan, check, inject, train_mode
from vispeft.peft.registry import known_methods, method_from_dict

OPTIONS = {
    "lora": {"rank": 2},
    "dora": {"rank": 2},
    "adapter": {"width": 4},
    "scale_shift": {},
    "ia3": {},
    "vera": {"rank": 4},
    "adalora": {"rank": 2},
    "loha": {"rank": 2},
    "lokr": {"rank": 2},
    "fourierft": {"frequencies": 8},
    "oft": {"block": 2},
    "boft": {"block": 2, "factors": 2},
    "fact": {"rank": 2, "scale": 1.0},
    "conv_lora": {"rank": 2, "experts": 2},
    "sparse": {"budget": 0.2, "rule": "magnitude"},
    "convpass": {"width": 4},
    "mona": {"width": 4},
    "repadapter": {"width": 4},
    "lorand": {"width": 4, "rank": 2},
    "compacter": {"width": 4, "n": 2},
    "rein": {"tokens": 3, "rank": 2},
}
CASES = [
    *((name, options) for name, options in OPTIONS.items()),
    ("adapter", {"width": 4, "count": 2}),
    ("adapter", {"width": 4, "parallel": True}),
]
# around or beside blocks, whose outputs are those of the blocks or sums of their own
NOT_AT_MAPS = {"ladder", "vpt", "prefix"}


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


def test_cases__have_every_method() -> None:
    assert {name for name, _ in CASES} | NOT_AT_MAPS == known_methods().keys()


@pytest.mark.parametrize("kind", ["linear", "convolution", "channels last"])
@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda value: str(value))
def test_gradients__are_those_of_a_copy(name: str, options: dict[str, object], kind: str) -> None:
    model, x = site(kind)
    method = method_from_dict({"method": name, **options})
    if name in ("vera", "fact", "conv_lora") and kind != "linear":
        pytest.skip("serves no convolutions")
    if name in ("convpass", "mona", "rein", "conv_lora") and kind == "linear":
        model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Flatten(2), Transposed(), model)
        x = x.transpose(1, 2).reshape(2, 8, 3, 3)
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
        torch.manual_seed(0)  # Conv-LoRA draws noise
        each(x).square().sum().backward()
        results.append([parameter.grad for parameter in each.parameters() if parameter.requires_grad])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


class Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)
