"""Weights of a backbone alone: the forms that they come in, and what does not fit."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from vispeft.errors import CheckpointError, ConfigError
from vispeft.models import build_model, load_weights

NAME = "test_resnet"
State = dict[str, Tensor]


def _state(name: str = NAME, **options: Any) -> State:
    torch.manual_seed(7)
    state: State = timm.create_model(name, **options).state_dict()
    return state


def _body(path: Path, name: str = NAME, **options: Any) -> Any:
    return build_model("mask_dino", backbone=name, backbone_weights=path, size="tiny", **options).backbone.body


def _prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


FORMS: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "model": lambda state: {"model": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
    "state_dict_of_processes": lambda state: {"state_dict": _prefixed(state, "module.")},
    "teacher_with_head": lambda state: {
        "teacher": {**_prefixed(state, "module.backbone."), "module.head.mlp.weight": torch.ones(2)},
        "student": {"other": torch.ones(1)},
    },
    "detector": lambda state: {"state_dict": {**_prefixed(state, "backbone."), "neck.conv.weight": torch.ones(2)}},
    "ema": lambda state: {"model": {"wrong": torch.ones(1)}, "model_ema": state},
    "compiled": lambda state: _prefixed(state, "_orig_mod."),
}


@pytest.mark.parametrize("form", FORMS)
def test_backbone_weights__are_loaded_from_every_form(tmp_path: Path, form: str) -> None:
    state = _state()
    torch.save(FORMS[form](state), tmp_path / "weights.pth")
    loaded = _body(tmp_path / "weights.pth").state_dict()
    assert loaded
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())


@pytest.mark.parametrize("ending", ["safetensors", "bin", "pt"])
def test_backbone_weights__ignore_a_classifier_of_another_size(tmp_path: Path, ending: str) -> None:
    state, path = _state(num_classes=5), tmp_path / f"weights.{ending}"
    if ending == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    loaded = _body(path).state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())


def test_backbone_weights__position_embeddings_are_resized(tmp_path: Path) -> None:
    state = _state("beit_base_patch16_224", depth=3, embed_dim=24, num_heads=2)
    state["blocks.0.attn.relative_position_bias_table"] += 1
    torch.save(state, tmp_path / "weights.pth")
    options = {"depth": 3, "embed_dim": 24, "num_heads": 2}
    body = _body(tmp_path / "weights.pth", "beit_base_patch16_224", image_size=64, backbone_options=options)
    loaded = body.state_dict()
    assert torch.equal(loaded["model.patch_embed.proj.weight"], state["patch_embed.proj.weight"])
    table = "blocks.0.attn.relative_position_bias_table"
    assert loaded[f"model.{table}"].shape != state[table].shape
    assert loaded[f"model.{table}"].mean() > 0.5


def test_backbone_weights__keep_no_second_copy(tmp_path: Path) -> None:
    torch.save(_state("test_vit"), tmp_path / "weights.pth")
    body = _body(tmp_path / "weights.pth", "test_vit")
    assert not any("state_dict" in (module.__dict__.get("pretrained_cfg") or {}) for module in body.modules())


@pytest.mark.parametrize(
    ("source", "target", "told"),
    [
        ("test_vit", "test_resnet", "it lacks "),
        ("resnet18", "resnet34", r"it lacks layer1\.2\.conv1\.weight, .* and \d+ more"),
        ("resnet34", "resnet18", r"it has unknown layer1\.2\.conv1\.weight, .* and \d+ more"),
        ("resnet50", "resnet18", r"size mismatch for layer1\.0\.conv1\.weight"),
    ],
)
def test_backbone_weights__of_another_backbone_are_refused(tmp_path: Path, source: str, target: str, told: str) -> None:
    path = tmp_path / "weights.pth"
    torch.save(_state(source), path)
    with pytest.raises(CheckpointError, match=told) as error:
        _body(path, target)
    assert str(error.value).startswith(f"`backbone_weights` {path} does not fit `backbone` {target}: ")


def test_backbone_weights__that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pth does not exist.*`backbone_weights`"):
        _body(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(CheckpointError, match=r"text\.pth cannot be read"):
        _body(tmp_path / "text.pth")
    torch.save(_state(), tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match=r"timm cannot build `backbone` 'test_resnet'"):
        _body(tmp_path / "weights.pth", backbone_options={"nonsense": 1})


@pytest.mark.parametrize("form", ["plain", "teacher_with_head", "state_dict_of_processes"])
def test_load_weights__says_that_a_file_holds_a_backbone_alone(tmp_path: Path, form: str) -> None:
    torch.save(FORMS[form](_state()), tmp_path / "weights.pth")
    model = build_model("mask_dino", backbone=NAME, size="tiny")
    with pytest.raises(CheckpointError, match=r"weights of a backbone alone .* `backbone_weights=.*weights\.pth"):
        load_weights(model, tmp_path / "weights.pth")


@pytest.mark.parametrize("name", ["weights.SAFETENSORS", "pytorch_model.bin", "weights"])
def test_backbone_weights__knows_safetensors_by_their_content(tmp_path: Path, name: str) -> None:
    save_file(_state(), tmp_path / name)
    torch.testing.assert_close(_body(tmp_path / name).conv1[0].weight, _state()["conv1.0.weight"])


def test_backbone_weights__of_torch_may_be_called_safetensors(tmp_path: Path) -> None:
    torch.save(_state(), tmp_path / "weights.safetensors")
    body = _body(tmp_path / "weights.safetensors")
    torch.testing.assert_close(body.conv1[0].weight, _state()["conv1.0.weight"])


def test_backbone_weights__of_a_model_saved_whole_are_refused_with_the_remedy(tmp_path: Path) -> None:
    torch.save(timm.create_model(NAME), tmp_path / "whole.pth")
    with pytest.raises(CheckpointError, match=r"holds more than tensors.* save `model\.state_dict\(\)` instead"):
        _body(tmp_path / "whole.pth")
