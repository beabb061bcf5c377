"""Fingerprints of a base's frozen tensors, by which an adapter file knows the model that it was trained on.

A base that is only in another precision is known as well. Its tensors were rounded, once, from those of the file's
base, or those of the file's base from its own. So both are compared after rounding to the lowest precision among them,
for which a file holds fingerprints of its base beside the exact one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_HALF = ("bfloat16", "float16")


def fingerprint(state: Mapping[str, Tensor], own: Iterable[str], deltas: Collection[str] = ()) -> str:
    """SHA-256 over the tensors that training does not change; over names and shapes of all if it changes all.

    deltas: names of tensors that do not belong to the base
    """
    state = _flattened(state)
    base = _base_keys(state, own)
    if base:
        return _digest(state, base, None)
    digest = hashlib.sha256()
    for key in sorted(state.keys() - set(deltas)):
        digest.update(_heading(key, state[key]))
    return digest.hexdigest()


def rounded_fingerprints(state: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, str]:
    """Return fingerprints of the base in each lower precision, beside its own `precisions`; none without a base."""
    state = _flattened(state)
    base = _base_keys(state, own)
    found = _precisions(state, base)
    if not found:
        return {}
    targets = [name for name in ("float32", *_HALF) if name != "float32" or "float64" in found]
    rounded = {name: _digest(state, base, getattr(torch, name)) for name in targets}
    return {"precisions": ",".join(sorted(found)), **rounded}


def is_rounded(state: Mapping[str, Tensor], own: Iterable[str], exact: str, rounded: Mapping[str, str]) -> bool:
    """Return True if a model's base is that of a file in another precision.

    exact, rounded: the fingerprints in the file
    """
    state = _flattened(state)
    base = _base_keys(state, own)
    here = _precisions(state, base)
    there = set(rounded.get("precisions", "float32").split(","))
    target = _common(here, there)
    if target is None or not base:
        return False
    wanted = exact if there == {target} else rounded.get(target)
    return wanted is not None and _digest(state, base, getattr(torch, target)) == wanted


def precisions_of(state: Mapping[str, Tensor], own: Iterable[str]) -> set[str]:
    """Return the names of the floating-point precisions of a base."""
    state = _flattened(state)
    return _precisions(state, _base_keys(state, own))


def _flattened(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with those that a quantised one of another library is made of in its place."""
    plain: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if is_traceable_wrapper_subclass(tensor):
            names, _ = tensor.__tensor_flatten__()
            plain |= _flattened({f"{key}.{name}": getattr(tensor, name) for name in names})
        else:
            plain[key] = tensor
    return plain


def _common(here: set[str], there: set[str]) -> str | None:
    """Return the precision in which two bases can be compared, the lowest of both; None where only equality counts."""
    if here == there:
        return None
    for side in (here, there):
        halves = [name for name in _HALF if name in side]
        if halves:
            return halves[0] if len(halves) == 1 else None
    return "float32" if here | there <= {"float32", "float64"} else None


def _base_keys(state: Mapping[str, Tensor], own: Iterable[str]) -> list[str]:
    """Return the names of the tensors that training does not change, nor through another name of theirs."""
    own = set(own)
    changing = {state[key].data_ptr() for key in own if state[key].numel()}
    return [key for key in sorted(state) if key not in own and state[key].data_ptr() not in changing]


def _precisions(state: Mapping[str, Tensor], keys: Iterable[str]) -> set[str]:
    return {str(state[key].dtype).removeprefix("torch.") for key in keys if state[key].is_floating_point()}


def _digest(state: Mapping[str, Tensor], keys: Sequence[str], dtype: torch.dtype | None) -> str:
    """SHA-256 over names, shapes, precisions and values, those of floating-point tensors rounded to `dtype`."""
    digest = hashlib.sha256()
    for key in keys:
        tensor = state[key] if dtype is None or not state[key].is_floating_point() else state[key].to(dtype)
        digest.update(_heading(key, tensor))
        digest.update(str(tensor.dtype).encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _heading(key: str, tensor: Tensor) -> bytes:
    return f"{key} {list(tensor.shape)}\n".encode()
