"""Trained tokens before those of a block: written out in plain torch, in timm's models, under checkpointing."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vispeft.errors import PlanError
from vispeft.peft import (
    VPT,
    Plan,
    Prefix,
    ScaleShift,
    check,
    count,
    disabled,
    inject,
    load_adapter,
    save_adapter,
    train_mode,
)
from vispeft.peft.inject import attached

Build = Callable[[], nn.Module]
Shake = Callable[[nn.Module], None]


def prompted(tokens: Tensor, prompts: Tensor) -> Tensor:
    """Return the tokens in the paper's order: the class token, here the first, then the prompts, then the rest."""
    return torch.cat([tokens[:, :1], prompts.expand(len(tokens), -1, -1), tokens[:, 1:]], dim=1)


def unprompted(tokens: Tensor, num_prompts: int) -> Tensor:
    return torch.cat([tokens[:, :1], tokens[:, 1 + num_prompts :]], dim=1)


def explicit(base: nn.Module, head: nn.Module, images: Tensor, prompts: list[Tensor]) -> Tensor:
    """Return the outputs of the small network: deep with prompts for each block, shallow with one set."""
    x = base.grouped(base.act(base.bn(base.conv(images)))).flatten(2).transpose(1, 2)
    if len(prompts) == 1:
        x = prompted(x, prompts[0])
    for index, block in enumerate(base.blocks):
        x = block(x) if len(prompts) == 1 else unprompted(block(prompted(x, prompts[index])), len(prompts[index]))
    if len(prompts) == 1:
        x = unprompted(x, len(prompts[0]))
    x = x + base.self_attn(x, x, x, need_weights=False)[0]
    return head(nn.functional.linear(x, base.reader.weight).mean(1))


def prompts_of(model: nn.Module) -> list[Tensor]:
    return [item.delta.prompts for item in attached(model) if item.delta.prompts is not None]


def small_vit(name: str = "vit_tiny_patch16_224", **options: object) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, pretrained=False, depth=3, num_classes=5, **options)
    return model.eval()


@pytest.mark.parametrize("deep", [True, False])
def test_vpt__is_the_papers_equations_and_gradients(deep: bool, build: Build, images: Tensor, shake: Shake) -> None:
    model, base = build().double(), build().double()
    inject(model, Plan({"blocks.*": VPT(3, deep=deep)}, ["head"]))
    shake(model)
    x = images.double()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ours, wanted = model(x), explicit(base, model.head, x, prompts_of(model))
    torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-10)
    assert (wanted - base(x)).abs().max() > 1e-3
    pairs = (torch.autograd.grad(result.square().sum(), trained) for result in (ours, wanted))
    for mine, theirs in zip(*pairs, strict=True):
        assert theirs.abs().max() > 1e-9
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("deep", "number"), [(True, 3), (False, 1)])
def test_vpt__trains_prompts_of_every_block_or_of_the_first(deep: bool, number: int) -> None:
    model = small_vit(img_size=32)
    inject(model, Plan({"blocks.*": VPT(4, deep=deep)}))
    assert [prompts.shape for prompts in prompts_of(model)] == [(4, 192)] * number
    assert count(model).deltas == {"vpt": 4 * 192 * number}


def test_vpt__starts_uniform_in_xaviers_bound(build: Build) -> None:
    model = build()
    inject(model, Plan({"blocks.0": VPT(100)}))
    (prompts,) = prompts_of(model)
    bound = (6 / 16) ** 0.5
    assert 0.95 * bound < prompts.abs().max() <= bound
    assert abs(prompts.mean()) < 0.1 * bound


