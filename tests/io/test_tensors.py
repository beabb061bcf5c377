"""Safetensors files with metadata."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vispeft.errors import CheckpointError, TrainingError
from vispeft.io.tensors import own_copies, read_metadata, read_shapes, read_tensors, write_tensors


def test_write_tensors__round_trips_with_metadata(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.safetensors"
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"b": base.T, "a": base, "c": torch.tensor(1, dtype=torch.int64)}
    write_tensors(path, own_copies(tensors), {"key": "value"})
    found, metadata = read_tensors(path)
    assert metadata == read_metadata(path) == {"key": "value"}
    assert read_shapes(path) == {"a": [3, 4], "b": [4, 3], "c": []}
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert oct(path.stat().st_mode) == oct(_plain_file(tmp_path).stat().st_mode)


def _plain_file(folder: Path) -> Path:
    path = folder / "plain"
    path.touch()
    return path


def test_own_copies__share_no_memory_and_no_gradient() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    copies = own_copies({"a": parameter, "b": parameter})
    assert not copies["a"].requires_grad
    assert len({tensor.data_ptr() for tensor in (*copies.values(), parameter)}) == 3


def test_write_tensors__raises_the_error_of_the_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for error in (CheckpointError, TrainingError):
        with pytest.raises(error, match="cannot be written"):
            write_tensors(tmp_path / "file" / "x.safetensors", {}, {}, raises=error)


@pytest.mark.parametrize("read", [read_tensors, read_metadata, read_shapes])
def test_read_tensors__refuses_what_is_not_a_whole_safetensors_file(tmp_path: Path, read) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.ones(100)}, {})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"x\.safetensors` cannot be read as a safetensors file"):
        read(path)
