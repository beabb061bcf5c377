"""Output of the command `sweep`. Stopped and killed sweeps are in tests/sweep/test_processes.py."""

import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Command = Callable[..., tuple[int, str, str]]
SECTION = {"space": {"train.lr": [0.001, 0.002]}, "seeds": [1, 2]}


@pytest.fixture
def sweep_path(tiny: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**tiny, "sweep": SECTION}, sort_keys=False))
    return path


def test_sweep__a_table_and_a_configuration_to_train(
    sweep_path: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = command("sweep", sweep_path, "train.steps=1")
    assert status == 0, err
    assert [line.split("]")[0] for line in err.splitlines() if line.startswith("[")] == [f"[{i}/4" for i in range(1, 5)]
    assert "train.lr=0.002, seed 2" in out
    assert "means over 2 seeds). Train it with: vispeft train runs/small-1/best.yaml" in out
    sentence = json.loads(Path("runs/small-1/comparison.json").read_text())["sentence"]
    assert sentence in out
    assert sentence in html.unescape(Path("runs/small-1/report.html").read_text())
    status, _, err = command("train", "runs/small-1/best.yaml", "--out", "best")
    assert status == 0, err
    status, out, err = command("sweep", sweep_path, "train.steps=1")
    assert status == 0
    assert "all 4 trials are done" in err
    assert "train.lr=0.002, seed 2" in out


def test_sweep__wrong_key(sweep_path: Path, command: Command) -> None:
    status, out, err = command("sweep", sweep_path, "sweep.space={train.lrr: [1]}")
    assert (status, out) == (1, "")
    assert "`train.lrr` is not a configuration key. Did you mean `train.lr`?" in err
    assert not (sweep_path.parent / "runs").exists()


def test_sweep__train_refuses_a_sweep_file(sweep_path: Path, command: Command) -> None:
    status, _, err = command("train", sweep_path)
    assert status == 1
    assert "`sweep` is not a configuration key" in err


def test_sweep__help_has_an_example(command: Command) -> None:
    status, out, _ = command("sweep", "--help")
    assert status == 0
    assert "Example: vispeft sweep" in " ".join(out.replace("│", " ").split())


def test_sweep__wrong_usage_ends_with_2(sweep_path: Path, command: Command) -> None:
    assert command("sweep")[0] == 2
    assert command("sweep", sweep_path, "train.steps")[0] == 2
