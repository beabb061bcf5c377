"""Mona in real encoders: token grids and maps in both orders, prefix tokens, precision, and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft import Mona, Plan, count, inject
from vispeft.peft.inject import attached

SWIN = {"depths": (1, 1, 1, 1), "embed_dim": 24, "img_size": (64, 96), "window_size": 2}
ENCODERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "class token": ("vit_tiny_patch16_224", {"dynamic_img_size": True, "depth": 2}, "blocks.*.attn | blocks.*.mlp"),
    "stages by convolutions": ("pvt_v2_b0", {}, "stages.*.blocks.*.mlp"),
    "maps in channels-last order": ("swin_tiny_patch4_window7_224", SWIN, "layers.*.blocks.*"),
    "maps": ("resnet18", {}, "layer2.1"),
}


def vary(model: nn.Module) -> None:
    """Give every trained parameter another value."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("encoder", ENCODERS)
@torch.no_grad()
def test_mona__serves_encoders(encoder: str) -> None:
    name, options, sites = ENCODERS[encoder]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **options).eval().requires_grad_(False)
    images = torch.randn(2, 3, 64, 96)
    before = model(images)
    inject(model, Plan({sites: Mona(width=4)}))
    assert torch.equal(model(images), before)
    vary(model)
    together = model(images)
    assert not torch.allclose(together, before, atol=1e-3)
    torch.testing.assert_close(torch.cat([model(image[None]) for image in images]), together, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_mona__passes_the_class_token_beside_the_filters() -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, dynamic_img_size=True, depth=1).eval()
    inject(model, Plan({"blocks.0.mlp": Mona(width=4)}))
    vary(model)
    delta = attached(model)[0].delta
    own: dict[str, Tensor] = dict(delta.named_parameters())
    seen: list[tuple[Tensor, Tensor]] = []
    delta.register_forward_hook(lambda _module, args, output: seen.append((args[1], output - args[1])))
    model(torch.randn(2, 3, 48, 80))
    ((y, update),) = seen
    token = y[:, 0]
    normed = F.layer_norm(token, (192,), own["norm_w"], own["norm_b"])
    hidden = (own["norm_scale"] * normed + own["input_scale"] * token) @ own["down_w"].T + own["down_b"]
    hidden = F.gelu(hidden + hidden @ own["project_w"].T + own["project_b"])
    torch.testing.assert_close(update[:, 0], hidden @ own["up_w"].T + own["up_b"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kernel", "reach"), [("conv3", 1), ("conv5", 2), ("conv7", 3)])
@torch.no_grad()
def test_mona__each_filter_reaches_as_far_as_its_kernel(kernel: str, reach: int) -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1))
    inject(model, Plan({"0": Mona(width=1)}))
    own = dict(attached(model)[0].delta.named_parameters())
    for name, value in own.items():
        value.fill_(1.0 if name in ("down_w", "up_w", "input_scale", f"{kernel}_w") else 0.0)
    nn.init.ones_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 4, 4] = 1
    square = torch.zeros(9, 9, dtype=torch.bool)
    square[4 - reach : 5 + reach, 4 - reach : 5 + reach] = True
    assert torch.equal(model(image)[0, 0] != 0, square)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
def test_mona__keeps_the_memory_layout(memory_format: torch.memory_format) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)).to(memory_format=memory_format)
    images = torch.randn(2, 3, 5, 7).to(memory_format=memory_format)
    stride = model(images).stride()
    inject(model, Plan({"0": Mona(width=2)}))
    assert model(images).stride() == stride


def test_mona__computes_in_the_precision_of_the_module() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)).to(torch.bfloat16)
    inject(model, Plan({"0": Mona(width=2)}))
    assert {parameter.dtype for parameter in attached(model)[0].delta.parameters()} == {torch.float32}
    assert model(torch.randn(2, 3, 5, 7, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_mona__counts_as_documented() -> None:
    model = nn.Sequential(nn.Linear(10, 6))
    inject(model, Plan({"0": Mona(width=4)}))
    assert count(model).deltas == {"mona": 2 * 6 * 4 + 4**2 + 88 * 4 + 5 * 6}


def test_mona__refuses_a_width_of_zero() -> None:
    with pytest.raises(PlanError, match="`width` must be at least 1"):
        Mona(width=0)


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("attention", r"`mona` needs tokens .* this nn\.MultiheadAttention gets \[N, B, C\]"),
        ("linear.weight", "`mona` serves modules, but this is a parameter"),
        ("activation", "has no linear map, convolution or norm that tells its width"),
    ],
)
def test_mona__refuses_sites_that_it_cannot_serve(site: str, message: str) -> None:
    model = nn.ModuleDict(
        {"attention": nn.MultiheadAttention(4, 1), "linear": nn.Linear(4, 4), "activation": nn.GELU()}
    )
    with pytest.raises(PlanError, match=message):
        inject(model, Plan({site: Mona()}))


@pytest.mark.parametrize(
    ("shape", "message"),
    [((2, 4), r"it is \[2, 4\]\. Name another module"), ((2, 9, 4), "A sequence of 9 tokens has no known height")],
    ids=["vectors", "tokens without a map"],
)
def test_mona__refuses_outputs_without_a_map(shape: tuple[int, ...], message: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    inject(model, Plan({"0": Mona(width=2)}))
    with pytest.raises(PlanError, match=message):
        model(torch.randn(shape))