@pytest.mark.parametrize("deep", [True, False])
def test_vpt__puts_the_prompts_before_all_tokens_and_takes_them_off(deep: bool) -> None:
    model = small_vit(img_size=32)
    inject(model, Plan({"blocks.*": VPT(4, deep=deep)}))
    inner: list[Tensor] = []
    for block in model.blocks:
        block.norm1.register_forward_hook(lambda module, args, output: inner.append(args[0]))
    before: list[Tensor] = []
    model.norm_pre.register_forward_hook(lambda module, args, output: before.append(output))
    assert model.forward_features(torch.randn(2, 3, 32, 32)).shape == (2, 5, 192)
    assert [tokens.shape[1] for tokens in inner] == [9, 9, 9]
    assert torch.equal(inner[0][0, :4], prompts_of(model)[0])
    assert torch.equal(inner[0][:, 4:], before[0])


def test_vpt__shallow_passes_through_the_blocks_between(build: Build, images: Tensor) -> None:
    model = small_vit(img_size=32)
    inject(model, Plan({"blocks.[1:]": VPT(4, deep=False)}))
    lengths: list[int] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, output: lengths.append(output.shape[1]))
    model(torch.randn(1, 3, 32, 32))
    assert lengths == [5, 9, 5]
    assert [item.site for item in attached(model)] == ["blocks.1", "blocks.2"]
    single = build()
    inject(single, Plan({"blocks.1": VPT(4, deep=False)}))
    assert single(images).shape == (2, 4)


@pytest.mark.parametrize("deep", [True, False])
def test_vpt__is_saved_once_and_off_while_disabled(deep: bool, tmp_path: Path) -> None:
    model, images = small_vit(img_size=32), torch.randn(2, 3, 32, 32)
    before = model(images)
    fresh = copy.deepcopy(model)
    inject(model, Plan({"blocks.*": VPT(4, deep=deep)}))
    with disabled(model):
        assert torch.equal(model(images), before)
    save_adapter(model, tmp_path / "vpt.safetensors")
    assert list(load_file(tmp_path / "vpt.safetensors")) == [f"blocks.{i}.vpt.prompts" for i in range(3 if deep else 1)]
    load_adapter(fresh, tmp_path / "vpt.safetensors")
    assert torch.equal(fresh(images), model(images))
    assert (fresh(images) - before).abs().max() > 1e-3


