"""Plain pickles of NumPy arrays, in which detectron2 publishes weights, read without running anything in them."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from typing import IO, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

# first bytes of a pickle of protocol 2 or later, and those of torch's old files, which are pickles too
_PICKLE = b"\x80"
_TORCH_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
START_BYTES = 32


def is_plain_pickle(start: bytes) -> bool:
    """Return True for the first bytes of a pickle that torch has not written."""
    return start.startswith(_PICKLE) and _TORCH_MAGIC not in start


def load_arrays(file: IO[bytes]) -> Any:
    """Return the content of a pickle of arrays, with each array as a tensor.

    Raises `pickle.UnpicklingError` for one that holds more than arrays, numbers, texts, lists and dicts.
    """
    return _as_tensors(_ArrayUnpickler(file).load())


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that knows the constructors of arrays alone."""

    def find_class(self, module: str, name: str) -> Any:
        known = _CONSTRUCTORS.get((module.replace("numpy._core.", "numpy.core."), name))
        if known is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return known


def _empty_array(kind: object, shape: tuple[int, ...], typecode: object) -> NDArray[Any]:
    """Return the array whose shape, type and bytes the pickle sets next. kind, typecode: of the pickle, not used"""
    return np.ndarray((0,), dtype=np.uint8)


def _array_of(buffer: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], order: Literal["C", "F"]) -> NDArray[Any]:
    """Return an array of its bytes, as protocol 5 has it."""
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


def _latin1(text: str, encoding: str) -> bytes:
    """Return the bytes that protocol 2 writes as text."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding}")
    return text.encode("latin1")


_CONSTRUCTORS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy.core.numeric", "_frombuffer"): _array_of,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _latin1,
}


def _as_tensors(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biufc":
            raise pickle.UnpicklingError(f"it holds an array of {value.dtype}")
        # a copy, since the bytes of a pickle may not be written to
        return torch.from_numpy(np.array(value))
    if isinstance(value, dict):
        return {key: _as_tensors(entry) for key, entry in value.items()}
    return value
