"""The dimension of the channels of an output whose sizes do not tell it."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft import IA3, Adapter, Plan, ScaleShift, check, inject, load_adapter, save_adapter

C = 8


class ConvNeXtBlock(nn.Module):
    """[B, C, H, W] with linear maps over channels last, and a layer scale of zero."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.map = nn.Conv2d(C, C, 3, padding=1, groups=C), nn.LayerNorm(C), nn.Linear(C, C)
        self.gamma = nn.Parameter(torch.zeros(C))

    def forward(self, x: Tensor) -> Tensor:
        y = self.map(self.norm(self.conv(x).permute(0, 2, 3, 1))) * self.gamma
        return x + y.permute(0, 3, 1, 2)


class LastBlock(nn.Module):
    """[B, H, W, C] with a convolution inside it, and a second argument."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.conv = nn.Linear(C, C), nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor, scale: Tensor) -> tuple[Tensor, int]:
        x += self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) * scale
        return x + self.map(x), 1


class FlatLayer(nn.Module):
    """[B, C, H, W] with attention over its positions, as in the hybrid encoders of RT-DETR."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.norm = nn.MultiheadAttention(C, 2, batch_first=True), nn.LayerNorm(C)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).mT
        return self.norm(tokens + self.attn(tokens, tokens, tokens)[0]).mT.reshape(x.shape)


class WindowBlock(nn.Module):
    """[B, H, W, C] with attention over all positions, which mixes them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(C), nn.Linear(C, 3 * C), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x).flatten(1, 2)).chunk(3, -1)
        return x + self.proj(F.scaled_dot_product_attention(q, k, v)).view(x.shape)


class ForeignNorm(nn.Module):
    """A norm over channels that no library has."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight, self.dim = nn.Parameter(torch.ones(C)), dim

    def forward(self, x: Tensor) -> Tensor:
        shape = [-1, 1, 1] if self.dim == 1 else [-1]
        return F.normalize(x, dim=self.dim) * self.weight.view(shape)


class Opaque(nn.Module):
    """A module of both kinds of maps that gives something else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.map = nn.Conv2d(C, C, 1), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class Net(nn.Module):
    def __init__(self, site: nn.Module) -> None:
        super().__init__()
        self.site = site

    def forward(self, x: Tensor) -> Tensor:
        # the site may change its input in place
        x = x.clone()
        return self.site(x, torch.ones(1))[0] if isinstance(self.site, LastBlock) else self.site(x)


SITES = {
    "convnext": (ConvNeXtBlock, 1),
    "channels last": (LastBlock, -1),
    "flattened": (FlatLayer, 1),
    "window": (WindowBlock, -1),
    "norm first": (lambda: ForeignNorm(1), 1),
    "norm last": (lambda: ForeignNorm(-1), -1),
}


@pytest.mark.parametrize(("make", "dim"), SITES.values(), ids=SITES)
def test_scales__act_on_channels_where_sizes_are_equal(make, dim: int) -> None:
    torch.manual_seed(0)
    model, x = Net(make()).eval(), torch.randn(2, C, C, C)
    before = model(x)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    inject(model, Plan({"site": IA3()}))
    check(model, x)
    assert torch.equal(model(x), before)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items() if key in state)
    model.site.ia3.gain.data = torch.arange(float(C))
    scales = torch.arange(float(C)).view([-1, 1, 1] if dim == 1 else [-1])
    torch.testing.assert_close(model(x), before * scales)


@pytest.mark.parametrize(("make", "dim"), SITES.values(), ids=SITES)
def test_adapters__act_on_channels_of_maps_of_any_size(make, dim: int) -> None:
    torch.manual_seed(0)
    model = Net(make()).eval()
    inject(model, Plan({"site": (Adapter(width=2), ScaleShift())}))
    for shape in ([2, C, C, C], [2, C, 5, 6] if dim == 1 else [2, 5, 6, C]):
        x = torch.randn(shape)
        check(model, x)
        assert model(x).shape == x.shape
        assert model.site.adapter.dim == dim


@pytest.mark.parametrize(("make", "dim"), SITES.values(), ids=SITES)
def test_named_adapters__find_channels_as_the_unnamed_one(make, dim: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base, x = Net(make()).eval(), torch.randn(2, C, C, C)
    model = copy.deepcopy(base)
    inject(model, Plan({"site": (ScaleShift(), IA3())}))
    model.site.ia3.gain.data = torch.arange(float(C))
    save_adapter(model, tmp_path / "a.safetensors")
    load_adapter(base, tmp_path / "a.safetensors", name="a")
    assert torch.equal(base(x), model(x))


def test_an_output_that_no_map_decides__is_refused() -> None:
    model = Net(Opaque())
    inject(model, Plan({"site": ScaleShift()}))
    with pytest.raises(PlanError, match=r"does not tell which dimension holds the 8 channels\. Run the model once on"):
        check(model, torch.randn(2, C, C, C))
