"""Pickles of numpy arrays: read as tensors, and nothing but arrays and containers is accepted."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vispeft.errors import CheckpointError
from vispeft.models.array_pickles import is_pickle, read_pickle
from vispeft.models.weight_files import read_state


def written(content: Any, path: Path, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_read_state__reads_the_model_zoos_form(protocol: int, tmp_path: Path) -> None:
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    content = {
        "model": {"weight": weight, "transposed": weight.T, "count": np.int64(7), "empty": np.zeros((0, 2))},
        "__author__": "Mask2Former",
        "matching_heuristics": True,
    }
    state = read_state(written(content, tmp_path / "model.pkl", protocol))
    assert state.keys() == {"weight", "transposed", "count", "empty"}
    assert torch.equal(state["weight"], torch.arange(6.0).view(2, 3))
    assert torch.equal(state["transposed"], torch.arange(6.0).view(2, 3).T)
    assert state["count"] == 7
    assert state["empty"].shape == (0, 2)
    # not a view of read-only memory
    state["weight"].add_(1)


def test_read_state__reads_a_pickle_of_python_2(tmp_path: Path) -> None:
    """Its bytes are text there, as `_codecs.encode` makes them."""
    array = np.array([1.5, -2.0], dtype=np.float32)
    content = pickle.dumps(OrderedDict(weight=array), protocol=2)
    assert b"_codecs" in content
    (tmp_path / "model.pkl").write_bytes(content)
    assert read_state(tmp_path / "model.pkl")["weight"].tolist() == [1.5, -2.0]


def test_read_state__swaps_bytes_of_another_machine(tmp_path: Path) -> None:
    path = written({"weight": np.array([1.0, 2.0], dtype=">f4")}, tmp_path / "model.pkl")
    assert read_state(path)["weight"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "content",
    [{"weight": torch.nn.Linear}, {"weight": Path("x")}, {"weight": np.array([Path("x")], dtype=object)}, {1, 2}],
    ids=["class", "object", "array of objects", "no dictionary"],
)
def test_read_state__refuses_other_objects(content: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.pkl"):
        read_state(written(content, tmp_path / "model.pkl"))


def test_read_state__refuses_half_a_file(tmp_path: Path) -> None:
    path = written({"weight": np.zeros(100)}, tmp_path / "model.pkl")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_state(path)


@pytest.mark.parametrize("function", [b"_codecs\nencode", b"numpy.core.numeric\n_frombuffer", b"numpy\nndarray"])
def test_read_pickle__changes_nothing_of_what_it_allows(function: bytes, tmp_path: Path) -> None:
    """A pickle can set attributes of the objects that it names."""
    setting = b"\x80\x02c" + function + b"\n}X\x01\x00\x00\x00aK\x01sb."
    (tmp_path / "model.pkl").write_bytes(setting)
    with pytest.raises((AttributeError, TypeError)):
        read_pickle(tmp_path / "model.pkl")


def test_is_pickle__tells_torchs_files_from_plain_ones(tmp_path: Path) -> None:
    tensors = {"weight": torch.zeros(2)}
    torch.save(tensors, tmp_path / "zip.pth")
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save(tensors, tmp_path / "old4.pth", _use_new_zipfile_serialization=False, pickle_protocol=4)
    assert not any(is_pickle(tmp_path / name) for name in ("zip.pth", "old.pth", "old4.pth"))
    assert is_pickle(written({}, tmp_path / "plain.pkl"))


class Runs:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("is_nested", [False, True], ids=["alone", "nested"])
def test_read_state__runs_nothing(protocol: int, is_nested: bool, tmp_path: Path) -> None:
    path, made = tmp_path / "evil.pkl", tmp_path / "made"
    evil = Runs(made)
    path.write_bytes(pickle.dumps({"model": {"weight": evil}} if is_nested else evil, protocol=protocol))
    with pytest.raises(CheckpointError, match=r"evil\.pkl cannot be read"):
        read_state(path)
    assert not made.exists()


def test_read_state__still_reads_torch_files_of_both_kinds(tmp_path: Path) -> None:
    for is_zip in (True, False):
        path = tmp_path / f"{is_zip}.pth"
        torch.save({"model": {"a": torch.ones(2)}}, path, _use_new_zipfile_serialization=is_zip)
        assert read_state(path)["a"].tolist() == [1, 1]
