"""Rein: against the equations in a vision transformer, what sites share, and refusals."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft import Plan, Rein, check, count, inject
from vispeft.peft.inject import attached


def small_vit(**options: object) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5, **options)
    return model.eval()


def vary(model: nn.Module) -> None:
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


@torch.no_grad()
def test_rein__refines_the_patches_by_the_equations_and_leaves_the_class_token() -> None:
    model, seen = small_vit(), []
    inject(model, Plan({"blocks.*": Rein(tokens=6, rank=3)}))
    vary(model)
    delta = attached(model)[1].delta
    delta.register_forward_hook(lambda _module, args, output: seen.append((args[1], output)))
    model(torch.randn(2, 3, 32, 32))
    ((y, refined),) = seen
    own = dict(delta.named_parameters())
    tokens, patches = own["a"] @ own["b"], y[:, 1:]
    similarity = (patches @ tokens.T / 192**0.5).softmax(-1)
    mixed = similarity[..., 1:] @ (tokens[1:] @ own["maps.token_w"].T + own["maps.token_b"])
    update = (mixed + patches) @ own["maps.feature_w"].T + own["maps.feature_b"]
    assert torch.equal(refined[:, 0], y[:, 0])
    torch.testing.assert_close(refined[:, 1:], patches + update, rtol=1e-4, atol=1e-4)
    assert update.abs().max() > 1e-2


@pytest.mark.parametrize(
    ("method", "number"),
    [
        (Rein(tokens=10, rank=4), 2 * (192**2 + 192) + 2 * 4 * (10 + 192)),
        (Rein(tokens=10, rank=None), 2 * (192**2 + 192) + 2 * 10 * 192),
        (Rein(tokens=10, rank=4, shared=False), 2 * 2 * (192**2 + 192) + 2 * 4 * (10 + 192)),
    ],
    ids=["low rank", "full rank", "own maps"],
)
def test_rein__counts_as_documented(method: Rein, number: int) -> None:
    model = small_vit()
    inject(model, Plan({"blocks.*": method}))
    assert count(model).deltas == {"rein": number}
    first, second = (item.delta for item in attached(model))
    assert (first.maps is second.maps) == method.shared


def test_rein__counts_as_the_paper_for_a_vit_l() -> None:
    """The paper's 2.99 million without the link to the queries: maps from 1024 to 256 and from 768 to 256 features."""
    model = nn.Sequential(*(nn.Linear(1, 1024) for _ in range(24)))
    inject(model, Plan({"*": Rein(tokens=100, rank=16)}))
    link = (1024 * 256 + 256) + (768 * 256 + 256)
    assert round((count(model).deltas["rein"] + link) / 1e6, 2) == 2.99


def test_rein__starts_with_no_update_and_tokens_in_xaviers_bound() -> None:
    model = small_vit()
    inject(model, Plan({"blocks.*": Rein(tokens=50, rank=4)}))
    own = dict(attached(model)[0].delta.named_parameters())
    assert not own["maps.feature_w"].any()
    assert not own["maps.feature_b"].any()
    bound = (6 / (192 + (192 * 4) ** 0.5)) ** 0.5
    assert all(0.9 * bound < own[name].abs().max() <= bound for name in "ab")


@torch.no_grad()
@pytest.mark.parametrize("name", ["convnext_atto", "resnet18"])
def test_rein__serves_maps_of_one_width(name: str) -> None:
    model = timm.create_model(name, num_classes=3).eval()
    images = torch.randn(1, 3, 64, 96)
    before = model(images)
    inject(model, Plan({"stages.2.blocks.*" if name == "convnext_atto" else "layer2.*": Rein(tokens=5, rank=2)}))
    check(model, images)
    assert torch.equal(model(images), before)
    vary(model)
    assert not torch.allclose(model(images), before, atol=1e-3)


def test_rein__keeps_layout_and_precision() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 7, 9).to(memory_format=torch.channels_last)
    stride = model(images).stride()
    inject(model, Plan({"0": Rein(tokens=3, rank=2)}))
    assert model(images).stride() == stride
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(images).dtype == torch.bfloat16
    assert model.bfloat16()(images.bfloat16()).dtype == torch.bfloat16


class Tokens(nn.Module):
    """A linear map whose output has no known place in a map."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x)


def test_rein__refuses_what_it_cannot_serve() -> None:
    with pytest.raises(PlanError, match="`tokens` must be at least 2, but is 1"):
        Rein(tokens=1)
    with pytest.raises(PlanError, match="`rein` serves modules, but this is a parameter"):
        inject(nn.Sequential(nn.Linear(4, 4)), Plan({"0.weight": Rein()}))
    with pytest.raises(PlanError, match=r"have 4 features, but this site has 6 outputs\. Set `shared` to false"):
        inject(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 6)), Plan({"*": Rein()}))
    model = nn.Sequential(Tokens())
    inject(model, Plan({"0": Rein(tokens=3, rank=2)}))
    with pytest.raises(PlanError, match="A sequence of 9 tokens has no known height"):
        model(torch.zeros(1, 9, 4))
    with pytest.raises(PlanError, match=r"it is \[9, 4\]\. Name another module"):
        model(torch.zeros(9, 4))
