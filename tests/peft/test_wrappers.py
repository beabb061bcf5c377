"""Compiled and wrapped models are served as the models inside."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DataParallel
from torch.optim.swa_utils import AveragedModel

from vispeft.errors import PlanError
from vispeft.peft import (
    LoRA,
    Plan,
    check,
    count,
    disabled,
    inject,
    load_adapter,
    merge,
    remove,
    save_adapter,
    train_mode,
)
from vispeft.peft.inject import is_injected
from vispeft.peft.wrappers import unwrapped

Build = Callable[[], nn.Module]
Wrap = Callable[[nn.Module], nn.Module]

PLAN = Plan({"blocks.*.attn.qkv": LoRA(2), "reader.weight": LoRA(2)}, ["head.**"])


def compiled(model: nn.Module) -> nn.Module:
    wrapped: nn.Module = torch.compile(model, backend="eager")
    return wrapped


def fabric(model: nn.Module) -> nn.Module:
    return Fabric(accelerator="cpu", devices=1).setup_module(model)


WRAPS = {
    "compiled": compiled,
    "data parallel": DataParallel,
    "averaged": AveragedModel,
    "fabric": fabric,
    "compiled in data parallel": lambda model: DataParallel(compiled(model)),
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_wrapped_models__are_served_as_the_model_inside(
    wrap: Wrap, build: Build, images: Tensor, shake: Callable[[nn.Module], None], tmp_path: Path
) -> None:
    model = wrap(build())
    inner, base = unwrapped(model), build()
    inject(model, PLAN)
    assert "blocks.0.attn.qkv.lora.a" in inner.state_dict()
    shake(inner)
    check(model, images)
    assert count(model) == count(inner)
    train_mode(model)
    assert model.training
    assert not inner.bn.training
    model.eval()
    with torch.no_grad():
        wanted = inner(images)
        torch.testing.assert_close(model(images), wanted)
        with disabled(model):
            assert not torch.allclose(inner(images), wanted)
    save_adapter(model, tmp_path / "a.safetensors")
    assert "head.weight" in load_file(tmp_path / "a.safetensors")
    load_adapter(base, tmp_path / "a.safetensors")
    torch.testing.assert_close(base(images), wanted)
    again = wrap(build())
    load_adapter(again, tmp_path / "a.safetensors")
    torch.testing.assert_close(unwrapped(again)(images), wanted)
    remove(again)
    assert not is_injected(unwrapped(again))
    merge(model)
    with torch.no_grad():
        torch.testing.assert_close(inner(images), wanted)
        torch.testing.assert_close(model(images), wanted)


def test_unwrapped__is_the_model_itself_without_a_wrapper(build: Build) -> None:
    model = build()
    assert unwrapped(model) is model


def test_inject__refuses_a_model_of_torchscript(images: Tensor) -> None:
    with pytest.raises(PlanError, match=r"TorchScript and cannot be changed\. Give the model that it was made from"):
        inject(torch.jit.trace(nn.Conv2d(3, 4, 1), images), Plan(train=["**"]))


def test_inject__says_what_to_do_with_a_part_that_is_compiled() -> None:
    model = nn.Sequential(compiled(nn.Linear(4, 4)))
    with pytest.raises(PlanError, match=r"`0` at `0`: A OptimizedModule is a wrapper.*Call `inject` before"):
        inject(model, Plan({"0": LoRA(2)}))
