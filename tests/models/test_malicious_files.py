"""Weights files whose unpickling would run code: refused by every family, and nothing of them is run."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vispeft.errors import CheckpointError
from vispeft.models import FAMILIES, build_model, load_weights
from vispeft.models.weight_files import read_state

TINY_VIT = {"backbone": "vit_tiny_patch16_224", "backbone_options": {"depth": 3, "embed_dim": 48}}
BUILDS: dict[str, dict[str, Any]] = {
    "mask_dino": {"backbone": "resnet18"},
    "mask2former": {"backbone": "resnet18"},
    "eomt": {**TINY_VIT, "num_blocks": 1},
    "pmt": TINY_VIT,
}


class Payload:
    """An object whose unpickling makes a directory."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.victim),)


def write_zip(content: Any, path: Path) -> None:
    """As torch writes files since version 1.6."""
    torch.save(content, path)


def write_legacy(content: Any, path: Path) -> None:
    """As torch wrote files before."""
    torch.save(content, path, _use_new_zipfile_serialization=False)


def write_pickle(content: Any, path: Path) -> None:
    """A plain pickle, as the model zoo of detectron2 has."""
    path.write_bytes(pickle.dumps(content))


FORMS = {"zip": write_zip, "legacy": write_legacy, "pickle": write_pickle}


def write_malicious(form: str, path: Path, victim: Path) -> None:
    FORMS[form]({"model": {"weight": torch.zeros(2)}, "extra": Payload(victim)}, path)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    return tmp_path / "executed"


@pytest.mark.parametrize("form", FORMS)
def test_payload__runs_where_a_pickle_is_opened_carelessly(form: str, tmp_path: Path, victim: Path) -> None:
    write_malicious(form, tmp_path / "model.pth", victim)
    if form == "pickle":
        pickle.loads((tmp_path / "model.pth").read_bytes())
    else:
        torch.load(tmp_path / "model.pth", weights_only=False)
    assert victim.is_dir()


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".bin", ".pt", ".safetensors"])
@pytest.mark.parametrize("form", FORMS)
def test_read_state__refuses_without_running(form: str, suffix: str, tmp_path: Path, victim: Path) -> None:
    path = tmp_path / f"model{suffix}"
    write_malicious(form, path, victim)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_state(path)
    assert not victim.exists()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", [name for name in FAMILIES if name in BUILDS])
def test_load_weights__refuses_without_running(family: str, form: str, tmp_path: Path, victim: Path) -> None:
    path = tmp_path / "model.pth"
    write_malicious(form, path, victim)
    with torch.device("meta"):
        model = build_model(family, num_classes=2, size="tiny", **BUILDS[family])
    for read in (lambda: load_weights(model, path), lambda: FAMILIES[family].num_classes_in(path)):
        with pytest.raises(CheckpointError, match="cannot be read"):
            read()
    assert not victim.exists()


@pytest.mark.parametrize("family", ["mask_dino", "mask2former", "eomt", "pmt"])
def test_build_model__refuses_malicious_weights_of_a_backbone(family: str, tmp_path: Path, victim: Path) -> None:
    path = tmp_path / "backbone.pth"
    write_malicious("zip", path, victim)
    with pytest.raises(CheckpointError, match="cannot be read"):
        build_model(family, num_classes=2, size="tiny", backbone_weights=path, **BUILDS[family])
    assert not victim.exists()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", ["mask2former", "transformers"])
def test_directory__with_a_malicious_pickle_is_refused_without_running(
    family: str, form: str, tmp_path: Path, victim: Path, transformers_directory: Callable[[str], Path]
) -> None:
    source, directory = transformers_directory("mask2former"), tmp_path / "directory"
    directory.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (directory / name).write_text((source / name).read_text())
    write_malicious(form, directory / "pytorch_model.bin", victim)
    reads: dict[str, Callable[[], object]] = {
        "mask2former": lambda: read_state(directory),
        "transformers": lambda: build_model("transformers", backbone=str(directory), num_classes=3, pretrained=True),
    }
    with pytest.raises(CheckpointError, match="cannot be read"):
        reads[family]()
    assert not victim.exists()


def test_directory__in_several_files_is_refused_without_running(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "part.bin"}}))
    write_malicious("zip", tmp_path / "part.bin", victim)
    with pytest.raises(CheckpointError, match=r"part\.bin cannot be read"):
        read_state(tmp_path)
    assert not victim.exists()


def test_read_state__refuses_an_archive_whose_pickle_was_replaced(tmp_path: Path, victim: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "good.pth")
    with zipfile.ZipFile(tmp_path / "good.pth") as good, zipfile.ZipFile(tmp_path / "bad.pth", "w") as bad:
        for name in good.namelist():
            bad.writestr(name, pickle.dumps(Payload(victim)) if name.endswith("data.pkl") else good.read(name))
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_state(tmp_path / "bad.pth")
    assert not victim.exists()
