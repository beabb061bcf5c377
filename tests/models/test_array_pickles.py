"""Plain pickles of arrays, as detectron2 publishes them, and pickles that would run something."""

import os
import pickle
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vispeft.errors import CheckpointError
from vispeft.models.weight_files import read_state


class Runs:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


class AsksForACodec:
    def __reduce__(self) -> tuple[Any, ...]:
        import _codecs

        return _codecs.encode, ("text", "zlib")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_read_state__reads_arrays_of_every_protocol(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "model_final.pkl"
    arrays = OrderedDict(
        weight=np.arange(6, dtype=np.float32).reshape(2, 3),
        columns=np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        half=np.float16([1, 2]),
        count=np.array(7),
    )
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "someone"}, protocol=protocol))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = read_state(path)
    assert state.keys() == arrays.keys()
    for name, array in arrays.items():
        torch.testing.assert_close(state[name], torch.from_numpy(np.array(array)), rtol=0, atol=0)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("is_nested", [False, True], ids=["alone", "nested"])
def test_read_state__runs_nothing(protocol: int, is_nested: bool, tmp_path: Path) -> None:
    path, made = tmp_path / "evil.pkl", tmp_path / "made"
    evil = Runs(made)
    path.write_bytes(pickle.dumps({"model": {"weight": evil}} if is_nested else evil, protocol=protocol))
    with pytest.raises(CheckpointError, match=r"evil\.pkl cannot be read"):
        read_state(path)
    assert not made.exists()


@pytest.mark.parametrize("value", [AsksForACodec(), np.array([None, 1], dtype=object)], ids=["codec", "objects"])
def test_read_state__refuses_what_is_no_array(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "odd.pkl"
    path.write_bytes(pickle.dumps({"model": {"weight": value}}))
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        read_state(path)


def test_read_state__still_reads_torch_files_of_both_kinds(tmp_path: Path) -> None:
    for is_zip in (True, False):
        path = tmp_path / f"{is_zip}.pth"
        torch.save({"model": {"a": torch.ones(2)}}, path, _use_new_zipfile_serialization=is_zip)
        assert read_state(path)["a"].tolist() == [1, 1]
