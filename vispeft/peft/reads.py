"""Tensors that a pass of a model reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


class _Reads(TorchFunctionMode):
    """A mode that records which of some tensors are arguments of operations, their attributes aside."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self._ids = {id(tensor) for tensor in tensors}
        self.found: set[int] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.__name__ != "__get__":
            self.found |= self._ids.intersection(map(id, tree_leaves((args, kwargs))))
        return func(*args, **(kwargs or {}))


def reads_any(run: Callable[[], object], tensors: Iterable[Tensor]) -> bool:
    """Return True if a function uses the values of any of the tensors."""
    mode = _Reads(tensors)
    with mode:
        run()
    return bool(mode.found)
