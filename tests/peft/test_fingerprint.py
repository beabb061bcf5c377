"""An adapter fits its base in any precision, and no other base."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vispeft.errors import CheckpointError
from vispeft.peft import LoRA, Plan, describe, inject, load_adapter, save_adapter
from vispeft.peft.inject import is_injected

Build = Callable[[], nn.Module]
Shake = Callable[[nn.Module], None]

PLAN = Plan({"blocks.*.attn.qkv": LoRA(2), "conv": LoRA(2)}, ["head.**"])


def mixed(model: nn.Module) -> nn.Module:
    """The model in bfloat16, its norms in float32."""
    model.bfloat16()
    for norm in (model.blocks[0].norm1, model.blocks[1].norm2, model.bn):
        norm.float()
    return model


TO = {
    "float64": nn.Module.double,
    "float32": nn.Module.float,
    "bfloat16": nn.Module.bfloat16,
    "float16": nn.Module.half,
    "mixed": mixed,
}


@pytest.fixture
def saved(build: Build, shake: Shake, tmp_path: Path) -> Callable[[Callable[[nn.Module], nn.Module]], Path]:
    """Saves an adapter of the base in some precision."""

    def make(to: Callable[[nn.Module], nn.Module]) -> Path:
        model = to(build())
        inject(model, PLAN)
        shake(model)
        save_adapter(model, tmp_path / "a.safetensors")
        return tmp_path / "a.safetensors"

    return make


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ("float32", "float64"),
        ("float32", "bfloat16"),
        ("float32", "float16"),
        ("float32", "mixed"),
        ("float64", "float32"),
        ("float64", "bfloat16"),
        ("mixed", "bfloat16"),
    ],
)
def test_load__takes_the_base_in_another_precision(
    there: str, here: str, saved: Callable[..., Path], build: Build
) -> None:
    file, model = saved(TO[there]), TO[here](build())
    load_adapter(model, file)
    tensors = load_file(file)
    assert model.head.weight.dtype == model.conv.weight.dtype
    torch.testing.assert_close(model.head.weight, tensors["head.weight"].to(model.head.weight.dtype))
    torch.testing.assert_close(model.conv.lora.b, tensors["conv.lora.b"].to(model.conv.lora.b.dtype))


@pytest.mark.parametrize("here", ["float32", "float64"])
def test_load__takes_a_base_in_half_precision_made_whole_again(
    here: str, saved: Callable[..., Path], build: Build
) -> None:
    file = saved(TO["bfloat16"])
    load_adapter(TO[here](build().bfloat16()), file)


def test_load__computes_in_bfloat16_nearly_what_was_trained(
    saved: Callable[..., Path], build: Build, images: Tensor
) -> None:
    file, whole, half = saved(TO["float32"]), build(), build().bfloat16()
    load_adapter(whole, file)
    load_adapter(half, file)
    with torch.no_grad():
        torch.testing.assert_close(half(images.bfloat16()).float(), whole(images), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("here", TO)
def test_load__refuses_another_base_in_any_precision(here: str, saved: Callable[..., Path], build: Build) -> None:
    file, model = saved(TO["float32"]), build()
    with torch.no_grad():
        model.conv.weight[0, 0, 0, 0] += 0.1
    TO[here](model)
    with pytest.raises(CheckpointError, match="Build the same model with the same weights"):
        load_adapter(model, file)
    assert not is_injected(model)


@pytest.mark.parametrize("precision", ["float32", "mixed"])
def test_load__refuses_a_base_in_the_same_precision_that_differs_below_bfloat16(
    precision: str, saved: Callable[..., Path], build: Build
) -> None:
    file, model = saved(TO[precision]), TO[precision](build())
    with torch.no_grad():
        model.blocks[0].norm1.weight[0] += 1e-6
    with pytest.raises(CheckpointError, match="Build the same model with the same weights"):
        load_adapter(model, file)


def test_load__refuses_a_half_of_a_half(saved: Callable[..., Path], build: Build) -> None:
    file = saved(TO["float16"])
    with pytest.raises(CheckpointError, match=r"\(bfloat16\).*convert the model after `load_adapter`"):
        load_adapter(build().bfloat16(), file)


def _without_rounded(file: Path) -> None:
    """Makes a file as earlier versions wrote it."""
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["vispeft"])
    del header["rounded"]
    save_file(load_file(file), file, metadata={"vispeft": json.dumps(header)})


def test_load__takes_files_of_earlier_versions_on_the_exact_base(saved: Callable[..., Path], build: Build) -> None:
    file = saved(TO["float32"])
    _without_rounded(file)
    load_adapter(build(), file)
    load_adapter(build().double(), file)
    assert describe(file).rounded == {}
    with pytest.raises(CheckpointError, match=r"\(bfloat16\).*convert the model after `load_adapter`"):
        load_adapter(build().bfloat16(), file)
