"""Directories written by hand: what they mean, and one clear error for each that is damaged or hostile."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vispeft.errors import CheckpointError, PlanError
from vispeft.peft import DoRA, LoRA, Plan, inject, load_peft, save_peft
from vispeft.peft.inject import attached

Build = Callable[[], nn.Module]
Values = dict[str, Any]
PREFIX = "base_model.model."


def write(path: Path, tensors: dict[str, Tensor], **options: Any) -> Path:
    path.mkdir(exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 6, **options}))
    save_file(
        {PREFIX + name: tensor.contiguous() for name, tensor in tensors.items()}, path / "adapter_model.safetensors"
    )
    return path


def lora(site: str = "head", *, rank: int = 2, width: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(rank, width, generator=generator), torch.randn(4, rank, generator=generator)
    return {f"{site}.lora_A.weight": a, f"{site}.lora_B.weight": b}


def weight_of(model: nn.Module) -> Tensor:
    """Return the matrix that the head applies, deltas and all."""
    columns: Tensor = model.head(torch.eye(4)) - model.head(torch.zeros(4, 4))
    return columns.detach().t()


@pytest.mark.parametrize("is_root", [False, True], ids=["rank", "root"])
def test_load_peft__adds_the_product_with_the_scale_of_its_configuration(
    is_root: bool, build: Build, tmp_path: Path
) -> None:
    tensors, model = lora(), build()
    a, b = tensors.values()
    load_peft(model, write(tmp_path, tensors, use_rslora=is_root))
    scale = 6 / 2**0.5 if is_root else 3
    torch.testing.assert_close(weight_of(model), build().head.weight + scale * b @ a)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_load_peft__takes_the_start_off_the_base(start: str, build: Build, tmp_path: Path) -> None:
    tensors, model = lora(), build()
    a, b = tensors.values()
    weight = model.head.weight.detach()
    if start == "pissa":
        left, values, right = torch.linalg.svd(weight)
        first = left[:, :2] @ values[:2].diag() @ right[:2]
    else:
        q, r = torch.linalg.qr(weight)
        first = 3 * q[:, :2] @ r[:2]
    load_peft(model, write(tmp_path, tensors, init_lora_weights=start))
    torch.testing.assert_close(weight_of(model), weight - first + 3 * b @ a)
    assert attached(model)[0].delta.method == LoRA(rank=4, alpha=12.0)
    assert torch.equal(model.head.weight, weight)


def test_load_peft__sets_dropout_and_the_mode_of_the_site(build: Build, tmp_path: Path) -> None:
    model = build()
    load_peft(model, write(tmp_path, lora(), lora_dropout=0.5))
    (item,) = attached(model)
    assert item.delta.method == LoRA(rank=2, alpha=6.0, dropout=0.5)
    assert not item.delta.training


def test_load_peft__refuses_starts_and_magnitudes_of_quantised_weights(build: Build, tmp_path: Path) -> None:
    model = build()
    model.head.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(CheckpointError, match="cannot be computed from quantised weights"):
        load_peft(model, write(tmp_path, lora(), init_lora_weights="olora"))
    tensors = lora() | {"head.lora_magnitude_vector": torch.ones(4)}
    with pytest.raises(CheckpointError, match="DoRA at `head`, whose weights are quantised here"):
        load_peft(model, write(tmp_path, tensors, use_dora=True))


def test_load_and_save_peft__refuse_a_model_without_values(build: Build, tmp_path: Path) -> None:
    model = build().to("meta")
    with pytest.raises(CheckpointError, match="on the meta device and has no values"):
        load_peft(model, write(tmp_path, lora()))
    inject(model, Plan({"head": LoRA(2)}))
    with pytest.raises(CheckpointError, match="on the meta device and has no values"):
        save_peft(model, tmp_path)


def test_load_peft__leaves_out_buffers_that_nothing_trains(build: Build, tmp_path: Path) -> None:
    def frozen() -> nn.Module:
        model = build()
        del model.weights.inner.bias
        model.weights.inner.register_buffer("bias", torch.ones(4))
        return model

    tensors = lora() | {"weights.inner.bias": torch.ones(4)}
    load_peft(frozen(), write(tmp_path / "equal", tensors, bias="all"))
    tensors["weights.inner.bias"] = torch.zeros(4)
    with pytest.raises(CheckpointError, match=r"its `weights\.inner\.bias`, which nothing trains, has other values"):
        load_peft(frozen(), write(tmp_path / "other", tensors, bias="all"))


def test_load_peft__reads_the_names_of_a_compiled_base(build: Build, tmp_path: Path) -> None:
    model, plain = build(), build()
    load_peft(model, write(tmp_path / "compiled", lora("_orig_mod.head")))
    load_peft(plain, write(tmp_path / "plain", lora()))
    assert torch.equal(weight_of(model), weight_of(plain))


def test_load_peft__refuses_a_model_with_a_plan(build: Build, tmp_path: Path) -> None:
    model = build()
    inject(model, Plan({"head": LoRA(2)}))
    with pytest.raises(PlanError, match="has a plan already"):
        load_peft(model, write(tmp_path, lora()))


OPTIONS = {
    "kind": ({"peft_type": "NEW"}, "peft_type 'NEW', which has no counterpart here. ADALORA"),
    "no kind": ({"peft_type": None}, "peft_type None"),
    "odd kind": ({"peft_type": ["LORA"]}, "no counterpart here"),
    "text for a rank": ({"r": "2"}, "`r` set to '2', but needs a positive integer"),
    "truth for a rank": ({"r": True}, "needs a positive integer"),
    "other rank": ({"r": 3}, "`head` has rank 2, but rank 3 in its configuration"),
    "infinite alpha": ({"lora_alpha": float("inf")}, "needs a finite number"),
    "negative start": ({"lora_alpha": -1, "init_lora_weights": "pissa"}, r"a scale of -0\.5"),
    "no alpha": ({"lora_alpha": 0}, "`alpha` must be finite and not 0"),
    "text for a truth": ({"use_dora": "yes"}, "needs true or false"),
    "list for a table": ({"rank_pattern": [1]}, "needs values by pattern"),
    "broken pattern": ({"alpha_pattern": {"(": 1}}, "a pattern in `alpha_pattern` that cannot be read"),
    "text in a table": ({"rank_pattern": {"head": "x"}}, "needs a positive integer"),
    "no magnitudes": ({"use_dora": True}, "`head` has no lora_magnitude_vector"),
    "fan in": ({"fan_in_fan_out": True}, "`fan_in_fan_out` set to True, which has no counterpart"),
    "quantised start": ({"init_lora_weights": "loftq"}, "a quantisation of the base"),
    "data start": ({"init_lora_weights": "corda"}, "computed from data"),
    "unknown start": ({"init_lora_weights": "new"}, "not known here"),
    "dropout": ({"lora_dropout": 2}, "`dropout` must be at least 0 and below 1"),
}


@pytest.mark.parametrize(("change", "message"), OPTIONS.values(), ids=OPTIONS)
def test_load_peft__refuses_options_by_name(change: Values, message: str, build: Build, tmp_path: Path) -> None:
    model = build()
    with pytest.raises(CheckpointError, match=message):
        load_peft(model, write(tmp_path, lora(), **change))
    assert not attached(model)


TENSORS = {
    "lone a": ({"head.lora_A.weight": torch.ones(2, 4)}, "`head` has no lora_B"),
    "lone b": ({"head.lora_B.weight": torch.ones(4, 2)}, "`head` has no lora_A"),
    "flat": (lora() | {"head.lora_A.weight": torch.ones(8)}, "damaged: the factors of `head` are"),
    "other width": (lora(width=5), r"`head\.lora\.a` is \[2, 5\] in the file and \[2, 4\]"),
    "integers": (lora() | {"head.lora_A.weight": torch.ones(2, 4, dtype=torch.int64)}, "holds torch.int64 values"),
    "unknown": (lora() | {"head.lora_C": torch.ones(2)}, r"a tensor `head\.lora_C`, which has no counterpart"),
    "another base": (lora("nowhere"), "another base: this model has no `nowhere`"),
    "another tensor": (lora() | {"nowhere.weight": torch.ones(2)}, r"this model has no `nowhere\.weight`"),
    "no module for LoRA": (lora("net.bn"), "does not fit this model"),
    "nothing": ({}, "no tensors of an adapter"),
    "half a module": (lora() | {"net.bn.weight": torch.ones(8)}, r"has `net\.bn` in full, but lacks `net\.bn\.bias`"),
    "wrong size": (lora() | {"net.bn.weight": torch.ones(9)}, r"`net\.bn\.weight` is \[9\] in the file, but must be"),
}


@pytest.mark.parametrize(("tensors", "message"), TENSORS.values(), ids=TENSORS)
def test_load_peft__refuses_tensors_by_name(
    tensors: dict[str, Tensor], message: str, build: Build, tmp_path: Path
) -> None:
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_peft(model, write(tmp_path, tensors, modules_to_save=["bn"]))
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_load_peft__refuses_magnitudes_of_another_size(build: Build, tmp_path: Path) -> None:
    model, other = build(), build()
    inject(model, Plan({"net.conv": DoRA(2)}))
    save_peft(model, tmp_path)
    other.net.conv = nn.Conv2d(3, 6, 3)
    with pytest.raises(CheckpointError, match=r"`net\.conv\.lora_B` is \[8, 2, 1, 1\] in the file, but must be"):
        load_peft(other, tmp_path)


def test_load_peft__refuses_a_convolution_that_the_library_does_not_follow(build: Build, tmp_path: Path) -> None:
    model, other = build(), build()
    inject(model, Plan({"net.conv": LoRA(2)}))
    save_peft(model, tmp_path)
    other.net.conv.dilation = (2, 2)
    with pytest.raises(CheckpointError, match=r"forgets dilation and padding mode: at `net\.conv`"):
        load_peft(other, tmp_path)


class Command:
    """An object whose pickle runs a command when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["command", "list", "number", "empty"])
