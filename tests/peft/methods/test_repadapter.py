"""RepAdapter: its maps by the published code's layout, what merges, and what it refuses."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft import LoRA, Method, Plan, RepAdapter, ScaleShift, count, inject, merge
from vispeft.peft.inject import attached


def injected(module: nn.Module, *methods: Method) -> nn.Sequential:
    """A model of one module with deltas none of which is zero, in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(module).double()
    inject(model, Plan({"0": methods}))
    for item in attached(model):
        for parameter in item.delta.parameters():
            nn.init.normal_(parameter, std=0.5)
    return model


def published(x: Tensor, own: dict[str, Tensor], groups: int, scale: float) -> Tensor:
    """The adapter as two convolutions with kernels of one pixel, the second in groups. x: [B, N, C]"""
    x = x.mT
    hidden = F.conv1d(x, own["down_w"][..., None], own["down_b"])
    return (x + scale * F.conv1d(hidden, own["up_w"][..., None], own["up_b"], groups=groups)).mT


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_repadapter__is_the_published_pair_of_convolutions(groups: int) -> None:
    base = nn.Linear(12, 5).double()
    model = injected(base, RepAdapter(width=6, groups=groups, scale=0.3))
    own = dict(attached(model)[0].delta.named_parameters())
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    wanted = F.linear(published(x, own, groups, 0.3), base.weight, base.bias)
    torch.testing.assert_close(model(x), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "methods",
    [
        (RepAdapter(4, 2, 0.5),),
        (RepAdapter(4, 1), LoRA(2), ScaleShift()),
        (LoRA(2), RepAdapter(4, 2), RepAdapter(2, 1), ScaleShift()),
    ],
    ids=["alone", "first", "two"],
)
@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(8, 6), (2, 5, 8)),
        (nn.Conv2d(8, 6, 3, stride=2), (2, 8, 7, 9)),
        (nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"), (2, 8, 7, 9)),
    ],
    ids=["linear", "conv", "conv reflect"],
)
@torch.no_grad()
def test_repadapter__merges(module: nn.Module, shape: tuple[int, ...], methods: tuple[Method, ...]) -> None:
    model = injected(module, *methods)
    x = torch.randn(shape, dtype=torch.float64)
    wanted, weight = model(x), module.weight.clone()
    merge(model)
    torch.testing.assert_close(model(x), wanted, rtol=1e-10, atol=1e-10)
    assert not torch.equal(module.weight, weight)


@pytest.mark.parametrize(
    "module",
    [nn.Linear(8, 6, bias=False), nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(8, 8, 3, groups=8)],
    ids=["no bias", "zeros around the map", "groups"],
)
def test_repadapter__does_not_merge_where_no_map_does_the_same(module: nn.Module) -> None:
    with pytest.raises(PlanError, match="no weight and bias of the map do the same as `repadapter`"):
        merge(injected(module, RepAdapter(4)))


def test_repadapter__counts_and_starts_as_the_paper() -> None:
    """`d w + w` of A and `d w / groups + d` of B: the sparse B has half the parameters in two groups."""
    model = nn.Sequential(nn.Linear(48, 6))
    inject(model, Plan({"0": RepAdapter(8, 2)}))
    assert count(model).deltas == {"repadapter": 48 * 8 + 8 + 48 * 4 + 48}
    own = dict(attached(model)[0].delta.named_parameters())
    bound = (6 / (48 + 8)) ** 0.5
    assert 0.9 * bound < own["down_w"].abs().max() <= bound
    assert not any(own[name].any() for name in ("down_b", "up_w", "up_b"))


def test_repadapter__trains_before_the_maps_of_a_vit() -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3).eval()
    images = torch.randn(2, 3, 32, 32)
    inject(model, Plan({"blocks.*.attn.qkv | blocks.*.mlp.fc1": RepAdapter(8)}))
    with torch.no_grad():
        for item in attached(model):
            item.delta.up_w.normal_(std=0.02)
    before = model(images)
    before.sum().backward()
    assert all(p.grad is not None and p.grad.any() for item in attached(model) for p in item.delta.parameters())
    merge(model)
    torch.testing.assert_close(model(images), before, rtol=1e-4, atol=1e-5)


def test_repadapter__refuses_what_it_cannot_serve() -> None:
    for site, message in {"1": "but this is a LayerNorm", "0.weight": "this is a parameter"}.items():
        with pytest.raises(PlanError, match=message):
            inject(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), Plan({site: RepAdapter(4)}))
    with pytest.raises(PlanError, match="`groups` must divide `width`, which is 8, but is 3"):
        RepAdapter(8, 3)
    with pytest.raises(PlanError, match="`groups` must divide the site's 5 inputs, but is 2"):
        inject(nn.Sequential(nn.Linear(5, 4)), Plan({"0": RepAdapter(4, 2)}))
