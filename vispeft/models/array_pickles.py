"""Pickles of numpy arrays, as detectron2's model zoo publishes its checkpoints, read without running code."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# the number with which files of torch before version 1.6 begin
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
_NUMBERS = "biufc"


class _Encode:
    """`_codecs.encode` for bytes that Python 2 wrote as text. Without attributes, which a pickle could set."""

    __slots__ = ()

    def __call__(self, text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"text in the encoding {encoding!r}")
        return text.encode("latin1")


class _FromBuffer:
    """`numpy._core.numeric._frombuffer`, of pickles of protocol 5."""

    __slots__ = ()

    def __call__(self, buffer: Any, dtype: Any, shape: Any, order: Any) -> Any:
        return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)


# functions and types of numpy, which no pickle can change
_RECONSTRUCT: Any = np.empty(0).__reduce__()[0]
_SCALAR: Any = np.float32(0).__reduce__()[0]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _Encode(),
    **{(builtins, "bytes"): bytes for builtins in ("builtins", "__builtin__")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _RECONSTRUCT for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _SCALAR for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _FromBuffer() for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    """Unpickler that knows arrays and containers alone; any other name in a pickle is an UnpicklingError."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Return an allowed object by its name."""
        if (module_name, global_name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")
        return _ALLOWED[module_name, global_name]


def is_pickle(path: Path) -> bool:
    """Tell whether a file is a plain pickle, and not one of torch, which has other objects before its tensors."""
    with path.open("rb") as file:
        start = file.read(32)
    return start[:1] == b"\x80" and _TORCH_MAGIC not in start


def read_pickle(path: Path) -> Any:
    """Return the object of a plain pickle, its arrays of numbers as tensors.

    Raises pickle.UnpicklingError, and errors of numpy, where it holds other objects or is damaged.
    """
    with path.open("rb") as file:
        # as of Python 2
        return _with_tensors(_Unpickler(file, encoding="latin1").load())


def _with_tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_tensors(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in _NUMBERS:
        return _tensor(np.asarray(value))
    return value


def _tensor(array: Any) -> Tensor:
    # a copy that torch may write to, in the machine's byte order
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