@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_vpt__has_the_same_gradients_under_checkpointing(
    use_reentrant: bool, deep: bool, build: Build, images: Tensor
) -> None:
    model = build()
    inject(model, Plan({"conv": ScaleShift(), "blocks.*": VPT(3, deep=deep)}))
    train_mode(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    plain = torch.autograd.grad(model(images).square().sum(), trained)

    def checkpointed(images: Tensor) -> Tensor:
        x = model.grouped(model.act(model.bn(model.conv(images)))).flatten(2).transpose(1, 2)
        for block in model.blocks:
            x = checkpoint(block, x, use_reentrant=use_reentrant)
        x = x + model.self_attn(x, x, x, need_weights=False)[0]
        return model.head(nn.functional.linear(x, model.reader.weight).mean(1))

    checkpointed(images).square().sum().backward()
    for parameter, wanted in zip(trained, plain, strict=True):
        assert wanted.abs().max() > 0
        torch.testing.assert_close(parameter.grad, wanted)


@pytest.mark.parametrize("deep", [True, False])
def test_vpt__works_in_half_precision_and_at_other_image_sizes(deep: bool) -> None:
    model = small_vit(img_size=32, dynamic_img_size=True)
    inject(model, Plan({"blocks.*": VPT(4, deep=deep)}, ["head"]))
    check(model, torch.randn(1, 3, 48, 64))
    model.bfloat16()
    assert model(torch.randn(1, 3, 64, 32).bfloat16()).dtype == torch.bfloat16


def test_vpt__serves_eva_without_rotary_positions() -> None:
    model = small_vit("eva02_tiny_patch14_224", img_size=28, use_rot_pos_emb=False)
    inject(model, Plan({"blocks.*": VPT(4)}))
    check(model, torch.randn(1, 3, 28, 28))


ROTARY = {
    "eva02_tiny_patch14_224": {"img_size": 28},
    "vit_small_patch16_dinov3": {"img_size": 32, "embed_dim": 48, "num_heads": 3},
    "vit_small_patch16_rope_mixed_224": {"img_size": 32, "embed_dim": 48, "num_heads": 3},
}


@pytest.mark.parametrize("use_checkpoints", [False, True])
@pytest.mark.parametrize("method", [VPT(4), Prefix(4)], ids=["vpt", "prefix"])
@pytest.mark.parametrize("name", ROTARY)
def test_prompts__have_no_rotary_position(name: str, method: VPT | Prefix, use_checkpoints: bool) -> None:
    model = small_vit(name, **ROTARY[name])
    base = copy.deepcopy(model)
    site = "blocks.*" if isinstance(method, VPT) else "blocks.*.attn"
    inject(model, Plan({site: method}))
    images = torch.randn(2, 3, *base.patch_embed.img_size)
    check(model, images)

    def with_prompts(module: nn.Module, prompts: Tensor) -> None:
        """Let attention take the prompts for further tokens before the patches, as the class token is one."""
        attention = getattr(module, "attn", module)
        attention.num_prefix_tokens += len(prompts)
        module.register_forward_pre_hook(
            lambda _, args: (torch.cat([prompts.expand(len(args[0]), -1, -1), args[0]], 1), *args[1:])
        )
        module.register_forward_hook(lambda _, args, output: output[:, len(prompts) :])

    for item in attached(model):
        with_prompts(base.get_submodule(item.site), item.delta.prompts)
    model.set_grad_checkpointing(use_checkpoints)
    torch.testing.assert_close(model(images), base(images))


def test_vpt__is_named_by_check_where_positions_do_not_fit() -> None:
    model = small_vit("beit_base_patch16_224", img_size=32, embed_dim=48, num_heads=3)
    inject(model, Plan({"blocks.*": VPT(4)}))
    with pytest.raises(PlanError, match=r"inputs that these deltas give their sites: `blocks\.0\.vpt`.*must match"):
        check(model, torch.randn(1, 3, 32, 32))


def test_vpt__refuses_what_it_cannot_serve(build: Build, images: Tensor) -> None:
    for site, message in {
        "blocks.0.mlp.fc1": "blocks, in which tokens attend to the prompts, but this is a Linear",
        "self_attn": "but this is a MultiheadAttention. Name the block",
        "blocks.0.norm1.weight": "`vpt` serves blocks, but this is a parameter",
    }.items():
        with pytest.raises(PlanError, match=message):
            inject(build(), Plan({site: VPT(2)}))
    with pytest.raises(PlanError, match=r"takes \[N, B, C\]\. Build the model with `batch_first=True`"):
        inject(nn.Sequential(nn.TransformerEncoderLayer(8, 2)), Plan({"0": VPT(2)}))
    with pytest.raises(PlanError, match="the plan's sites are in several"):
        inject(build(), Plan({"blocks.0 | blocks.1.mlp": VPT(2, deep=False)}))
    with pytest.raises(PlanError, match="`tokens` must be at least 1, but is 0"):
        VPT(0)


class Pooling(nn.Module):
    """A module that takes tokens [B, N, 8] and gives half of them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x[:, ::2])


def test_vpt__refuses_inputs_and_outputs_that_are_not_tokens() -> None:
    model = nn.Sequential(Pooling())
    inject(model, Plan({"0": VPT(2)}))
    with pytest.raises(PlanError, match=r"tokens \[B, N, 8\], but this one gets \[1, 4, 4, 8\]\. Name the blocks"):
        model(torch.zeros(1, 4, 4, 8))
    with pytest.raises(PlanError, match=r"makes \[1, 4, 8\] from \[1, 8, 8\]\. Name blocks that keep their tokens"):
        model(torch.zeros(1, 6, 8))
