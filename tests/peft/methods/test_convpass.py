"""Convolutional bypasses in real encoders: token grids of every kind, maps in both orders, and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft import Convpass, Plan, count, disabled, inject
from vispeft.peft.inject import attached

CASES: dict[str, tuple[str, dict[str, Any], str, tuple[int, int]]] = {
    "class token": (
        "vit_tiny_patch16_224",
        {"dynamic_img_size": True, "depth": 2},
        "blocks.*.attn | blocks.*.mlp",
        (48, 80),
    ),
    "stages by convolutions": ("pvt_v2_b0", {}, "stages.*.blocks.*.mlp", (64, 96)),
    "stages by merging": (
        "swin_tiny_patch4_window7_224",
        {"depths": (1, 1, 1, 1), "embed_dim": 24, "img_size": (64, 96), "window_size": 2},
        "layers.*.blocks.*.mlp",
        (64, 96),
    ),
    "maps in channels-last order": (
        "swin_tiny_patch4_window7_224",
        {"depths": (1, 1, 1, 1), "embed_dim": 24, "img_size": (64, 96), "window_size": 2},
        "layers.*.blocks.*",
        (64, 96),
    ),
    "maps": ("resnet18", {}, "layer2.1", (64, 96)),
}


def shaken(model: nn.Module) -> nn.Module:
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_convpass__serves_encoders(case: str) -> None:
    name, options, sites, size = CASES[case]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **options).eval()
    images = torch.randn(2, 3, *size)
    model.requires_grad_(False)
    before = model(images)
    inject(model, Plan({sites: Convpass()}))
    assert torch.equal(model(images), before)
    shaken(model)
    together = model(images)
    assert not torch.allclose(together, before, atol=1e-3)
    torch.testing.assert_close(torch.cat([model(image[None]) for image in images]), together)


def deltas(model: nn.Module) -> list[nn.Module]:
    return [item.delta for item in attached(model)]


@torch.no_grad()
def test_convpass__passes_the_class_token_through_the_convolution_alone() -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, dynamic_img_size=True, depth=1).eval()
    inject(model, Plan({"blocks.0.mlp": Convpass(width=4, scale=0.5, activation="silu")}))
    (delta,) = deltas(shaken(model))
    own: dict[str, Tensor] = dict(delta.named_parameters())
    seen: list[tuple[Tensor, Tensor]] = []
    delta.register_forward_hook(lambda _module, args, output: seen.append((args[0], output - args[1])))
    model(torch.randn(2, 3, 48, 80))
    ((x, update),) = seen

    def bypass(maps: Tensor) -> Tensor:
        """`0.5 * up(act(conv(act(down(x)))))` of a map [B, C, H, W]."""
        hidden = F.silu(F.conv2d(maps, own["down_w"][:, :, None, None], own["down_b"]))
        hidden = F.silu(F.conv2d(hidden, own["conv_w"], own["conv_b"], padding=1))
        return 0.5 * F.conv2d(hidden, own["up_w"][:, :, None, None], own["up_b"])

    wanted = torch.cat(
        [bypass(x[:, :1].mT.reshape(2, -1, 1, 1)).flatten(2), bypass(x[:, 1:].mT.reshape(2, -1, 3, 5)).flatten(2)], 2
    )
    torch.testing.assert_close(update, wanted.mT, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("size", [(5, 7), (1, 1), (1, 7)], ids=["map", "one pixel", "one row"])
def test_convpass__keeps_the_memory_layout(memory_format: torch.memory_format, size: tuple[int, int]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)).to(memory_format=memory_format)
    images = torch.randn(2, 3, *size).to(memory_format=memory_format)
    stride = model(images).stride()
    inject(model, Plan({"0": Convpass(width=2)}))
    assert model(images).stride() == stride


def test_convpass__computes_in_the_precision_of_the_module() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)).to(torch.bfloat16)
    inject(model, Plan({"0": Convpass(width=2)}))
    assert {parameter.dtype for parameter in deltas(model)[0].parameters()} == {torch.float32}
    assert model(torch.randn(2, 3, 5, 7, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_convpass__counts_as_documented() -> None:
    model = nn.Sequential(nn.Linear(10, 6))
    inject(model, Plan({"0": Convpass(width=4)}))
    assert count(model).deltas == {"convpass": 4 * (10 + 6) + 9 * 4**2 + 2 * 4 + 6}


def test_convpass__refuses_windows() -> None:
    options = {"depths": (1, 1, 1, 1), "embed_dim": 24, "img_size": (64, 64), "window_size": 2}
    model = timm.create_model("swin_tiny_patch4_window7_224", **options).eval()
    inject(model, Plan({"layers.2.blocks.*.attn": Convpass()}))
    # windows of stage 2 are as large as the map of stage 3, which is known from now on
    with disabled(model):
        model(torch.randn(1, 3, 64, 64))
    with pytest.raises(PlanError, match=r"A sequence of 4 tokens has no known height and width: .* whole map\."):
        model(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "`width` must be at least 1"),
        ({"scale": 0.0}, "`scale` must be finite and not 0"),
        ({"activation": "tanh"}, "`activation` must be one of gelu, relu, silu, quick_gelu"),
    ],
    ids=["width", "scale", "activation"],
)
def test_convpass__refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Convpass(**options)


def test_convpass__refuses_what_it_cannot_serve() -> None:
    model = nn.ModuleDict(
        {
            "pool": nn.Conv2d(3, 4, 2, stride=2),
            "attention": nn.MultiheadAttention(4, 1),
            "linear": nn.Linear(4, 4),
        }
    )
    for site, message in (
        ("pool", "needs one that keeps its map's size"),
        ("attention", r"this nn\.MultiheadAttention gets \[N, B, C\]"),
        ("linear.weight", "`convpass` serves modules, but this is a parameter"),
    ):
        with pytest.raises(PlanError, match=message):
            inject(model, Plan({site: Convpass()}))
    inject(model, Plan({"linear": Convpass()}))
    with pytest.raises(PlanError, match=r"they are \[2, 4\] and \[2, 4\]\. Name another module"):
        model["linear"](torch.randn(2, 4))
