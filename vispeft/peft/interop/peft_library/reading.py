"""Adapter directories of the peft library, injected into a model."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vispeft.errors import CheckpointError, PlanError
from vispeft.peft.checkpoint import copy_tensors, delta_keys, own_keys, state_tensors
from vispeft.peft.inject import attached, inject, is_injected, remove
from vispeft.peft.interop.peft_library.contents import Contents, check_values
from vispeft.peft.interop.peft_library.directory import Directory, read_directory
from vispeft.peft.interop.peft_library.full_reading import read_ln_tuning, read_trainable_tokens
from vispeft.peft.interop.peft_library.lora_reading import read_lora
from vispeft.peft.interop.peft_library.product_reading import read_adalora, read_loha, read_lokr
from vispeft.peft.interop.peft_library.rotations import read_oft
from vispeft.peft.interop.peft_library.vector_reading import read_fourierft, read_ia3, read_vera
from vispeft.peft.plan import Plan
from vispeft.peft.wrappers import unwrapped

_READERS: dict[str, Callable[[Directory, nn.Module], Contents]] = {
    "ADALORA": read_adalora,
    "FOURIERFT": read_fourierft,
    "IA3": read_ia3,
    "LN_TUNING": read_ln_tuning,
    "LOHA": read_loha,
    "LOKR": read_lokr,
    "LORA": read_lora,
    "OFT": read_oft,
    "TRAINABLE_TOKENS": read_trainable_tokens,
    "VERA": read_vera,
}

# kinds with a namesake here that computes something else
_OTHERS = {
    "BOFT": "multiplies butterfly factors of the library's own order",
}


def load_peft(model: nn.Module, directory: str | os.PathLike[str]) -> None:
    """Inject the adapter of a peft directory into a model without a plan, in place, and load its tensors.

    Such a directory does not identify its base: a wrong one of the same shapes is not refused. On an error the model is
    as it was.
    directory: path, or the name of an adapter on the Hugging Face hub that is in the local cache
    """
    model = unwrapped(model)
    if is_injected(model):
        raise PlanError("The model has a plan already. Call `remove` or `merge` first.")
    check_values(state_tensors(model))
    source = read_directory(directory)
    if source.options.kind not in _READERS:
        error = source.options.unsupported_kind(_READERS)
        reason = _OTHERS.get(source.options.kind)
        raise CheckpointError(f"{error} The library's {source.options.kind} {reason}.") if reason else error
    for name, tensor in source.tensors.items():
        if not tensor.is_floating_point() and not name.endswith("num_batches_tracked"):
            raise CheckpointError(f"`{source.path}` is damaged: `{name}` holds {tensor.dtype} values.")
    try:
        contents = _READERS[source.options.kind](source, model)
        parameters = dict(model.named_parameters())
        trained = tuple(name for name in contents.full if name in parameters)
        if not contents.methods and not trained:
            raise CheckpointError(f"`{source.path}` has no tensors of an adapter.")
        inject(model, Plan(contents.methods, trained))
    except PlanError as error:
        raise CheckpointError(f"`{source.path}` does not fit this model: {error}") from error
    try:
        _copy(model, contents, trained, source)
    except CheckpointError:
        remove(model)
        raise


def _copy(model: nn.Module, contents: Contents, trained: tuple[str, ...], source: Directory) -> None:
    """Copy the tensors into the injected model, in place. Buffers beside trained parameters may be absent."""
    state = state_tensors(model)
    wanted, of_deltas = own_keys(model, trained, state), delta_keys(model, state)
    # a tensor that several deltas share has one name among the wanted ones
    names = {_memory(state[key]): key for key in sorted(wanted)}
    tensors = {names[_memory(state[key])] if key in state else key: value for key, value in contents.tensors.items()}
    buffers = {key: state[key] for key in wanted - of_deltas - set(trained)}
    modules = dict(model.named_modules())
    for item in attached(model):
        if item.site in modules:
            # the dropout of a model in evaluation must not act
            item.delta.train(modules[item.site].training)
    copy_tensors(model, buffers | contents.full | tensors, trained, source.path)


def _memory(tensor: Tensor) -> tuple[int, torch.Size]:
    """Return what tells a tensor from all others that share no memory with it."""
    return tensor.data_ptr(), tensor.shape
