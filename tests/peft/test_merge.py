"""Merging is exact, or refused by name, and leaves a model as it was in every error."""

import re
from collections.abc import Callable
from importlib import import_module

import pytest
import timm.layers
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from vispeft.errors import PlanError
from vispeft.models.layers.pyramid import ChannelNorm
from vispeft.peft import (
    IA3,
    Adapter,
    DoRA,
    LoRA,
    Method,
    Plan,
    ScaleShift,
    check,
    disabled,
    inject,
    merge,
)
from vispeft.peft.inject import attached
from vispeft.peft.methods.base_modules import LINEAR_FORWARDS, LINEAR_UNLESS_ACTIVATED

Build = Callable[[], nn.Module]
Shake = Callable[[nn.Module], None]

LINEAR = {"lora": LoRA(2), "dora": DoRA(2), "scale_shift": ScaleShift(), "ia3": IA3()}


class Cosine(nn.Linear):
    """A classifier that compares directions."""

    def forward(self, x: Tensor) -> Tensor:
        return 20 * F.linear(F.normalize(x), F.normalize(self.weight))


class Standardised(nn.Conv2d):
    """A convolution whose kernel is standardised whenever it is used."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight - weight.mean((1, 2, 3), keepdim=True), bias)


class Renamed(nn.Linear):
    """A linear map with nothing of its own."""


class Tied(nn.Module):
    """Two maps with one weight."""

    def __init__(self, *, views: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.weight = nn.Parameter(self.a.weight.data) if views else self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).tanh())


def patched() -> nn.Module:
    linear = nn.Linear(6, 6)
    forward = linear.forward
    linear.forward = lambda x: forward(x).relu()
    return linear


def hooked() -> nn.Module:
    linear = nn.Linear(6, 6)
    linear.register_forward_hook(lambda module, args, output: output.relu())
    return linear


def pre_hooked() -> nn.Module:
    linear = nn.Linear(6, 6)
    linear.register_forward_pre_hook(lambda module, args: (args[0].relu(),))
    return linear


FOREIGN = {
    "cosine": (lambda: Cosine(6, 6), "a Cosine has a `forward` of its own"),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(6, 6)), "its `weight` is no parameter"),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(6, 6)), "its `weight` is no parameter"),
    "old spectral norm": (lambda: torch.nn.utils.spectral_norm(nn.Linear(6, 6)), "its `weight` is no parameter"),
    "pruned": (lambda: prune.l1_unstructured(nn.Linear(6, 6), "weight", 0.5), "its `weight` is no parameter"),
    "patched": (patched, "its `forward` was replaced"),
    "pre-hook": (pre_hooked, r"the hook `pre_hooked\.<locals>\.<lambda>` of another library"),
}


@pytest.mark.parametrize("method", LINEAR.values(), ids=LINEAR)
def test_merge__a_hook_after_the_deltas_gets_the_same(method: Method, shake: Shake) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), hooked()).eval()
    inject(model, Plan({"1": method}))
    shake(model)
    x = torch.randn(3, 6)
    y = model(x)
    merge(model)
    torch.testing.assert_close(model(x), y)


def test_merge__refuses_a_hook_between_a_map_and_its_deltas(shake: Shake) -> None:
    model = nn.Sequential(nn.Linear(6, 6))
    inject(model, Plan({"0": LoRA(rank=2)}))
    model[0].register_forward_hook(lambda module, args, output: output.relu(), prepend=True)
    with pytest.raises(PlanError, match=r"the hook `.*<lambda>` of another library"):
        merge(model)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_unchanged(model: nn.Module, before: dict[str, Tensor], keys: list[str]) -> None:
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [item.key for item in attached(model)] == keys


@pytest.mark.parametrize("method", LINEAR.values(), ids=LINEAR)
def test_merge__takes_a_map_with_a_hook_of_others_after_its_deltas_but_none_before_them(
    method: Method, shake: Shake
) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 6), hooked()), torch.randn(3, 6)
    inject(model, Plan({"0 | 1": method}))
    shake(model)
    y = model(x)
    handle = model[1].register_forward_hook(lambda module, args, output: output.relu(), prepend=True)
    with pytest.raises(PlanError, match=r"do not merge: `1\.\w+` \(the hook `.*<lambda>` of another library"):
        merge(model)
    handle.remove()
    merge(model)
    assert (y >= 0).all()
    torch.testing.assert_close(model(x), y)


@pytest.mark.parametrize("method", LINEAR.values(), ids=LINEAR)
@pytest.mark.parametrize(("make", "reason"), FOREIGN.values(), ids=FOREIGN)
def test_merge__refuses_a_map_that_may_do_more_and_changes_nothing(
    make: Build, reason: str, method: Method, shake: Shake
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), make()).eval()
    inject(model, Plan({"0 | 1": method}))
    shake(model)
    x = torch.randn(3, 6)
    check(model, x)
    y, before, keys = model(x), state_of(model), [item.key for item in attached(model)]
    with pytest.raises(PlanError, match=rf"do not merge: `1\.{method.name}` \({reason}"):
        merge(model)
    assert_unchanged(model, before, keys)
    assert torch.equal(model(x), y)


def test_merge__refuses_a_convolution_with_weights_of_its_own(shake: Shake) -> None:
    model = nn.Sequential(Standardised(3, 4, 3))
    inject(model, Plan({"0": ScaleShift()}))
    with pytest.raises(PlanError, match=r"`0\.scale_shift` \(a Standardised has a `forward` of its own"):
        merge(model)


@pytest.mark.parametrize("method", [ScaleShift(), IA3()], ids=["scale_shift", "ia3"])
@pytest.mark.parametrize("kind", ["BatchNormAct2d", "LayerNormAct2d", "LayerNormAct", "GroupNormAct"])
def test_merge__refuses_a_norm_with_an_activation(kind: str, method: Method) -> None:
    size = {"num_groups": 2} if kind == "GroupNormAct" else {}
    model = nn.Sequential(getattr(timm.layers, kind)(8, **size))
    inject(model, Plan({"0": method}))
    with pytest.raises(PlanError, match=rf"`0\.{method.name}` \(a {kind} has an activation or a dropout of its own"):
        merge(model)


def test_merge__takes_a_subclass_without_a_forward_of_its_own(shake: Shake) -> None:
    model = nn.Sequential(Renamed(6, 6)).eval()
    inject(model, Plan({"0": [LoRA(2), ScaleShift()]}))
    shake(model)
    x = torch.randn(3, 6)
    y = model(x)
    merge(model)
    torch.testing.assert_close(model(x), y)


IMAGE, ROWS = (2, 8, 5, 7), (2, 5, 8)
KNOWN = {
    "torch.nn.modules.linear.Linear": (lambda: nn.Linear(8, 8), ROWS),
    "torch.nn.modules.conv.Conv2d": (lambda: nn.Conv2d(8, 8, 3), IMAGE),
    "torch.nn.modules.normalization.LayerNorm": (lambda: nn.LayerNorm(8), ROWS),
    "torch.nn.modules.normalization.GroupNorm": (lambda: nn.GroupNorm(2, 8), IMAGE),
    "torch.nn.modules.batchnorm._BatchNorm": (lambda: nn.BatchNorm2d(8), IMAGE),
    "timm.layers.conv2d_same.Conv2dSame": (lambda: timm.layers.Conv2dSame(8, 8, 3, stride=2), IMAGE),
    "timm.layers.linear.Linear": (lambda: timm.layers.linear.Linear(8, 8), ROWS),
    "timm.layers.norm.GroupNorm": (lambda: timm.layers.GroupNorm(8, num_groups=2), IMAGE),
    "timm.layers.norm.GroupNorm1": (lambda: timm.layers.GroupNorm1(8), IMAGE),
    "timm.layers.norm.LayerNorm": (lambda: timm.layers.LayerNorm(8), ROWS),
    "timm.layers.norm.LayerNorm2d": (lambda: timm.layers.LayerNorm2d(8), IMAGE),
    "timm.layers.norm.LayerNorm2dFp32": (lambda: timm.layers.LayerNorm2dFp32(8), IMAGE),
    "timm.layers.norm.LayerNormFp32": (lambda: timm.layers.LayerNormFp32(8), ROWS),
    "timm.layers.norm_act.BatchNormAct2d": (lambda: timm.layers.BatchNormAct2d(8, apply_act=False), IMAGE),
    "timm.layers.norm_act.GroupNormAct": (lambda: timm.layers.GroupNormAct(8, num_groups=2, apply_act=False), IMAGE),
    "timm.layers.norm_act.LayerNormAct": (lambda: timm.layers.LayerNormAct(8, apply_act=False), ROWS),
    "timm.layers.norm_act.LayerNormAct2d": (lambda: timm.layers.LayerNormAct2d(8, apply_act=False), IMAGE),
    "torchvision.models.convnext.LayerNorm2d": (lambda: torchvision.models.convnext.LayerNorm2d(8), IMAGE),
    "vispeft.models.layers.pyramid.ChannelNorm": (lambda: ChannelNorm(8), IMAGE),
}


def transformers_norm(name: str) -> nn.Module:
    """A norm of the transformers library over the channels of [B, C, H, W]; skips where it is not installed."""
    pytest.importorskip("transformers")
    module, _, kind = name.rpartition(".")
    made: nn.Module = getattr(__import__(module, fromlist=[kind]), kind)(8, data_format="channels_first")
    return made


@pytest.mark.parametrize("name", sorted(LINEAR_FORWARDS | LINEAR_UNLESS_ACTIVATED))
def test_merge__equals_unmerged_for_every_forward_that_is_known(name: str, shake: Shake) -> None:
    torch.manual_seed(0)
    make, shape = KNOWN.get(name, (lambda: transformers_norm(name), IMAGE))
    model = nn.Sequential(make()).eval()
    owner = next(kind for kind in type(model[0]).__mro__ if "forward" in vars(kind))
    assert f"{owner.__module__}.{owner.__qualname__}" == name
    inject(model, Plan({"0": [ScaleShift(), IA3()]}))
    shake(model)
    x = torch.randn(shape)
    with torch.no_grad():
        y = model(x)
        merge(model)
        torch.testing.assert_close(model(x), y)


def test_widths__of_a_norm_over_channels_are_along_channels_where_height_equals_them() -> None:
    model = nn.Sequential(ChannelNorm(8))
    inject(model, Plan({"0": ScaleShift()}))
    with torch.no_grad():
        model[0].scale_shift.gain[3] = 0
        y = model(torch.randn(1, 8, 8, 8))
    assert not y[:, 3].any()
    assert y[:, 2].all()


def test_merge__refuses_a_norm_over_several_axes() -> None:
    model = nn.Sequential(nn.LayerNorm((8, 8)))
    inject(model, Plan({"0": IA3()}))
    with pytest.raises(PlanError, match=r"`0\.ia3` \(it normalises over several axes"):
        merge(model)


@pytest.mark.parametrize("views", [False, True], ids=["one parameter", "one memory"])
@pytest.mark.parametrize("method", LINEAR.values(), ids=LINEAR)
def test_merge__refuses_a_weight_that_another_module_has_too(method: Method, views: bool, shake: Shake) -> None:
    model = Tied(views=views)
    inject(model, Plan({"a": method}))
    shake(model)
    before = state_of(model)
    with pytest.raises(PlanError, match=rf"`a\.{method.name}` \(its `weight` is also `b\.weight`"):
        merge(model)
    assert_unchanged(model, before, [f"a.{method.name}"])


def test_merge__takes_a_module_that_is_called_twice() -> None:
    shared = nn.Linear(6, 6)
    twice = nn.Sequential(shared, nn.Tanh(), shared)
    inject(twice, Plan({"0": LoRA(2)}))
    nn.init.normal_(twice[0].lora.b)
    x = torch.randn(3, 6)
    with torch.no_grad():
        y = twice(x)
        merge(twice)
        torch.testing.assert_close(twice(x), y)


@pytest.mark.parametrize("failing", ["copy_", "remove", "merged"])
def test_merge__leaves_the_model_as_it_was_when_anything_fails(
    failing: str, build: Build, images: Tensor, shake: Shake, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build()
    inject(
        model, Plan({"blocks.*.mlp.fc1": [LoRA(2), IA3()], "conv": ScaleShift(), "reader.weight": LoRA(2)}, ["head"])
    )
    shake(model)
    y, before, keys = model(images), state_of(model), [item.key for item in attached(model)]
    owner, name = {
        "copy_": (Tensor, "copy_"),
        "remove": (import_module("vispeft.peft.merge"), "remove"),
        "merged": (type(model.blocks[0].mlp.fc1.lora), "merged"),
    }[failing]
    original, left = getattr(owner, name), 0 if failing == "remove" else 1

    def fail(*args: object) -> object:
        nonlocal left
        left -= 1
        if left == -1:
            raise RuntimeError("no memory")
        return original(*args)

    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(RuntimeError, match="no memory"):
        merge(model)
    monkeypatch.undo()
    assert_unchanged(model, before, keys)
    assert torch.equal(model(images), y)
    merge(model)
    torch.testing.assert_close(model(images), y)


def test_merge__refuses_values_that_the_precision_cannot_hold() -> None:
    model = nn.Sequential(nn.Linear(4, 4)).half()
    inject(model, Plan({"0": IA3()}))
    nn.init.constant_(model[0].ia3.gain, 1e7)
    with pytest.raises(PlanError, match=r"merged values of its `weight` are not finite in float16"):
        merge(model)


def test_merge__refuses_deltas_that_are_switched_off(shake: Shake) -> None:
    model = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    inject(model, Plan({"self_attn.in_proj_weight": LoRA(2), "linear1": LoRA(2)}))
    shake(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with disabled(model), pytest.raises(PlanError, match=r"is switched off by `disabled`\. Leave its block"):
        merge(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    merge(model)


def test_merge__names_a_few_of_many_and_counts_the_others() -> None:
    model = nn.Sequential(*(Cosine(6, 6) for _ in range(9)))
    inject(model, Plan({"*": LoRA(2)}))
    with pytest.raises(PlanError, match=re.escape("`5.lora` and 3 more (a Cosine")):
        merge(model)


@pytest.mark.parametrize("method", [*LINEAR.values(), Adapter(width=2)], ids=[*LINEAR, "adapter"])
def test_merge__and_injection_keep_channels_last(method: Method, shake: Shake) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()).to(memory_format=torch.channels_last).eval()
    x = torch.randn(2, 8, 5, 7).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        y = model(x)
        inject(model, Plan({"0": method}))
        assert torch.equal(model(x), y)
        shake(model)
        changed = model(x)
        assert changed.is_contiguous(memory_format=torch.channels_last)
        if method.name == "adapter":
            return
        merge(model)
        assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(model(x), changed)


@pytest.mark.parametrize("method", [LoRA(2), DoRA(2)], ids=["lora", "dora"])
@pytest.mark.parametrize(
    "options",
    [
        {"padding": 2, "dilation": 2, "padding_mode": "reflect"},
        {"padding": (1, 2), "kernel_size": (3, 5), "padding_mode": "circular"},
        {"padding": "same", "kernel_size": (4, 3), "padding_mode": "replicate"},
        {"padding": "valid", "padding_mode": "reflect", "stride": 2},
    ],
    ids=["reflect", "circular", "replicate", "valid"],
)
def test_merge__of_a_convolution_padded_by_other_values(
    options: dict[str, object], method: Method, shake: Shake
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, **{"kernel_size": 3, **options})).eval()  # type: ignore[arg-type]
    inject(model, Plan({"0": method}))
    shake(model)
    x = torch.randn(2, 3, 9, 11)
    with torch.no_grad():
        y = model(x)
        merge(model)
        torch.testing.assert_close(model(x), y)
