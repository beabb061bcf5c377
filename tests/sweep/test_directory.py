from pathlib import Path
from typing import Any

import pytest

from vispeft.errors import ConfigError, TrainingError
from vispeft.sweep import load_sweep, open_sweep_directory

GRID = {"space": {"train.lr": [1e-3, 1e-2]}}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_open__the_same_sweep_has_the_same_directory(folder: Any) -> None:
    path = folder.write(GRID)
    first = open_sweep_directory(load_sweep(path), None)
    assert first.root == Path("runs/small-1")
    assert open_sweep_directory(load_sweep(path, ["sweep.workers=2"]), None).root == first.root
    assert load_sweep(first.sweep).settings.workers == 2
    assert open_sweep_directory(load_sweep(path, ["train.steps=9"]), None).root == Path("runs/small-2")
    assert open_sweep_directory(load_sweep(path), None).root == first.root
    assert sorted(path.name for path in Path("runs").iterdir()) == ["small-1", "small-2"]


def test_open__a_given_directory(folder: Any, tmp_path: Path) -> None:
    path = folder.write(GRID)
    out = tmp_path / "deep" / "out"
    assert open_sweep_directory(load_sweep(path), out).root == out
    assert open_sweep_directory(load_sweep(path), out).root == out
    with pytest.raises(ConfigError, match=r"contains a sweep with other settings: `train\.steps` differ"):
        open_sweep_directory(load_sweep(path, ["train.steps=9"]), out)
    with pytest.raises(TrainingError, match="contains no sweep"):
        open_sweep_directory(load_sweep(path), tmp_path)
