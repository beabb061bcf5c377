"""Prefix keys and values: against attention written out, in timm's models, and refusals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vispeft.errors import PlanError
from vispeft.peft import Plan, Prefix, check, count, inject
from vispeft.peft.inject import attached


def small_vit(name: str = "vit_tiny_patch16_224", **options: object) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, depth=2, num_classes=5, **options)
    return model.eval()


def convex(attention: nn.Module, x: Tensor, prefix: Tensor) -> Tensor:
    """He et al. 2022, equation 5: `(1 - l) Attn(q, K, V) + l Attn(q, P_k, P_v)` for each head. x: [B, N, C]"""

    def heads(tokens: Tensor) -> Tensor:
        qkv = tokens @ attention.qkv.weight.T + attention.qkv.bias
        return qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)

    q, k, v = heads(x)
    _, prefix_k, prefix_v = heads(prefix.expand(len(x), -1, -1))
    scores, prefix_scores = (q @ keys.mT * attention.scale for keys in (k, prefix_k))
    mass, prefix_mass = (each.exp().sum(-1, keepdim=True) for each in (scores, prefix_scores))
    share = prefix_mass / (mass + prefix_mass)
    result = (1 - share) * (scores.softmax(-1) @ v) + share * (prefix_scores.softmax(-1) @ prefix_v)
    return result.transpose(1, 2).flatten(2) @ attention.proj.weight.T + attention.proj.bias


def test_prefix__is_the_convex_combination_of_two_attentions() -> None:
    model = small_vit(img_size=32).double()
    inject(model, Plan({"blocks.0.attn": Prefix(3)}))
    attention = model.blocks[0].attn
    prefix = attached(model)[0].delta.prompts
    x = torch.randn(2, 5, 192, dtype=torch.float64, requires_grad=True)
    ours, wanted = attention(x), convex(attention, x, prefix)
    torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-10)
    grads = (torch.autograd.grad(result.square().sum(), (x, prefix)) for result in (ours, wanted))
    for mine, theirs in zip(*grads, strict=True):
        assert theirs.abs().max() > 1e-6
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10)


def test_prefix__leaves_the_tokens_of_the_block_alone_and_counts_them() -> None:
    model = small_vit(img_size=32)
    inject(model, Plan({"blocks.*.attn": Prefix(4)}))
    lengths: list[int] = []
    for block in model.blocks:
        block.mlp.register_forward_hook(lambda module, args, output: lengths.append(output.shape[1]))
        block.attn.qkv.register_forward_hook(lambda module, args, output: lengths.append(output.shape[1]))
    check(model, torch.randn(1, 3, 32, 32))
    assert lengths == [9, 5, 9, 5]
    assert count(model).deltas == {"prefix": 2 * 4 * 192}


def test_prefix__has_the_same_gradients_under_checkpointing(build: Callable[[], nn.Module], images: Tensor) -> None:
    model = build()
    inject(model, Plan({"blocks.*.attn": Prefix(3)}))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    wanted = torch.autograd.grad(model(images).square().sum(), trained)
    for block in model.blocks:
        plain = block.forward
        block.forward = lambda x, plain=plain: checkpoint(plain, x, use_reentrant=False)
    ours = torch.autograd.grad(model(images).square().sum(), trained)
    for mine, theirs in zip(ours, wanted, strict=True):
        assert theirs.any()
        torch.testing.assert_close(mine, theirs)


def test_prefix__is_named_by_check_where_attention_has_windows_or_fixed_positions() -> None:
    windows = {"embed_dim": 24, "img_size": 64, "window_size": 2, "depths": (1, 1, 1, 1)}
    swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=3, **windows)
    inject(swin, Plan({"layers.*.blocks.*.attn": Prefix(2)}))
    with pytest.raises(PlanError, match=r"not with the inputs that these deltas give their sites: `layers\.0"):
        check(swin, torch.randn(1, 3, 64, 64))
    beit = small_vit("beit_base_patch16_224", img_size=32, embed_dim=48, num_heads=3)
    inject(beit, Plan({"blocks.*.attn": Prefix(2)}))
    with pytest.raises(PlanError, match=r"these deltas give their sites: `blocks\.0\.attn\.prefix`"):
        check(beit, torch.randn(1, 3, 32, 32))


def test_prefix__refuses_what_it_cannot_serve(build: Callable[[], nn.Module]) -> None:
    for site, message in {
        "blocks.0.attn.qkv": "but this is a Linear. Name such a module, for example `blocks",
        "self_attn": "but this is a MultiheadAttention",
        "blocks.0.attn.qkv.weight": "`prefix` serves attention modules, but this is a parameter",
    }.items():
        with pytest.raises(PlanError, match=message):
            inject(build(), Plan({site: Prefix(2)}))
    with pytest.raises(PlanError, match="`tokens` must be at least 1, but is 0"):
        Prefix(0)
    model = build()
    inject(model, Plan({"blocks.0.attn": Prefix(2)}))
    with pytest.raises(
        PlanError, match=r"`prefix` needs .* gets \[1, 2, 2, 8\]\. Name the attention modules of a plain"
    ):
        model.blocks[0].attn(torch.zeros(1, 2, 2, 8))
