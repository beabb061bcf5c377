"""Commands on published and shared models: models, push, and predict by a name of the hub."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vispeft.engine import RunDirectory
from vispeft.zoo import BACKBONES, MODELS

Command = Callable[..., tuple[int, str, str]]


def test_models__lists_all(command: Command) -> None:
    status, out, err = command("models")
    assert (status, err) == (0, "")
    assert all(name in out for name in [*MODELS, *(backbone.name for backbone in BACKBONES)])


def test_models__shows_one(command: Command) -> None:
    status, out, _ = command("models", "mask2former_swin_t")
    assert status == 0
    for text in ("model_final_86143f.pkl", "CC-BY-NC-4.0", "45.0", "vispeft evaluate mask2former_swin_t data.val"):
        assert text in out


def test_models__an_unknown_name(command: Command) -> None:
    status, out, err = command("models", "mask_dino_r5")
    assert (status, out) == (1, "")
    assert "Did you mean `mask_dino_r50`?" in err


def test_push__then_predict(
    finished: RunDirectory,
    shapes_set: Path,
    hub: Any,
    hub_stand_in: ModuleType,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub_stand_in.TOKEN)
    status, out, err = command("push", finished.root, "me/run", "--private", "--license", "mit")
    assert status == 0, err
    assert f"{hub.url}/me/run/commit/" in out
    assert "vispeft predict hf://me/run photos" in out
    assert hub.repositories["me/run"].is_private
    image = shapes_set / "images" / "val_00000.png"
    for run, folder in (("hf://me/run", "hub"), (finished.root, "local")):
        status, _, err = command("predict", run, image, "--out", tmp_path / folder, "--threshold", 0)
        assert status == 0, err
    found, expected = (json.loads((tmp_path / f / "predictions.json").read_text()) for f in ("hub", "local"))
    assert found == expected
    assert found


def test_push__dry_run_writes_the_folder(finished: RunDirectory, hub: Any, command: Command, tmp_path: Path) -> None:
    status, out, err = command("push", finished.root, "me/run", "--dry-run", "--out", tmp_path / "folder")
    assert status == 0, err
    assert str(tmp_path / "folder") in out
    assert (tmp_path / "folder" / "README.md").read_text().startswith("---\nlibrary_name: vispeft\n")
    assert not hub.requests


def test_push__dry_run_replaces_its_own_files_alone(
    finished: RunDirectory, hub: Any, command: Command, tmp_path: Path
) -> None:
    for _ in range(2):
        assert command("push", finished.root, "me/run", "--dry-run", "--out", tmp_path / "folder")[0] == 0
    project = tmp_path / "project"
    project.mkdir()
    (project / "README.md").write_text("# mine\n")
    status, _, err = command("push", finished.root, "me/run", "--dry-run", "--out", project)
    assert (status, err) == (1, f"error: `{project}` holds other files (README.md). Give a new folder.\n")
    (project / "README.md").unlink()
    (project / "adapter.safetensors").touch()
    (project / "notes").touch()
    assert command("push", finished.root, "me/run", "--dry-run", "--out", project)[0] == 1


def test_push__out_needs_dry_run(finished: RunDirectory, command: Command, tmp_path: Path) -> None:
    assert command("push", finished.root, "me/run", "--out", tmp_path)[0] == 2


def test_push__without_a_token_is_one_message(finished: RunDirectory, hub: Any, command: Command) -> None:
    status, out, err = command("push", finished.root, "me/run", "--token", "hf_wrong")
    assert (status, out) == (1, "")
    assert err.splitlines()[-1].startswith("error: The hub answers 401 for hf://me/run.")


def test_train__without_a_network_is_one_message(
    tiny: dict[str, Any], hub: Any, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import yaml

    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({**tiny, "model": {"weights": "mask_dino_r50"}}))
    monkeypatch.setenv("VISPEFT_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    status, _, err = command("train", path, "model.image_size=64", "--out", tmp_path / "run")
    assert status == 1
    (line,) = err.splitlines()
    assert line.startswith("error: https://github.com/IDEA-Research/")
    assert "is not in the cache" in line
    assert not (tmp_path / "run").exists()
