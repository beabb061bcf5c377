"""Tensors that the peft library trains in full, by their names in the base.

These are modules of `modules_to_save` and of LN tuning, biases, and single rows of an embedding
(`trainable_token_indices`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vispeft.errors import CheckpointError
from vispeft.peft.interop.peft_library import known_options
from vispeft.peft.interop.peft_library.contents import Contents, check_shape
from vispeft.peft.interop.peft_library.directory import Directory
from vispeft.peft.interop.peft_library.names import Tree, without_wrappers

_TOKENS = ".trainable_tokens_delta"
_TOKENS_BESIDE = f".token_adapter{_TOKENS}"
_NORM = ".ln_tuning_layers"


def read_ln_tuning(source: Directory, model: nn.Module) -> Contents:
    """Return the norms of a directory of LN tuning, which are trained in full."""
    source.options.check(known_options.LN_TUNING)
    tensors = {name.replace(_NORM, ""): tensor for name, tensor in source.tensors.items()}
    return Contents(full=full_tensors(source, Tree(model), tensors))


def read_trainable_tokens(source: Directory, model: nn.Module) -> Contents:
    """Return the embeddings of a directory of single trained rows, which are trained in full."""
    source.options.check(known_options.TRAINABLE_TOKENS)
    return Contents(full=full_tensors(source, Tree(model), source.tensors))


def full_tensors(source: Directory, tree: Tree, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors trained in full by their names in the base, one name for each tensor of the model."""
    known = _known_tensors(tree)
    full: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".original_module." in name or ".modules_to_save." in name:
            # the frozen twin of a saved module, and another copy of what it has under its own name
            continue
        if name.endswith(_TOKENS):
            site = name.removesuffix(_TOKENS_BESIDE).removesuffix(_TOKENS)
            ours, value = _with_rows(source, known, site, tensor)
        else:
            ours, value = name if name in known else without_wrappers(name), tensor
        if ours not in known:
            raise CheckpointError(f"`{source.path}` was trained on another base: this model has no `{ours}`.")
        first, own = known[ours]
        check_shape(source, ours, value, own.shape)
        if name.endswith(".base_layer.weight") and torch.equal(value.to(own), own):
            # a copy of an adapted embedding, which the library saves along
            continue
        if not torch.equal(full.setdefault(first, value), value):
            raise CheckpointError(
                f"`{source.path}` has two values for `{first}`, which this model shares with `{ours}`."
            )
    _check_complete(source, tree, known, full)
    return _without_frozen_buffers(source, tree, known, full)


def _without_frozen_buffers(
    source: Directory, tree: Tree, known: Mapping[str, tuple[str, Tensor]], full: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors without buffers beside which nothing is trained, such as `bias` of a frozen BatchNorm.

    The library saves all that is called `bias`. Refuse such a buffer with other values than those of the model.
    """
    parameters = {known[name][0] for name, _ in tree.model.named_parameters(remove_duplicate=False) if name in known}
    owners = {name.rpartition(".")[0] for name in full if name in parameters}
    frozen = [name for name in full if name not in parameters and name.rpartition(".")[0] not in owners]
    for name in frozen:
        own = known[name][1]
        if not torch.equal(full[name].to(own), own):
            raise CheckpointError(
                f"`{source.path}` was trained on another base: its `{name}`, which nothing trains, has other values."
            )
    return {name: value for name, value in full.items() if name not in frozen}


def _check_complete(
    source: Directory, tree: Tree, known: Mapping[str, tuple[str, Tensor]], full: Mapping[str, Tensor]
) -> None:
    """Refuse a saved module of which the file has some tensors and lacks others."""
    ends = source.options.names("modules_to_save")
    norms = {without_wrappers(name.partition(_NORM)[0]) for name in source.tensors if _NORM in name}
    for name in tree.modules:
        if name not in norms and not any(name.endswith(end) for end in ends):
            continue
        inside = {first for ours, (first, _) in known.items() if ours.startswith(f"{name}.")}
        missing = sorted(inside - full.keys())
        if missing and len(missing) < len(inside):
            raise CheckpointError(f"`{source.path}` is damaged: it has `{name}` in full, but lacks `{missing[0]}`.")


def _known_tensors(tree: Tree) -> dict[str, tuple[str, Tensor]]:
    """Return each parameter and buffer of the base by all of its names, with its first one."""
    known: dict[str, tuple[str, Tensor]] = {}
    first: dict[int, str] = {}
    for prefix, module in tree.modules.items():
        for leaf, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            name = f"{prefix}.{leaf}" if prefix else leaf
            known[name] = first.setdefault(id(tensor), name), tensor.detach()
    return known


def _with_rows(
    source: Directory, known: Mapping[str, tuple[str, Tensor]], site: str, rows: Tensor
) -> tuple[str, Tensor]:
    """Return the name and the weight of an embedding with its trained rows in it."""
    name = f"{without_wrappers(site)}.weight"
    if name not in known:
        raise CheckpointError(f"`{source.path}` was trained on another base: this model has no `{name}`.")
    weight = known[name][1].clone()
    option = "token_indices" if source.options.kind == "TRAINABLE_TOKENS" else "trainable_token_indices"
    indices = source.options.values.get(option)
    if isinstance(indices, dict):
        indices = next((each for target, each in indices.items() if site.endswith(str(target))), None)
    if not isinstance(indices, list) or not all(type(index) is int and 0 <= index < len(weight) for index in indices):
        raise source.options.wrong(option, f"indices below {len(weight)} for `{site}`")
    weight[indices] = check_shape(source, f"{site}{_TOKENS}", rows, (len(indices), weight.shape[1])).to(weight)
    return name, weight
