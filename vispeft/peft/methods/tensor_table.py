"""Facts about tensors of one forward pass, kept outside the tensors."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Generic, Self, TypeVar

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Value = TypeVar("Value")


class TensorTable(Generic[Value]):
    """Values by tensor object, not by content. An entry ends with its tensor, which the table does not keep alive.

    A value must not hold its own tensor, or the entry would never end. Threads may share a table: each operation is a
    single one of a dict.
    """

    def __init__(self) -> None:
        self._values: MutableMapping[Tensor, Value] = WeakTensorKeyDictionary()

    def __len__(self) -> int:
        return len(self._values)

    def __setitem__(self, tensor: Tensor, value: Value) -> None:
        self._values[tensor] = value

    def get(self, tensor: Tensor) -> Value | None:
        """Return the value of a tensor, or None without an entry."""
        return self._values.get(tensor)

    def pop(self, tensor: Tensor) -> Value | None:
        """Return the value of a tensor and end its entry; None without an entry."""
        return self._values.pop(tensor, None)

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        # a copied or unpickled model has made no tensors yet
        return type(self), ()
