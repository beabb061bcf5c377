"""Conv-LoRA against its formula in plain torch, its gate, and refusals."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vispeft.errors import PlanError
from vispeft.peft import ConvLoRA, Plan, count, disabled, inject, train_mode
from vispeft.peft.inject import attached


def shake(model: nn.Module, size: float = 0.3) -> None:
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn_like(parameter))


def formula(x: Tensor, y: Tensor, own: dict[str, Tensor], scale: float) -> Tensor:
    """The output for a map x [B, H, W, in], image by image, without noise."""
    results = []
    for image, frozen in zip(x, y, strict=True):
        hidden = torch.einsum("hwi,ri->rhw", image, own["a"])[None]
        logits = own["experts.gate"] @ hidden.mean((2, 3))[0]
        expert = int(logits.argmax())
        large = F.interpolate(hidden, scale_factor=expert + 1, mode="bicubic") if expert else hidden
        conv = F.gelu(F.conv2d(large, own["experts.conv_w"][expert], own["experts.conv_b"][expert], padding=1))
        small = F.interpolate(conv, size=x.shape[1:3], mode="bicubic") if expert else conv
        mixed = hidden + torch.softmax(logits, 0)[expert] * small
        results.append(frozen + scale * torch.einsum("rhw,or->hwo", mixed[0], own["b"]))
    return torch.stack(results)


def of_map() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5)).double().eval(), torch.randn(8, 5, 4, 6, dtype=torch.float64)


def test_conv_lora__gives_outputs_and_gradients_of_its_formula() -> None:
    model, x = of_map()
    base = model(x).detach()
    inject(model, Plan({"0": ConvLoRA(3, 6, experts=3)}))
    assert torch.equal(model(x), base)
    shake(model, 1.0)
    own = dict(attached(model)[0].delta.named_parameters())
    wanted = formula(x, base, own, 2.0)
    torch.testing.assert_close(model(x), wanted)
    assert (wanted - base).abs().max() > 0.1
    names = ["a", "b", "experts.conv_w", "experts.conv_b", "experts.gate"]
    ours = torch.autograd.grad(model(x).square().sum(), [own[name] for name in names])
    theirs = torch.autograd.grad(wanted.square().sum(), [own[name] for name in names])
    for name, one, other in zip(names, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, msg=name)
        assert other.abs().max() > 1e-6
    chosen = attached(model)[0].delta.experts.probabilities((x @ own["a"].T).movedim(-1, 1)).argmax(1)
    assert len(chosen.unique()) > 1


def test_conv_lora__has_its_parameters_by_formula() -> None:
    model, _ = of_map()
    inject(model, Plan({"0": ConvLoRA(3, experts=4)}))
    assert count(model).trainable == 3 * (6 + 5) + 4 * (9 * 3**2 + 3 + 2 * 3)


def test_conv_lora__draws_noise_in_training_alone() -> None:
    model, x = of_map()
    inject(model, Plan({"0": ConvLoRA(3, experts=3)}))
    shake(model)
    assert torch.equal(model(x), model(x))
    train_mode(model)
    torch.manual_seed(0)
    first, second = model(x), model(x)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(model(x), first)
    first.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_conv_lora__serves_tokens_whose_class_token_gets_the_low_rank_update_alone() -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=3, dynamic_img_size=True).eval()
    images = torch.randn(2, 3, 48, 80)
    model.requires_grad_(False)
    before = model(images)
    inject(model, Plan({"blocks.*.attn.qkv": ConvLoRA(4, experts=2)}))
    assert torch.equal(model(images), before)
    shake(model)
    seen: list[Tensor] = []
    qkv = model.blocks[0].attn.qkv
    handle = qkv.register_forward_hook(lambda module, args, output: seen.extend([args[0], output]))
    adapted = model(images)
    handle.remove()
    assert (adapted - before).abs().max() > 1e-3
    x, output = seen
    with disabled(model):
        frozen = qkv(x)
    own = dict(attached(model)[0].delta.named_parameters())
    patches = x[:, 1:].unflatten(1, (3, 5)), frozen[:, 1:].unflatten(1, (3, 5))
    torch.testing.assert_close(output[:, 1:], formula(*patches, own, 1.0).flatten(1, 2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output[:, :1], frozen[:, :1] + x[:, :1] @ own["a"].T @ own["b"].T)


def test_conv_lora__refuses_what_it_cannot_serve() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    with pytest.raises(PlanError, match=r"`conv_lora` serves nn\.Linear modules, but this is a LayerNorm"):
        inject(model, Plan({"1": ConvLoRA(2)}))
    with pytest.raises(PlanError, match="`conv_lora` serves modules, but this is a parameter"):
        inject(model, Plan({"0.weight": ConvLoRA(2)}))
    inject(model, Plan({"0": ConvLoRA(2)}))
    with pytest.raises(PlanError, match=r"needs tokens \[B, N, C\] or maps \[B, H, W, C\], but gets \[3, 4\]"):
        model(torch.randn(3, 4))