def test_load_peft__refuses_pickles_of_anything_but_tensors(kind: str, build: Build, tmp_path: Path) -> None:
    directory, trap = write(tmp_path / "adapter", lora()), tmp_path / "trap"
    (directory / "adapter_model.safetensors").unlink()
    content = {"command": {"a": Command(trap)}, "list": [torch.ones(1)], "number": {"a": 1}}
    if kind == "empty":
        (directory / "adapter_model.bin").write_bytes(b"")
    else:
        torch.save(content[kind], directory / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin` (cannot be read as|must hold) tensors by name"):
        load_peft(build(), directory)
    assert not trap.exists()


def test_load_peft__refuses_files_that_are_not_there_or_cut_off(build: Build, tmp_path: Path) -> None:
    directory = write(tmp_path / "adapter", lora())
    with pytest.raises(CheckpointError, match="is a file, but must be the directory"):
        load_peft(build(), directory / "adapter_config.json")
    (directory / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="cannot be read as a safetensors file"):
        load_peft(build(), directory)
    (directory / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither `adapter_model\.safetensors` nor `adapter_model\.bin`"):
        load_peft(build(), directory)
    (directory / "adapter_config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="must hold a JSON object, but holds list"):
        load_peft(build(), directory)
    (directory / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not valid JSON"):
        load_peft(build(), directory)


def test_load_peft__names_the_adapters_below_a_directory(build: Build, tmp_path: Path) -> None:
    write(tmp_path / "night", lora())
    with pytest.raises(CheckpointError, match="It has the adapters `night`: pass one of their folders"):
        load_peft(build(), tmp_path)


def test_load_peft__finds_names_of_the_hub_in_the_local_cache_alone(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, model = write(tmp_path / "snapshot", lora()), build()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="Run `hf download someone/lora` first, or check the path"):
        load_peft(model, "someone/lora")

    def cached(name: str, file: str) -> str | None:
        path = directory / file
        return str(path) if name == "someone/lora" and path.exists() else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    load_peft(model, "someone/lora")
    assert attached(model)
    with pytest.raises(CheckpointError, match=r"does not exist\. Check the path"):
        load_peft(build(), "a/path/of/three")
