from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vispeft.errors import CheckpointError
from vispeft.training.checkpoint import load_checkpoint, save_checkpoint
from vispeft.training.seeds import rng_state
from vispeft.training.state import Checkpoint, Counters


def checkpoint(step: int = 4, tensors: dict[str, torch.Tensor] | None = None) -> Checkpoint:
    return Checkpoint(
        counters=Counters(step=step, best_step=2, best_metrics={"segm/AP": 0.25}, loss_sums={"loss": 1.5}),
        tensors={"w": torch.arange(3.0)} if tensors is None else tensors,
        optimizer={"state": {0: {"step": torch.tensor(4.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        precision={},
        ema={"w": torch.ones(3), "": torch.tensor(4)},
        rng=[rng_state(torch.device("cpu"))],
    )


class Unwritable:
    """An object that cannot be pickled, so that writing fails halfway."""

    def __reduce__(self) -> str:
        raise OSError("no space left on device")


def test_save_checkpoint__round_trip(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.pt"
    save_checkpoint(path, checkpoint())
    loaded = load_checkpoint(path)
    assert loaded.counters == checkpoint().counters
    assert torch.equal(loaded.tensors["w"], torch.arange(3.0))
    assert loaded.optimizer["param_groups"] == [{"lr": 0.1, "params": [0]}]
    assert [p.name for p in path.parent.iterdir()] == ["last.pt"]


def test_save_checkpoint__keeps_the_old_file_if_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    (tmp_path / ".last.pt.1.partial").touch()  # of a killed run
    save_checkpoint(path, checkpoint(step=4))
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"last\.pt` cannot be written: no space left"):
        save_checkpoint(path, checkpoint(step=5, tensors={"w": Unwritable()}))  # type: ignore[dict-item]
    assert path.read_bytes() == before
    assert load_checkpoint(path).counters.step == 4
    assert [each.name for each in tmp_path.iterdir()] == ["last.pt"]


def test_load_checkpoint__reports_missing_and_unreadable_files(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    with pytest.raises(CheckpointError, match=r"last\.pt` must be a checkpoint to resume from, but is not there"):
        load_checkpoint(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(path)
    save_checkpoint(path, checkpoint())
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(path)
    torch.save({"weights": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(path)
    torch.save({"format": 99}, path)
    with pytest.raises(CheckpointError, match="must have checkpoint format 1, but has 99"):
        load_checkpoint(path)
    torch.save(Unpicklable(), path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(path)


class Unpicklable:
    """A class that loading a checkpoint must not import."""


def test_save_checkpoint__reports_a_full_disk(tmp_path: Path, files_of_at_most: Callable[..., Any]) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, checkpoint(step=4))
    large = checkpoint(step=5, tensors={"w": torch.zeros(10_000)})
    with files_of_at_most(4096), pytest.raises(CheckpointError, match=r"last\.pt` cannot be written: File too large\."):
        save_checkpoint(path, large)
    assert load_checkpoint(path).counters.step == 4
    assert [each.name for each in tmp_path.iterdir()] == ["last.pt"]


def test_load_checkpoint__reads_one_without_data(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, checkpoint())
    content = torch.load(path, weights_only=True)
    del content["data"]
    torch.save(content, path)
    assert load_checkpoint(path).data == {}
